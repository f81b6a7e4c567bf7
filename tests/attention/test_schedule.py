"""The C++ test of the schedule, compiled here because the native module does not expose its schedules."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"
SOURCES = ("tests/schedule_test.cpp", "schedule.cpp", "workspace.cpp")


def test_schedules_cover_every_query_and_key_for_any_number_of_threads(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "schedule_test"
    command = [compiler, "-std=c++17", "-O0", "-Wall", "-Wextra", "-o", program, *(NATIVE / name for name in SOURCES)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
