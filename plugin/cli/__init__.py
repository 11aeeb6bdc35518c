"""The command line, ``cameleer``: what people type, and what they see of it."""
