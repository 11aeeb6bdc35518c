"""Built-in drivers, one module or folder each, and the parts they share; found by entry point like a stranger's."""
