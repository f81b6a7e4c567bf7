"""The choice of targets."""

import os
import subprocess
import sys

import pytest

import keywise as kw


def list_targets(disabled: str) -> str:
    """Return what a new process reports with some targets disabled."""
    code = "import keywise as kw; print(kw.targets()); print(kw.explain())"
    environment = {**os.environ, "KEYWISE_DISABLE_TARGETS": disabled, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return result.stdout


@pytest.mark.parametrize("name", [name for name in kw.targets() if name != "reference"])
def test_disabled_target_is_not_offered_and_says_why(name: str) -> None:
    report = list_targets(f"none_of_that_name,{name}" if name == "portable" else name)
    assert f"'{name}'" not in report.splitlines()[0]
    (reason,) = [line for line in report.splitlines()[1:] if line.split()[0] == name]
    assert "KEYWISE_DISABLE_TARGETS" in reason


def test_empty_list_disables_nothing() -> None:
    assert str(kw.targets()) == list_targets("").splitlines()[0]
