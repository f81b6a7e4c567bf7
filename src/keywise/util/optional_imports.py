"""Packages that only some parts of keywise need."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from keywise.errors import ModelError


def require_modules(extra: str, *modules: str) -> None:
    """Raise unless the modules of an optional part of keywise are installed.

    The modules are located and not imported.

    Parameters
    ----------
    extra : str
        The part, as in ``pip install "keywise[extra]"``.
    *modules : str
        Names of the modules.

    Raises
    ------
    ModelError
        A module is missing; the message has the command that installs it.

    Examples
    --------
    >>> from keywise.util.optional_imports import require_modules
    >>> require_modules("hf", "json")
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ModelError(", ".join(missing), "must be installed", remedy=f'use `pip install "keywise[{extra}]"`')


def find_package_folders(package: str) -> list[Path]:
    """Return the folders of an installed package without importing it.

    Parameters
    ----------
    package : str
        Name of the package; its own dependencies need not be installed.

    Returns
    -------
    list of Path
        Empty if the package is not installed.

    Examples
    --------
    >>> from keywise.util.optional_imports import find_package_folders
    >>> find_package_folders("no_such_package")
    []
    """
    spec = find_spec(package)
    if spec is None:
        return []
    return [Path(folder) for folder in spec.submodule_search_locations or ()]
