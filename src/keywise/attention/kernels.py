"""The targets: which can run here, which one runs, and the only import of the native module."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from keywise.attention import _native, reference
from keywise.attention.arrays import Array, exchange_of, round_to
from keywise.attention.partial import Partial
from keywise.attention.problem import Chunks, Problem, make_problem
from keywise.attention.stats_request import StatsRequest, resolve_stats
from keywise.attention.visibility import sides_of
from keywise.errors import OptionError, TargetError
from keywise.util.checks import MAX_FLOAT, check_int

REFERENCE = "reference"
MOST_THREADS = 1024
_REASONS: dict[str, str] = {**dict(_native.candidates()), REFERENCE: ""}
"""Every target, best first, and why it cannot run here ('' when it can)."""

_chosen: ContextVar[str | None] = ContextVar("keywise_target", default=None)


@dataclass(frozen=True)
class Explanation:
    """Which target runs, and what is said against each of the others.

    Attributes
    ----------
    target : str or None
        The target that runs; None when none can.
    reasons : dict of str to str
        Per target, best first: why it does not run this, or '' when it could.
    threads : int
        Number of threads a large problem is given.
    """

    target: str | None
    reasons: dict[str, str]
    threads: int

    def __str__(self) -> str:
        lines = [f"target {self.target}, {self.threads} threads"]
        for name, reason in self.reasons.items():
            state = "runs" if name == self.target else reason or "usable, passed over: a target above it is faster"
            lines.append(f"  {name:<12} {state}")
        return "\n".join(lines)


def targets() -> tuple[str, ...]:
    """Name the targets that can run on this machine, fastest first; `reference` is always among them.

    Examples
    --------
    >>> import keywise as kw
    >>> kw.targets()[-2:]
    ('portable', 'reference')
    """
    return tuple(name for name, reason in _REASONS.items() if not reason)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Run everything inside on the named target, or refuse: it is never replaced by another.

    Parameters
    ----------
    name : str
        One of `targets()`.

    Raises
    ------
    TargetError
        When there is no such target, or this machine cannot run it.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> x = np.ones((1, 1, 2, 3))
    >>> with kw.using("reference"):
    ...     kw.attend(x, x, x).dtype
    dtype('float64')
    """
    if name not in _REASONS:
        raise TargetError(f"no target is named {name!r}; this machine can run {', '.join(targets())}")
    if _REASONS[name]:
        raise TargetError(f"target {name!r} cannot run here: {_REASONS[name]}; usable are {', '.join(targets())}")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def explain(query: Any = None, key: Any = None, value: Any = None, **options: Any) -> Explanation:
    """Say which target would run a problem and why the others would not; without arguments, for any problem.

    Parameters
    ----------
    query, key, value, **options
        As in `attend`.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> x = np.ones((1, 1, 2, 3))
    >>> print(kw.explain(x, x, x).reasons["portable"])
    float64 is computed by the reference only
    """
    dtype = None
    if query is not None or key is not None or value is not None or options:
        names = ("mask", "bias", "scale", "softcap", "sinks")
        unknown = sorted(set(options) - set(names))
        if unknown:
            raise OptionError(f"explain() got {', '.join(unknown)}; it takes query, key, value, {', '.join(names)}")
        mask, bias, scale, softcap, sinks = (options.get(name) for name in names)
        problem = make_problem(query, key, value, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks)
        dtype = problem.dtype
    asked = _chosen.get()
    reasons = {name: _reason(name, dtype, asked) for name in _REASONS}
    target = next((name for name, reason in reasons.items() if not reason), None)
    return Explanation(target, reasons, get_num_threads())


def _reason(name: str, dtype: str | None, asked: str | None) -> str:
    if _REASONS[name]:
        return _REASONS[name]
    if asked is not None and name != asked:
        return f"target {asked!r} was asked for by name"
    if dtype == "float64" and name != REFERENCE:
        return "float64 is computed by the reference only"
    return ""


@functools.cache
def _target(dtype: str, asked: str | None) -> str:
    for name in _REASONS:
        # The definition is slow and stores every score: it runs when it is asked for by name, never in silence.
        if not _reason(name, dtype, asked) and (name != REFERENCE or asked == REFERENCE):
            return name
    detail = f"the target asked for, {asked!r}, " if asked else "no kernel "
    raise TargetError(f"{detail}computes {dtype}: use float32, or run it inside keywise.using('reference')")


_threads: int | None = None


def set_num_threads(threads: int | None) -> None:
    """Set the number of threads of every later call; None goes back to the default.

    The default is KEYWISE_THREADS, else torch's number when torch is loaded, else the CPUs this process may use.
    Results do not depend on it.

    Examples
    --------
    >>> import keywise as kw
    >>> kw.set_num_threads(2); kw.get_num_threads()
    2
    >>> kw.set_num_threads(None)
    """
    global _threads  # noqa: PLW0603  (one number per process, as in torch)
    _threads = None if threads is None else check_int("threads", threads, minimum=1, maximum=MOST_THREADS)


