"""Timing: results are checked against the definition, then backends are timed in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.backends import Backend, Baseline, UnsupportedCaseError
from benchmarks.cases import Case
from benchmarks.inputs import compute_reference, make_inputs

TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2, "float16": 4e-3}
"""Largest error accepted, relative to the largest output of the definition."""

MIN_SAMPLE_SECONDS = 0.01
MAX_WARMED_SECONDS = 0.1
WARM_CALLS = 5
PAUSE_SECONDS = 0.005
MAX_PAUSE_SECONDS = 0.5
BUSY_SHARE = 0.1
CLOCK_DECIMALS = 9
"""Digits of a second that the clock resolves."""


@dataclass(frozen=True)
class TimeBudget:
    """How long a case may be timed.

    Attributes
    ----------
    seconds
        Time for the rounds of one case.
    max_rounds
        Most rounds.
    min_rounds
        Rounds that are run however long they take.
    """

    seconds: float
    max_rounds: int = 15
    min_rounds: int = 5

    def count_rounds(self, round_seconds: float) -> int:
        """Return the number of rounds that fit, each of this duration."""
        return max(self.min_rounds, min(self.max_rounds, int(self.seconds / round_seconds)))


@dataclass
class Timing:
    """The result of one case.

    Attributes
    ----------
    case
        The case.
    group
        The name of its group.
    threads
        Number of threads of every backend.
    target
        keywise's target.
    calls_per_sample
        Calls per sample of every backend.
    seconds_per_call
        Per timed backend, the mean seconds of a call in each round.
    relative_errors
        Per backend, its largest error against the definition, relative to the definition's largest output.
    excluded
        Per backend that was not timed, the reason.
    """

    case: Case
    group: str
    threads: int
    target: str
    calls_per_sample: int = 1
    seconds_per_call: dict[str, list[float]] = field(default_factory=dict)
    relative_errors: dict[str, float] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, the case's name among them."""
        return {"name": self.case.name, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Timing:
        """Return the result that `to_dict` converted.

        Raises
        ------
        KeyError, TypeError
            A value is missing or unknown.
        """
        fields = {name: value for name, value in values.items() if name != "name"}
        return cls(**{**fields, "case": Case(**fields["case"])})

    def median_seconds(self, name: str) -> float:
        """Return the median of a backend's seconds per call."""
        return statistics.median(self.seconds_per_call[name])

    def relative_spread(self, name: str) -> float:
        """Return the interquartile range of a backend's samples, relative to their median."""
        lower, upper = np.quantile(self.seconds_per_call[name], [0.25, 0.75])
        return float(upper - lower) / self.median_seconds(name)


def measure_case(timing: Timing, baselines: Mapping[str, Baseline], budget: TimeBudget) -> None:
    """Check and time one case, and store the results in `timing`.

    Parameters
    ----------
    timing
        The case; its results are filled in.
    baselines
        The implementations by name.
    budget
        How long to time them.
    """
    if backends := _prepare_correct_backends(timing, baselines):
        timing.calls_per_sample, timing.seconds_per_call = time_interleaved(backends, budget)


def _prepare_correct_backends(timing: Timing, baselines: Mapping[str, Baseline]) -> dict[str, Backend]:
    """Prepare every backend, and return those whose last outputs agree with the definition."""
    inputs = make_inputs(timing.case)
    expected = compute_reference(inputs)
    largest = np.abs(expected).max()
    backends: dict[str, Backend] = {}
    for name, baseline in baselines.items():
        if missing := baseline.find_missing_modules():
            timing.excluded[name] = f"not installed: {', '.join(missing)}"
            continue
        try:
            backend = baseline.prepare(inputs, timing.threads)
        except UnsupportedCaseError as error:
            timing.excluded[name] = str(error)
            continue
        output = backend.get_output(backend.call())[:, :, -expected.shape[2] :].astype(np.float64)
        relative_error = float(np.abs(output - expected).max() / largest)
        timing.relative_errors[name] = relative_error
        if relative_error <= TOLERANCE[timing.case.dtype]:
            backends[name] = backend
        else:
            timing.excluded[name] = f"wrong: off by {relative_error:.2g} of the largest output"
    return backends


def time_interleaved(backends: Mapping[str, Backend], budget: TimeBudget) -> tuple[int, dict[str, list[float]]]:
    """Time backends in turns, one sample of each per round.

    Returns
    -------
    tuple
        The number of calls per sample, and each backend's seconds per call in every round.
    """
    single_seconds = {}
    for name, backend in backends.items():
        backend.reset()
        single_seconds[name] = _time_single_call(backend)
    fastest = min(single_seconds.values())
    calls = max(1, math.ceil(MIN_SAMPLE_SECONDS / fastest))
    # A call before the sample warms the caches and wakes the threads, where calls are short enough to depend on it.
    warm = fastest < MAX_WARMED_SECONDS
    rounds = budget.count_rounds(sum(single_seconds.values()) * (calls + warm))
    samples: dict[str, list[float]] = {name: [] for name in backends}
    for _ in range(rounds):
        for name, backend in backends.items():
            wait_until_idle()
            backend.reset()
            if warm:
                backend.call()
            samples[name].append(round(_time_calls(backend, calls), CLOCK_DECIMALS))
    return calls, samples


def _time_single_call(backend: Backend) -> float:
    """Time single calls and return the seconds of the fastest.

    The first call wakes threads and fills caches, and short calls are far faster after it.
    """
    seconds = _time_calls(backend, 1)
    if seconds > MAX_WARMED_SECONDS:
        return seconds
    return min(_time_calls(backend, 1) for _ in range(WARM_CALLS))


def wait_until_idle() -> None:
    """Wait until the threads of the previous backend sleep.

    Some free memory long after their call.
    """
    deadline = time.perf_counter() + MAX_PAUSE_SECONDS
    busy = True
    while busy and time.perf_counter() < deadline:
        cpu_seconds = time.process_time()
        time.sleep(PAUSE_SECONDS)
        busy = time.process_time() - cpu_seconds > BUSY_SHARE * PAUSE_SECONDS


def _time_calls(backend: Backend, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        backend.call()
    return (time.perf_counter() - start) / calls
