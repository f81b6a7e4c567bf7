"""The bits of a result depend on the arguments alone, under every combination of conditions."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this operating system cannot fork")
def test_bits_do_not_depend_on_denormal_mode_threads_affinity_load_process_or_thread_of_the_call() -> None:
    command = [sys.executable, "-m", "tests.support.same_bits"]
    environment = {**os.environ, "KEYWISE_THREADS": "", "OMP_NUM_THREADS": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    groups = json.loads(done.stdout)
    assert len(groups) == 1, (
        f"bits by (flushes denormals, threads, on one CPU, under load, place of the call): {groups}"
    )
    assert len(groups[0]) == 48
