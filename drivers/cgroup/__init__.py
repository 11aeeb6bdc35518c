"""Control groups, version 1 and 2: where they are, making and removing them, limits, and reading what they count."""
