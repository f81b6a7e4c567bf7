"""The transformers plug-in: keywise as a model's attention, its key-value cache, and recorded attention statistics.

Importing this package loads neither torch nor transformers; they are imported by the first call that needs them.
"""

from typing import Any

from keywise.hf.block_recording import record_weights
from keywise.hf.compatibility import check_features
from keywise.hf.families import FamilySupport, supported
from keywise.hf.layer_stats import LayerStats
from keywise.hf.plugin import register, register_on_import, use
from keywise.hf.recording import record_stats
from keywise.hf.stats_record import StatsRecord
from keywise.hf.stats_spec import StatsSpec

__all__ = [
    "Cache",
    "FamilySupport",
    "LayerStats",
    "StatsRecord",
    "StatsSpec",
    "record_stats",
    "record_weights",
    "register",
    "supported",
    "use",
]

check_features()
register_on_import()


def __getattr__(name: str) -> Any:
    # Cache subclasses a class of transformers, which takes seconds to import.
    if name == "Cache":
        from keywise.hf.cache import Cache

        return Cache
    raise AttributeError(f"module 'keywise.hf' has no attribute {name!r}")
