"""Settings of all tests: no network, and fixtures that run a test on each usable target."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest

import keywise as kw


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Pass over files without serial tests where only those run: importing all files takes long."""
    if config.option.markexpr != "serial" or not collection_path.is_file():
        return None
    return True if "mark.serial" not in collection_path.read_text(encoding="utf-8") else None


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Last, so that the target varies fastest and the definition is evaluated once per case.
    if "target" in metafunc.fixturenames:
        metafunc.parametrize("target", kw.targets(), indirect=True)
    if "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", [name for name in kw.targets() if name != "reference"], indirect=True)


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on this target."""
    with kw.using(request.param):
        yield request.param


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on this target, one of those that are not the definition itself."""
    with kw.using(request.param):
        yield request.param


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Run torch on one thread.

    Small models lose time to torch's threads, which spin where tests share their CPUs.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep documents in a folder of the test's own, beside the user's converted models."""
    from keywise.util.paths import locate_cache_folder

    folder = tmp_path_factory.mktemp("cache")
    models = locate_cache_folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(models)
    monkeypatch.setenv("KEYWISE_CACHE_DIR", str(folder))
    return folder


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name arguments of bytes by their length: archives have the time of day in them, and workers must agree."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None
