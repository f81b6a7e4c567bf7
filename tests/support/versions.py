"""The tests of the plug-in under several versions of transformers, and with the lowest versions of all dependencies.

`python -m tests.support.versions 5.5.0 newest` prints a table of versions and tests, and exits with 1 if any failed.
`newest` stands for the newest version of the package index, and `lowest` for the lowest version of every dependency
that pyproject.toml declares. torch keeps its version, because other builds for CPUs are not in every index.

Each environment in build/versions is made once. It has the packages of a version only, and all others are those of the
running Python.
"""

# ruff: noqa: T201  (a program)

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "versions"
PLUGIN = ("tests/hf", "tests/models")
EVERYTHING = ("tests",)
QUESTION, DOCUMENT, ANSWER = "Where is the old lens now?", "examples/lighthouse.md", "museum"
OUTCOMES = ("passed", "failed", "skipped")
PYTEST_OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "xdist.plugin", "-p", "_hypothesis_pytestplugin")
NO_TESTS = 5  # exit status of pytest


class Environment:
    """A virtual environment over the packages of the running Python, with some of them in other versions."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = FOLDER / name
        self.python = self.folder / "bin" / "python"

    def install(self) -> None:
        """Create the environment, unless it is complete; bring one of the newest version up to date."""
        complete = self.folder / "complete"
        if not complete.exists():
            venv.create(self.folder, clear=True, symlinks=True)
            packages = Path(sysconfig.get_path("purelib", vars={"base": str(self.folder)}))
            running = sysconfig.get_path("purelib")
            (packages / "running_python.pth").write_text(f"import site; site.addsitedir({running!r})\n")
        if self.name == "newest" or not complete.exists():
            constraints = self.folder / "constraints.txt"
            constraints.write_text(f"torch=={version('torch')}\n")
            self._pip("--upgrade", "-c", str(constraints), *self._list_requirements())
        complete.touch()

    def _pip(self, *arguments: str) -> None:
        options = ["--quiet", "--no-compile", "--disable-pip-version-check"]
        subprocess.run([self.python, "-m", "pip", "install", *options, *arguments], check=True, cwd=ROOT)

    def _list_requirements(self) -> list[str]:
        if self.name == "lowest":
            return ["-r", str(self._write_lowest())]
        return ["transformers" if self.name == "newest" else f"transformers=={self.name}"]

    def _write_lowest(self) -> Path:
        """Write the lowest version of every direct dependency but torch to a file of requirements."""
        self._pip("uv")
        without_torch = self.folder / "without_torch.txt"
        without_torch.write_text("torch; sys_platform == 'none'\n")
        lowest = self.folder / "lowest.txt"
        options = ["--resolution", "lowest-direct", "--override", without_torch, "--quiet", "--output-file", lowest]
        command = [self.python, "-m", "uv", "pip", "compile", "pyproject.toml", "--all-extras", *options]
        subprocess.run(command, check=True, cwd=ROOT)
        return lowest

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Run Python in the environment; return its exit status and output."""
        done = subprocess.run(
            [self.python, *arguments],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", **variables},
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return done.returncode, done.stdout


def run_tests(environment: Environment, tests: tuple[str, ...], scratch: Path) -> tuple[dict[str, Counter[str]], str]:
    """Run tests, those that measure time alone after the others; return the number of outcomes by file and the log."""
    counts: dict[str, Counter[str]] = {}
    log = ""
    for name, options in {"not serial": ["-n", "auto", "--dist", "loadfile"], "serial": []}.items():
        report = scratch / f"{name}.xml"
        command = ["-m", "pytest", *tests, *PYTEST_OPTIONS, "-m", name, f"--junitxml={report}", *options]
        # The plug-ins of two versions of a package would both be loaded.
        status, output = environment.run(*command, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
        log += output
        if report.exists():
            add_outcomes(report, counts)
        if status not in {0, 1, NO_TESTS}:  # interrupted, or not every file was read
            counts[f"pytest {name}"] = Counter(failed=1)
    return counts, log


def add_outcomes(report: Path, files: dict[str, Counter[str]]) -> None:
    """Add the number of tests by file and outcome, from a report of pytest in the format of JUnit."""
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("classname", "").removeprefix("tests.").replace(".test_", "/")
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        files.setdefault(file, Counter())[outcome] += 1


def test_under(name: str) -> dict[str, Counter[str]]:
    """Run the tests and a question under a version; return the number of outcomes by file."""
    environment = Environment(name)
    log = FOLDER / f"{name}.log"
    started = time.monotonic()
    try:
        environment.install()
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"{name}: cannot be installed: {error}", flush=True)
        return {"install": Counter(failed=1)}
    installed = environment.run("-c", "import transformers; print(transformers.__version__)")[1].strip()
    with tempfile.TemporaryDirectory() as scratch:
        counts, output = run_tests(environment, EVERYTHING if name == "lowest" else PLUGIN, Path(scratch))
        asked, answer = environment.run("-m", "keywise", "ask", QUESTION, DOCUMENT, KEYWISE_CACHE_DIR=scratch)
    counts["ask"] = Counter(["passed" if asked == 0 and ANSWER in answer else "failed"])
    log.write_text(f"{output}\n$ keywise ask\n{answer}")
    print(f"{name}: transformers {installed}, {time.monotonic() - started:.0f} s, log in {log}", flush=True)
    print(*(line for line in output.splitlines() if line.startswith(("FAILED", "ERROR", "SKIPPED"))), sep="\n")
    if counts["ask"]["failed"]:
        print(answer)
    return counts


def describe(outcomes: Counter[str]) -> str:
    """Return the outcomes of a file as a cell of the table."""
    return ", ".join(f"{outcomes[name]} {name}" for name in OUTCOMES if outcomes[name]) or "-"


def make_table(results: dict[str, dict[str, Counter[str]]]) -> str:
    """Return the table of versions and tests."""
    files = list(dict.fromkeys(file for counts in results.values() for file in counts))
    rows = [["", *results]]
    rows += [[file, *(describe(counts.get(file, Counter())) for counts in results.values())] for file in files]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> int:
    """Test the versions that the command line names; return the exit status."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = {name: test_under(name) for name in sys.argv[1:]}
    total = sum((outcomes for counts in results.values() for outcomes in counts.values()), Counter())
    print(f"\n{make_table(results)}\n\nversions: " + ", ".join(f"{total[name]} {name}" for name in OUTCOMES))
    return int(total["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
