"""A task as the engine's request to create a container."""
