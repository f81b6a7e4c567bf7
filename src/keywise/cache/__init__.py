"""Keys and values that stay: in memory while tokens are added, and in files."""
