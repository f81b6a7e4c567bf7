"""The type stub of the native module is generated, never edited: a fresh one must be the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keywise.attention

STUB = Path(keywise.attention.__file__).parent / "_native.pyi"


def test_stub_equals_a_newly_generated_one(tmp_path: Path) -> None:
    fresh = tmp_path / "_native.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "keywise.attention._native", "-o", str(fresh)]
    subprocess.run(command, check=True)
    assert STUB.read_text(encoding="utf-8") == fresh.read_text(encoding="utf-8"), "run `make stubs`"
