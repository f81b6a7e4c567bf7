"""Suppression of the notices and progress bars of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the notices and progress bars of transformers inside a ``with`` block.

    Its settings are restored afterwards.

    Examples
    --------
    >>> from keywise.models.quiet_transformers import quiet_transformers
    >>> with quiet_transformers():
    ...     pass
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    has_progress_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_progress_bars:
            logging.enable_progress_bar()
