"""A library of keys over many documents: every sentence has a key, a question's softmax runs over all of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keywise.util.optional_imports import require_modules

if TYPE_CHECKING:
    from keywise.library.encoder import Encoder as Encoder
    from keywise.library.encoder import SentenceEncoder as SentenceEncoder
    from keywise.library.library import Library as Library

__all__ = ["Encoder", "Library", "SentenceEncoder"]


def __getattr__(name: str) -> Any:
    # Lance is slow to import, or absent: it comes when a library is asked for.
    if name not in __all__:
        raise AttributeError(f"module 'keywise.library' has no attribute {name!r}")
    require_modules("library", "lance", "pyarrow")
    return getattr(importlib.import_module(f"keywise.library.{'library' if name == 'Library' else 'encoder'}"), name)
