"""What is installed here, where keywise keeps things, and transformers without its notices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from keywise.errors import ModelError

Status = Callable[[str], None]
"""Takes a line of text before every slow step."""


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Tell where keywise keeps things: the argument, else ``KEYWISE_CACHE_DIR``, else the user's cache.

    Examples
    --------
    >>> from keywise.hf.installed import cache_folder
    >>> cache_folder("cache").name
    'cache'
    """
    if chosen := cache_dir or os.environ.get("KEYWISE_CACHE_DIR"):
        return Path(chosen).expanduser()
    needs("app", "platformdirs")
    import platformdirs  # noqa: PLC0415 - only here

    return Path(platformdirs.user_cache_dir("keywise"))


def needs(extra: str, *modules: str) -> None:
    """Check that the modules of an optional part of keywise are installed.

    Raises
    ------
    ModelError
        Naming what is missing and the command that installs it.

    Examples
    --------
    >>> from keywise.hf.installed import needs
    >>> needs("hf", "json")
    """
    if missing := [module for module in modules if find_spec(module) is None]:
        raise ModelError(f'this needs {", ".join(missing)}; install with `pip install "keywise[{extra}]"`')


def package_folders(package: str) -> list[Path]:
    """Give the folders of an installed package without running it: its dependencies are not needed for its files.

    Examples
    --------
    >>> from keywise.hf.installed import package_folders
    >>> package_folders("no_such_package")
    []
    """
    spec = find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the notices and bars of transformers off the terminal, and put its settings back afterwards."""
    from transformers.utils import logging  # noqa: PLC0415 - heavy

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
