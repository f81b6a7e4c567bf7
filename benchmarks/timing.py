"""Timing: everyone's result is checked against the definition, then those who were right take turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.backends import Backend, Baseline, CannotError
from benchmarks.cases import Case
from benchmarks.inputs import definition, make_inputs
from keywise.errors import FormatError

TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2, "float16": 4e-3}
"""Largest error accepted, relative to the largest output of the definition."""

SHORTEST_SAMPLE_SECONDS = 0.01
LONGEST_WARMED_SECONDS = 0.1
WARM_CALLS = 5
PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.5
BUSY_PART = 0.1
DECIMALS = 9  # of a second: the clock tells no more


@dataclass(frozen=True)
class Effort:
    """How long a case may take.

    Attributes
    ----------
    seconds
        Time for the rounds of one case.
    rounds
        Most rounds.
    fewest
        Rounds that are run whatever they take.
    """

    seconds: float
    rounds: int = 15
    fewest: int = 5

    def rounds_for(self, seconds: float) -> int:
        """Give the number of rounds when one takes this long."""
        return max(self.fewest, min(self.rounds, int(self.seconds / seconds)))


@dataclass
class Timed:
    """What came out of one case.

    Attributes
    ----------
    case
        The case.
    group
        The group that it was run for.
    threads
        Threads of everyone.
    target
        keywise's target.
    calls
        Calls per sample, of everyone.
    samples
        Per rival that was timed, the seconds of one call in each round.
    errors
        Per rival, its largest error against the definition, relative to the definition's largest output.
    excluded
        Per rival that was not timed, why.
    """

    case: Case
    group: str
    threads: int
    target: str
    calls: int = 1
    samples: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Give the findings as plain values, the case's name among them."""
        return {"name": self.case.name, **asdict(self)}

    @classmethod
    def from_plain(cls, found: dict[str, Any]) -> Timed:
        """Make the findings from what `plain` gave.

        Raises
        ------
        FormatError
            If something is missing or unknown.
        """
        try:
            fields = {name: value for name, value in found.items() if name != "name"}
            return cls(**{**fields, "case": Case(**fields["case"])})
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"a result of the file is damaged: {error!r}; measure again") from error

    def seconds(self, name: str) -> float:
        """Give the median of a rival's samples, in seconds per call."""
        return statistics.median(self.samples[name])

    def spread(self, name: str) -> float:
        """Give the distance between the quartiles of a rival's samples, relative to their median."""
        lower, upper = np.quantile(self.samples[name], [0.25, 0.75])
        return float(upper - lower) / self.seconds(name)


def measure(timed: Timed, rivals: Mapping[str, Baseline], effort: Effort) -> None:
    """Check and time one case; `timed` takes the findings."""
    if ways := _right_ones(timed, rivals):
        timed.calls, timed.samples = take_turns(ways, effort)


def _right_ones(timed: Timed, rivals: Mapping[str, Baseline]) -> dict[str, Backend]:
    """Get everyone ready, and keep those whose last rows are those of the definition."""
    inputs = make_inputs(timed.case)
    truth = definition(inputs)
    largest = np.abs(truth).max()
    ways: dict[str, Backend] = {}
    for name, rival in rivals.items():
        if missing := rival.missing():
            timed.excluded[name] = f"not installed: {', '.join(missing)}"
            continue
        try:
            way = rival.prepare(inputs, timed.threads)
        except CannotError as error:
            timed.excluded[name] = str(error)
            continue
        output = way.output(way.call())[:, :, -truth.shape[2] :].astype(np.float64)
        off = timed.errors[name] = float(np.abs(output - truth).max() / largest)
        if off <= TOLERANCE[timed.case.dtype]:
            ways[name] = way
        else:
            timed.excluded[name] = f"wrong: off by {off:.2g} of the largest output"
    return ways


def take_turns(ways: Mapping[str, Backend], effort: Effort) -> tuple[int, dict[str, list[float]]]:
    """Time everyone in turns, one sample of each per round: calls per sample, and everyone's seconds per call."""
    once = {}
    for name, way in ways.items():
        way.reset()
        once[name] = _seconds_once(way)
    fastest = min(once.values())
    calls = max(1, math.ceil(SHORTEST_SAMPLE_SECONDS / fastest))
    # One call warms the caches and wakes the threads, wherever calls are short enough to feel it.
    warm = fastest < LONGEST_WARMED_SECONDS
    rounds = effort.rounds_for(sum(once.values()) * (calls + warm))
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            _wait_until_quiet()
            way.reset()
            if warm:
                way.call()
            samples[name].append(round(_seconds_per_call(way, calls), DECIMALS))
    return calls, samples


def _seconds_once(way: Backend) -> float:
    """Time single calls: the first one wakes threads and fills caches, and short ones take many times less after it."""
    seconds = _seconds_per_call(way, 1)
    return seconds if seconds > LONGEST_WARMED_SECONDS else min(_seconds_per_call(way, 1) for _ in range(WARM_CALLS))


def _wait_until_quiet() -> None:
    """Wait until the threads of whoever came before sleep; some go on freeing memory long after their call."""
    end = time.perf_counter() + LONGEST_PAUSE_SECONDS
    busy = True
    while busy and time.perf_counter() < end:
        before = time.process_time()
        time.sleep(PAUSE_SECONDS)
        busy = time.process_time() - before > BUSY_PART * PAUSE_SECONDS


def _seconds_per_call(way: Backend, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        way.call()
    return (time.perf_counter() - start) / calls
