"""Hook specifications, the statistics hook, and one module per consumer of usage."""