def get_num_threads() -> int:
    """Give the number of threads a large problem runs on."""
    if _threads is not None:
        return _threads
    named = _native.environment("KEYWISE_THREADS")  # a microsecond faster than os.environ
    if named:
        if not named.isdecimal() or not 1 <= int(named) <= MOST_THREADS:
            raise OptionError(f"KEYWISE_THREADS={named!r}: it is a whole number from 1 to {MOST_THREADS}")
        return int(named)
    torch = sys.modules.get("torch")
    # A torch that is being imported has no get_num_threads yet.
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def multiply_adds(rounds: int, dtype: str) -> float:
    """Multiply and add in registers alone on the chosen target, and give the number of operations done."""
    return _native.multiply_adds(_target(dtype, _chosen.get()), rounds, dtype == "bfloat16")


def add_up(data: Array) -> float:
    """Sum a contiguous float32 vector on the chosen target, as fast as it can be read."""
    return _native.add_up(_target("float32", _chosen.get()), data)


def attend(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any,
    scale: float | None,
    transposed_output: bool,
    stats: StatsRequest | None = None,
) -> Any:
    """Attend in one native call, or give None: `make_problem` and `run` then do it, with the same bits, or refuse.

    What is done here is certainly valid: torch tensors that fit and lie as the kernels read them, without mask arrays;
    keys and values may come in `Pieces`. With `reading` the result is a list of the output and the readings, in the
    order of `Reading`.
    """
    chunks = isinstance(key, Chunks) and isinstance(value, Chunks)
    exchange = exchange_of(query, *key, *value) if chunks else exchange_of(query, key, value)
    sides, asked = sides_of(mask), _chosen.get()
    if exchange is None or sides is None or asked == REFERENCE:
        return None
    if scale is not None and not (type(scale) is float and abs(scale) <= MAX_FLOAT):
        return None
    plan = None
    if stats is not None:
        keys = key if chunks else (key,)
        if any(tensor.ndim != 4 for tensor in (query, *keys)):
            return None
        plan = resolve_stats(stats, (*query.shape[:3], sum(tensor.shape[2] for tensor in keys)))[:7]
    target = _target("float32", asked)  # the same for every dtype that the native call takes
    return _native.attend(
        exchange, query, key, value, *sides, scale, transposed_output, target, get_num_threads(), _interruptible(), plan
    )


def run(problem: Problem, output: Array, records: dict[str, Array]) -> None:
    """Run a problem on the chosen target; `output` [B, Hq, Q, Dv] and the readings, by name, are written in place."""
    target = _target(problem.dtype, _chosen.get())
    if target == REFERENCE:
        result = reference.evaluate(problem)
        output[...] = round_to(result.output, problem.dtype)
        for name, array in records.items():
            array[...] = getattr(result, name)
        return
    call = _call(problem)
    call.output = output
    for name, array in records.items():
        setattr(call, "covered" if name == "top_mass" else name, array)
    _run(call, target)


def run_partial(problem: Problem, records: dict[str, Array] | None = None) -> Partial:
    """Run a problem over part of the keys on the chosen target; the readings, by name, are written in place."""
    target = _target(problem.dtype, _chosen.get())
    records = records or {}
    if target == REFERENCE:
        result = reference.evaluate(problem)
        for name, array in records.items():
            array[...] = getattr(result, name)
        dtype = np.float64 if problem.dtype == "float64" else np.float32
        parts = (result.running_max, result.running_sum, result.values)
        return Partial(*(part.astype(dtype) for part in parts if part is not None))
    batch, query_heads, _, queries, _, _, value_dim = problem.shape
    call = _call(problem)
    call.peak = np.empty((batch, query_heads, queries), np.float32)
    call.total = np.empty_like(call.peak)
    call.values = np.empty((batch, query_heads, queries, value_dim), np.float32)
    for name, array in records.items():
        setattr(call, "covered" if name == "top_mass" else name, array)
    partial = Partial(call.peak, call.total, call.values)
    _run(call, target)
    return partial


def _run(call: _native.Call, target: str) -> None:
    _native.run(call, target, get_num_threads(), _interruptible())


def _interruptible() -> bool:
    # Signals reach the main thread only; asking for them elsewhere would wait for the GIL in vain.
    return threading.get_ident() == threading.main_thread().ident


def _call(problem: Problem) -> _native.Call:
    call = _native.Call()
    call.dtype = problem.dtype
    call.query = problem.query.data
    call.stored = problem.chunks[0].key.dtype
    for key, value in problem.chunks:
        call.add_piece(key.data, value.data)
        if key.scale is not None and value.scale is not None:
            call.add_scales(key.scale, value.scale)
    if problem.bias is not None:
        call.bias, call.bias_dtype = problem.bias.data, problem.bias.dtype
    if problem.sinks is not None:
        call.sinks = problem.sinks.astype(np.float32)
    call.scale = problem.scale
    call.softcap = problem.softcap or 0.0
    rule = problem.visibility
    call.causal, call.left, call.right, call.keep_first = rule.causal, rule.left, rule.right, rule.keep_first
    call.first_key, call.lengths, call.starts = problem.first_key, rule.lengths, rule.starts
    call.documents, call.allowed = rule.documents, rule.allowed
    plan = problem.stats
    if plan is not None:
        call.first_row, call.last_row, call.top = plan.first_row, plan.last_row, plan.top_k
        call.runs, call.row_weights = plan.runs, plan.query_weights
    return call
