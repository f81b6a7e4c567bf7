"""Optional packages are located without an import, and a missing one is named with the command that installs it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from keywise.errors import ModelError
from keywise.util.optional_imports import find_package_folders, require_modules


def test_installed_modules_pass_without_an_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "explosive.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    require_modules("hf", "json", "explosive")
    assert "explosive" not in sys.modules


def test_missing_modules_are_named_with_the_command() -> None:
    message = r'^no_such_a, no_such_b must be installed; use `pip install "keywise\[hf\]"`$'
    with pytest.raises(ModelError, match=message):
        require_modules("hf", "no_such_a", "json", "no_such_b")


def test_folders_of_a_package_are_found_without_an_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "explosive").mkdir()
    (tmp_path / "explosive" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_package_folders("explosive") == [tmp_path / "explosive"]


@pytest.mark.parametrize("name", ["no_such_package", "this"])
def test_missing_packages_and_plain_modules_have_no_folders(name: str) -> None:
    assert find_package_folders(name) == []
