"""The folders of the files that keywise stores between runs."""

from __future__ import annotations

import os
from pathlib import Path

from keywise.util.optional_imports import require_modules


def locate_cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the files that keywise stores between runs.

    The folder is not created.

    Parameters
    ----------
    cache_dir : path, optional
        A folder; ``~`` is expanded. Default: the environment variable ``KEYWISE_CACHE_DIR``, else keywise's folder in
        the user's cache.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ModelError
        The user's cache folder is needed and platformdirs is not installed.

    Examples
    --------
    >>> from keywise.util.paths import locate_cache_folder
    >>> locate_cache_folder("cache").name
    'cache'
    """
    configured = cache_dir or os.environ.get("KEYWISE_CACHE_DIR")
    if configured:
        return Path(configured).expanduser()
    require_modules("app", "platformdirs")
    import platformdirs  # noqa: PLC0415 - optional

    return Path(platformdirs.user_cache_dir("keywise"))


def locate_data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of what users give keywise to keep.

    The folder is not created.

    Parameters
    ----------
    data_dir : path, optional
        A folder; ``~`` is expanded. Default: the environment variable ``KEYWISE_DATA_DIR``, else keywise's folder in
        the user's data.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ModelError
        The user's data folder is needed and platformdirs is not installed.

    Examples
    --------
    >>> from keywise.util.paths import locate_data_folder
    >>> locate_data_folder("data").name
    'data'
    """
    configured = data_dir or os.environ.get("KEYWISE_DATA_DIR")
    if configured:
        return Path(configured).expanduser()
    require_modules("app", "platformdirs")
    import platformdirs  # noqa: PLC0415 - optional

    return Path(platformdirs.user_data_dir("keywise"))
