"""Python's garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Collect no cyclic garbage inside a ``with`` block that creates many objects which stay.

    Importing torch and transformers and reading a vocabulary create many objects that stay. The collector would go
    through all of them several times and find nothing.

    Examples
    --------
    >>> import gc
    >>> from keywise.util.garbage import pause_garbage_collection
    >>> with pause_garbage_collection():
    ...     gc.isenabled()
    False
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
