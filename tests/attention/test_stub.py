"""The type stub of the native module is generated, never edited: a fresh one must be the same."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import keywise.attention

STUB = Path(keywise.attention.__file__).parent / "_native.pyi"


@pytest.mark.skipif(int(version("nanobind").split(".")[0]) < 3, reason="older versions of nanobind write other stubs")
def test_stub_equals_a_newly_generated_one(tmp_path: Path) -> None:
    fresh = tmp_path / "_native.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "keywise.attention._native", "-o", str(fresh)]
    subprocess.run(command, check=True)
    assert STUB.read_text(encoding="utf-8") == fresh.read_text(encoding="utf-8"), "run `make stubs`"
