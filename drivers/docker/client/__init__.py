"""The ways to talk to an engine."""
