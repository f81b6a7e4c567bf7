"""The Hugging Face plug-in: keywise as the attention of a transformers model, and readings of that model at work."""

from typing import Any

from keywise.hf.cache import cache_class
from keywise.hf.plugin import register, use
from keywise.hf.stats_record import LayerStats, StatsRecord, record_stats

__all__ = ["Cache", "LayerStats", "StatsRecord", "record_stats", "register", "use"]


def __getattr__(name: str) -> Any:
    # The class is built on transformers' own, which is slow to import.
    if name == "Cache":
        return cache_class()
    raise AttributeError(f"module 'keywise.hf' has no attribute {name!r}")
