"""The operation: attention over keys, readings and partials. NumPy is the only dependency."""
