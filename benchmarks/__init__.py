"""Benchmarks of keywise: results are checked before anything is timed. Run ``python -m benchmarks --help``."""
