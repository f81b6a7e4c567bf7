"""Extraction of text and blocks from files, one module per format."""
