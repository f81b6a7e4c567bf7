"""A library of keys over many documents: every sentence has a key, a question's softmax runs over all of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keywise.hf.installed import needs

if TYPE_CHECKING:
    from keywise.memory.encoder import Encoder as Encoder
    from keywise.memory.encoder import SentenceEncoder as SentenceEncoder
    from keywise.memory.library import Library as Library

__all__ = ["Encoder", "Library", "SentenceEncoder"]


def __getattr__(name: str) -> Any:
    # Lance is slow to import, or absent: it comes when a library is asked for.
    if name not in __all__:
        raise AttributeError(f"module 'keywise.memory' has no attribute {name!r}")
    needs("library", "lance", "pyarrow")
    return getattr(importlib.import_module(f"keywise.memory.{'library' if name == 'Library' else 'encoder'}"), name)
