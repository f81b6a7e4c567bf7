"""Two builds of keywise: the same cases in turns, with their results compared."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import GROUPS, Case
from benchmarks.choices import check_choices
from benchmarks.compare_worker import MAX_WARMED_SECONDS, serve
from benchmarks.processes import ENVIRONMENT, set_environment
from benchmarks.timing import CLOCK_DECIMALS, PAUSE_SECONDS, TOLERANCE
from keywise.errors import KeywiseError, OptionError
from keywise.util.machine import list_available_cpus

OPERATIONS = ("attend", "attention_stats")
BUILDS = ("before", "after")
SLOW_GROUPS = ("lengths", "sweep")
"""Groups that are compared only if they are named."""

RESAMPLES = 2000
DELAY_LIMIT = 3.0
"""A sample ends early if its calls take this many times longer than expected."""


@dataclass(frozen=True)
class ComparedCase:
    """A case, the library of its arrays (torch or numpy), and the operation."""

    case: Case
    library: str
    operation: str
    group: str

    @property
    def name(self) -> str:
        """Name of the case in tables."""
        return f"{self.operation}, {self.library}, {self.case.name}"


def plan_cases(groups: Sequence[str], only: str = "") -> list[ComparedCase]:
    """List the cases to compare, each with both operations.

    Parameters
    ----------
    groups
        Names of groups; empty for all but `SLOW_GROUPS`.
    only
        Text that the names of the cases must contain.

    Raises
    ------
    OptionError
        A name is unknown, or no case is left.

    Examples
    --------
    >>> from benchmarks.compare import plan_cases
    >>> len(plan_cases(["small"]))
    6
    """
    check_choices("groups", groups, GROUPS)
    cases: dict[tuple[Case, str, str], ComparedCase] = {}
    for group in groups or [name for name in GROUPS if name not in SLOW_GROUPS]:
        for case in GROUPS[group].cases:
            # The cost of a call differs between libraries of arrays; that of long calls does not.
            libraries = ("torch", "numpy") if group == "small" and case.dtype == "float32" else ("torch",)
            for library in libraries:
                for operation in OPERATIONS:
                    # Some groups share cases.
                    compared = ComparedCase(case, library, operation, group)
                    if only in compared.name:
                        cases.setdefault((case, library, operation), compared)
    if not cases:
        raise OptionError("only", "must be part of the name of a case", got=only)
    return list(cases.values())


def check_folders(before: Path, after: Path) -> None:
    """Raise an error unless both folders hold a package `keywise`.

    Raises
    ------
    OptionError
        A folder holds none.
    """
    for name, folder in zip(BUILDS, (before, after), strict=True):
        if not (folder / "keywise" / "__init__.py").is_file():
            raise OptionError(name, "must be a folder that holds a `keywise` package", got=str(folder))


class Build:
    """A process that runs one build of keywise.

    Parameters
    ----------
    name
        ``"before"`` or ``"after"``.
    folder
        The folder that holds the build's `keywise` package.
    threads
        Number of threads, and of CPUs that the process may use.
    """

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._connection, other_end = context.Pipe()
        arguments = (other_end, folder.resolve(), threads, list_available_cpus()[:threads])
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        with set_environment(ENVIRONMENT):
            self._process.start()
        other_end.close()
        self._receive()

    def request(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Run a method of the process's `Worker`, and return its result."""
        self._connection.send((name, arguments, options))
        return self._receive()

    def _receive(self) -> Any:
        try:
            succeeded, result = self._connection.recv()
        except EOFError:
            succeeded, result = False, "its process ended"
        if not succeeded:
            raise KeywiseError(self._name, f"must be a build that can run the case: {result}")
        return result

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


def run_comparison(
    cases: Sequence[ComparedCase], before: Path, after: Path, *, threads: int, rounds: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Compare two builds on cases, one case after the other.

    Parameters
    ----------
    cases
        Cases from `plan_cases`.
    before, after
        Folders that hold a built `keywise` package.
    threads
        Number of threads.
    rounds
        Rounds per case; each has a sample of both builds, and the order alternates.
    seconds
        Time for the rounds of one case; a sample has one call at least.

    Yields
    ------
    dict
        The result of each case.

    Raises
    ------
    KeywiseError
        A build cannot be imported, or cannot run a case.
    """
    check_folders(before, after)
    builds: dict[str, Build] = {}
    try:
        for name, folder in zip(BUILDS, (before, after), strict=True):
            builds[name] = Build(name, folder, threads)
        for case in cases:
            yield {"threads": threads, **_compare_case(case, builds, rounds, seconds)}
    finally:
        for build in builds.values():
            build.stop()


def _compare_case(case: ComparedCase, builds: dict[str, Build], rounds: int, seconds: float) -> dict[str, Any]:
    digests, single_seconds = {}, []
    for name, build in builds.items():
        digests[name], duration = build.request("prepare", case.case, case.library, case.operation)
        single_seconds.append(duration)
    same_bits = digests["before"] == digests["after"]
    difference = 0.0
    if not same_bits:
        before, after = (builds[name].request("compute_results") for name in BUILDS)
        difference = compute_difference(before, after)
    duration = max(single_seconds)
    warm = duration < MAX_WARMED_SECONDS
    calls = max(1, int(seconds / (2 * rounds * duration)))
    samples: dict[str, list[float]] = {name: [] for name in BUILDS}
    for number in range(rounds):
        for name in BUILDS if number % 2 == 0 else reversed(BUILDS):
            # The other build's threads may spin for a while after its call.
            time.sleep(PAUSE_SECONDS)
            sample = builds[name].request("time", calls, warm=warm, max_seconds=DELAY_LIMIT * calls * duration)
            samples[name].append(round(sample, CLOCK_DECIMALS))
    return {
        "name": case.name,
        "group": case.group,
        "calls_per_sample": calls,
        "seconds_per_call": samples,
        "ratio": statistics.median(samples["after"]) / statistics.median(samples["before"]),
        "ratio_interval": compute_interval(samples["before"], samples["after"]),
        "same_bits": same_bits,
        "largest_difference": difference,
        "agrees": difference <= TOLERANCE[case.case.dtype],
    }


def compute_difference(before: dict[str, NDArray[Any]], after: dict[str, NDArray[Any]]) -> float:
    """Return the largest difference between results, relative to the largest number of the same array.

    For integers, such as the heaviest keys, it is the share of different entries. Results that one of the builds
    does not return are left out.
    """
    differences = [0.0]
    for name in before.keys() & after.keys():
        expected, actual = before[name], after[name]
        if expected.shape != actual.shape:
            return math.inf
        unequal = ~((expected == actual) | ((expected != expected) & (actual != actual)))  # noqa: PLR0124 - NaN
        if expected.dtype.kind != "f":
            differences.append(float(unequal.mean()))
        elif unequal.any():
            largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
            with np.errstate(invalid="ignore"):  # inf - inf
                difference = np.abs(expected - actual)[unequal].max() / (largest or 1.0)
            differences.append(math.inf if np.isnan(difference) else float(difference))
    return max(differences)


def compute_interval(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Return the 95 % interval of the ratio of medians, from a bootstrap over rounds.

    Examples
    --------
    >>> from benchmarks.compare import compute_interval
    >>> compute_interval([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    [2.0, 2.0]
    """
    rounds = np.random.default_rng(0).integers(0, len(before), (RESAMPLES, len(before)))
    ratios = np.median(np.array(after)[rounds], axis=1) / np.median(np.array(before)[rounds], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return [float(low), float(high)]
