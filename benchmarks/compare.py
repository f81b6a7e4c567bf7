"""Two builds of keywise: the same cases in turns, with their results compared."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import GROUPS, Case
from benchmarks.choices import check_choices
from benchmarks.compare_worker import MAX_WARMED_SECONDS, serve
from benchmarks.processes import ENVIRONMENT, set_environment
from benchmarks.timing import CLOCK_DECIMALS, PAUSE_SECONDS, TOLERANCE
from keywise.errors import KeywiseError, OptionError
from keywise.util.machine import list_available_cpus

T = TypeVar("T")

OPERATIONS = ("attend", "attention_stats")
BUILDS = ("before", "after")
SLOW_GROUPS = ("lengths", "sweep")
"""Groups that are compared only if they are named."""

DEFAULT_PAIRS = 5
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
    cases: Sequence[ComparedCase],
    before: Path,
    after: Path,
    *,
    threads: int,
    rounds: int,
    seconds: float,
    pairs: int = DEFAULT_PAIRS,
) -> Iterator[dict[str, Any]]:
    """Compare two builds on cases, in several pairs of processes.

    Where a process puts its memory changes the time of a short call by several percent, so a build compared with
    itself in one pair of processes can seem slower.

    Parameters
    ----------
    cases
        Cases from `plan_cases`.
    before, after
        Folders that hold a built `keywise` package.
    threads
        Number of threads.
    rounds
        Rounds per case and pair; each has a sample of both builds, and the order alternates.
    seconds
        Time for the rounds of one case and pair; a sample has one call at least.
    pairs
        Pairs of processes, one after the other; each runs every case.

    Yields
    ------
    dict
        The result of a case with the samples so far; each case comes once per pair.

    Raises
    ------
    KeywiseError
        A build cannot be imported, or cannot run a case.
    """
    check_folders(before, after)
    samples = {case: Samples() for case in cases}
    for number in range(pairs):
        builds: dict[str, Build] = {}
        try:
            # The build that starts first may get the better place in memory.
            for name, folder in order_builds({"before": before, "after": after}, number):
                builds[name] = Build(name, folder, threads)
            for case in cases:
                samples[case].add_pair(case, builds, rounds, seconds)
                yield {"threads": threads, **samples[case].summarize(case)}
        finally:
            for build in builds.values():
                build.stop()


def order_builds(builds: Mapping[str, T], number: int) -> list[tuple[str, T]]:
    """Return builds in order, or in the other order if the number is odd."""
    items = list(builds.items())
    return items if number % 2 == 0 else items[::-1]


class Samples:
    """The samples of one case.

    Attributes
    ----------
    seconds_per_call
        Per build, pair of processes and round, the mean seconds of a call.
    """

    def __init__(self) -> None:
        self.seconds_per_call: dict[str, list[list[float]]] = {name: [] for name in BUILDS}
        self._calls: list[int] = []
        self._same_bits = True
        self._difference = 0.0

    def add_pair(self, case: ComparedCase, builds: Mapping[str, Build], rounds: int, seconds: float) -> None:
        """Compare the results of a pair of processes, and time both in turns."""
        digests, single_seconds = {}, []
        for name, build in builds.items():
            digests[name], duration = build.request("prepare", case.case, case.library, case.operation)
            single_seconds.append(duration)
        if digests["before"] != digests["after"]:
            self._same_bits = False
            before, after = (builds[name].request("compute_results") for name in BUILDS)
            self._difference = max(self._difference, compute_difference(before, after))
        duration = max(single_seconds)
        warm = duration < MAX_WARMED_SECONDS
        calls = max(1, int(seconds / (2 * rounds * duration)))
        samples: dict[str, list[float]] = {name: [] for name in BUILDS}
        for number in range(rounds):
            for name, build in order_builds(builds, number):
                # The other build's threads may spin for a while after its call.
                time.sleep(PAUSE_SECONDS)
                sample = build.request("time", calls, warm=warm, max_seconds=DELAY_LIMIT * calls * duration)
                samples[name].append(round(sample, CLOCK_DECIMALS))
        for name in BUILDS:
            self.seconds_per_call[name].append(samples[name])
        self._calls.append(calls)

    def summarize(self, case: ComparedCase) -> dict[str, Any]:
        """Return the result of the case in plain values."""
        before, after = (self.seconds_per_call[name] for name in BUILDS)
        return {
            "name": case.name,
            "group": case.group,
            "calls_per_sample": self._calls,
            "seconds_per_call": self.seconds_per_call,
            "ratio": compute_median(after) / compute_median(before),
            "ratio_interval": compute_interval(before, after),
            "same_bits": self._same_bits,
            "largest_difference": self._difference,
            "agrees": self._difference <= TOLERANCE[case.case.dtype],
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


def compute_median(seconds_per_call: Sequence[Sequence[float]]) -> float:
    """Return the median over processes of the medians over their rounds.

    Examples
    --------
    >>> from benchmarks.compare import compute_median
    >>> compute_median([[1.0, 2.0, 9.0], [4.0, 4.0, 4.0]])
    3.0
    """
    return statistics.median(statistics.median(samples) for samples in seconds_per_call)


def compute_interval(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> list[float]:
    """Return the 95 % interval of the ratio of medians, from a bootstrap over processes and their rounds.

    Parameters
    ----------
    before, after
        Per process and round, the mean seconds of a call.

    Examples
    --------
    >>> from benchmarks.compare import compute_interval
    >>> compute_interval([[1.0, 1.0, 1.0]], [[2.0, 2.0, 2.0]])
    [2.0, 2.0]
    """
    random = np.random.default_rng(0)
    ratios = _resample_medians(after, random) / _resample_medians(before, random)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return [float(low), float(high)]


def _resample_medians(seconds_per_call: Sequence[Sequence[float]], random: np.random.Generator) -> NDArray[Any]:
    samples = np.array(seconds_per_call)
    processes, rounds = samples.shape
    chosen_processes = random.integers(0, processes, (RESAMPLES, processes, 1))
    chosen_rounds = random.integers(0, rounds, (RESAMPLES, processes, rounds))
    medians: NDArray[Any] = np.median(np.median(samples[chosen_processes, chosen_rounds], axis=2), axis=1)
    return medians
