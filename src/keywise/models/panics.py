"""Suppression of the reports that panics in Rust print."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_stderr_lock = threading.Lock()


@contextmanager
def discard_panic_messages() -> Iterator[None]:
    """Discard what is written to the standard error inside a ``with`` block.

    A panic in Rust prints a report before it becomes a Python exception.

    Examples
    --------
    >>> from keywise.models.panics import discard_panic_messages
    >>> with discard_panic_messages():
    ...     pass
    """
    with _stderr_lock:
        try:
            saved = os.dup(_STDERR)
        except OSError:  # the process has no standard error
            yield
            return
        try:
            null_device = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null_device, _STDERR)
            os.close(null_device)
            yield
        finally:
            os.dup2(saved, _STDERR)
            os.close(saved)
