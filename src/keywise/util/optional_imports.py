"""Packages that only some parts of keywise need."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from keywise.errors import ModelError


def require_modules(extra: str, *modules: str) -> None:
    """Raise an error unless modules of an optional part of keywise are installed.

    Parameters
    ----------
    extra
        The part, as in ``pip install "keywise[extra]"``.
    *modules
        Names of the modules; they are found, not imported.

    Raises
    ------
    ModelError
        A module is missing; the message has the command that installs it.

    Examples
    --------
    >>> from keywise.util.optional_imports import require_modules
    >>> require_modules("hf", "json")
    """
    if missing := [module for module in modules if find_spec(module) is None]:
        raise ModelError(f'this needs {", ".join(missing)}; install with `pip install "keywise[{extra}]"`')


def package_folders(package: str) -> list[Path]:
    """Return the folders of an installed package without importing it.

    Parameters
    ----------
    package
        Name of the package; its own dependencies need not be installed.

    Examples
    --------
    >>> from keywise.util.optional_imports import package_folders
    >>> package_folders("no_such_package")
    []
    """
    spec = find_spec(package)
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
