"""What a container reads and writes, and further commands in it."""
