"""Exact attention over the sentences of many documents, or over keys of the user's own.

* Add: `ingest` reads files and splits them into sentences, an encoder makes keys, `transactions` commits the rows.
* Attend: `query` checks the arguments, `scan` attends to each fragment, `partials` merges, `results` are returned.
* Answer: `passages` chooses paragraphs to read, `answer` lets a language model read them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keywise.util.optional_imports import require_modules

if TYPE_CHECKING:
    from keywise.library.library import Library as Library

__all__ = ["Library"]


def __getattr__(name: str) -> Any:
    # Lance is slow to import, and may not be installed.
    if name not in __all__:
        raise AttributeError(f"module 'keywise.library' has no attribute {name!r}")
    require_modules("library", "lance", "pyarrow")
    return importlib.import_module("keywise.library.library").Library
