"""Fast, exact transformer attention that also reports which keys received it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keywise.attention.mask import Mask
from keywise.attention.operation import attend, attention_stats, partial
from keywise.attention.partial import Partial, merge
from keywise.attention.stats import AttentionStats
from keywise.attention.targets import explain, get_num_threads, set_num_threads, targets, using
from keywise.attention.weights import WeightsBlock, attention_weights
from keywise.cache.kvcache import KVCache
from keywise.errors import (
    DtypeError,
    FormatError,
    KeywiseError,
    MissingFileError,
    ModelError,
    OptionError,
    ShapeError,
    TargetError,
)

if TYPE_CHECKING:
    from keywise import diagnosis as diagnosis
    from keywise import documents as documents
    from keywise import hf as hf
    from keywise import models as models
    from keywise import torch as torch
    from keywise.library import Library as Library

__version__: str

__all__ = [
    "AttentionStats",
    "DtypeError",
    "FormatError",
    "KVCache",
    "KeywiseError",
    "Mask",
    "MissingFileError",
    "ModelError",
    "OptionError",
    "Partial",
    "ShapeError",
    "TargetError",
    "WeightsBlock",
    "attend",
    "attention_stats",
    "attention_weights",
    "diagnosis",
    "documents",
    "explain",
    "get_num_threads",
    "hf",
    "merge",
    "models",
    "partial",
    "set_num_threads",
    "targets",
    "torch",
    "using",
]


def __getattr__(name: str) -> Any:
    # These modules need packages that are slow to import or not installed, so they are imported at first use.
    if name in {"diagnosis", "documents", "hf", "models", "torch"}:
        return importlib.import_module(f"keywise.{name}")
    if name == "Library":  # not in __all__: `from keywise import *` must not need Lance
        return importlib.import_module("keywise.library").Library
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("keywise")
    raise AttributeError(f"module 'keywise' has no attribute {name!r}")
