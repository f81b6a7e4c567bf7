"""Fuzzing: hostile files, texts and arrays are served or refused, never a crash, a hang or a large allocation."""
