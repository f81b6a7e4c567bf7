"""Suppression of what libraries write to the terminal behind Python's back."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

_STREAMS = (1, 2)
_lock = threading.Lock()


@contextmanager
def discard_output() -> Iterator[None]:
    """Discard what the process writes to its standard output and error inside a ``with`` block.

    A panic in Rust prints a report before it becomes a Python exception, and tokenizers prints about entries of files
    that it does not know.

    Examples
    --------
    >>> from keywise.models.output_streams import discard_output
    >>> with discard_output():
    ...     pass
    """
    with _lock, ExitStack() as stack:
        null_device = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, null_device)
        for stream in _STREAMS:
            with suppress(OSError):  # the process may have no such stream
                saved = os.dup(stream)
                stack.callback(os.close, saved)
                os.dup2(null_device, stream)
                stack.callback(os.dup2, saved, stream)
        yield
