"""Getting images: their names, pulls, credentials."""
