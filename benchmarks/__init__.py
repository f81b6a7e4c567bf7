"""Benchmarks: keywise against its rivals, checked before they are timed. `keywise bench` is the door."""
