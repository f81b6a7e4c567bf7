"""keywise: fast, exact transformer attention that also tells which keys mattered."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keywise.attention.kernels import explain, get_threads, set_threads, targets, using
from keywise.attention.mask import Mask
from keywise.attention.operation import attend, partial, read
from keywise.attention.partial import Partial, merge
from keywise.attention.reading import Reading
from keywise.cache.kvcache import KVCache
from keywise.errors import (
    DtypeError,
    FormatError,
    KeywiseError,
    ModelError,
    OptionError,
    ShapeError,
    TargetError,
)

if TYPE_CHECKING:
    from keywise import diagnosis as diagnosis
    from keywise import documents as documents
    from keywise import hf as hf
    from keywise.memory import Library as Library

__version__: str

__all__ = [
    "DtypeError",
    "FormatError",
    "KVCache",
    "KeywiseError",
    "Mask",
    "ModelError",
    "OptionError",
    "Partial",
    "Reading",
    "ShapeError",
    "TargetError",
    "attend",
    "diagnosis",
    "documents",
    "explain",
    "get_threads",
    "hf",
    "merge",
    "partial",
    "read",
    "set_threads",
    "targets",
    "using",
]


def __getattr__(name: str) -> Any:
    # The plug-ins stand on packages that are slow to import or absent: they come when they are asked for.
    if name in {"diagnosis", "documents", "hf"}:
        return importlib.import_module(f"keywise.{name}")
    if name == "Library":  # not in __all__: whoever imports everything need not have Lance
        return importlib.import_module("keywise.memory").Library
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("keywise")
    raise AttributeError(f"module 'keywise' has no attribute {name!r}")
