"""The folder in which keywise keeps its files."""

from __future__ import annotations

import os
from pathlib import Path

from keywise.util.optional_imports import require_modules


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder in which keywise keeps files between runs.

    The argument comes first, then the environment variable ``KEYWISE_CACHE_DIR``, then the user's cache folder.

    Parameters
    ----------
    cache_dir
        A folder; ``~`` is expanded.

    Raises
    ------
    ModelError
        The user's cache folder is needed and platformdirs is not installed.

    Examples
    --------
    >>> from keywise.util.paths import cache_folder
    >>> cache_folder("cache").name
    'cache'
    """
    if chosen := cache_dir or os.environ.get("KEYWISE_CACHE_DIR"):
        return Path(chosen).expanduser()
    require_modules("app", "platformdirs")
    import platformdirs  # noqa: PLC0415 - only here

    return Path(platformdirs.user_cache_dir("keywise"))
