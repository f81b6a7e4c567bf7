"""The cache folder: the argument first, then the environment variable, then the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from keywise.util.paths import locate_cache_folder


def test_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYWISE_CACHE_DIR", "/from/environment")
    assert locate_cache_folder("/from/argument") == Path("/from/argument")
    assert locate_cache_folder() == Path("/from/environment")
    assert locate_cache_folder("") == Path("/from/environment")


def test_default_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KEYWISE_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = locate_cache_folder()
    assert folder.name == "keywise"
    assert not (tmp_path / "keywise").exists(), "the folder was created"


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert locate_cache_folder("~/caches") == Path("/home/somebody/caches")
