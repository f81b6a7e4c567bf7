"""Keys and values of past tokens: in memory while tokens are added, and in files."""
