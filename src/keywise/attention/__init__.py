"""Attention, its statistics and partials. NumPy is the only dependency."""
