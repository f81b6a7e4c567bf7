"""The targets of this machine, the choice among them, and the number of threads."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from keywise.attention import native
from keywise.attention.arrays import Array
from keywise.attention.call import make_call
from keywise.errors import OptionError, TargetError
from keywise.util.checks import check_int

REFERENCE = "reference"
MAX_THREADS = 1024
_REASONS: dict[str, str] = {**dict(native.list_candidates()), REFERENCE: ""}
"""Every target, best first, and why it cannot run here ('' when it can)."""

_chosen: ContextVar[str | None] = ContextVar("keywise_target", default=None)


@dataclass(frozen=True)
class Explanation:
    """Report which target runs, and why the others do not.

    Attributes
    ----------
    target : str or None
        The target that runs; None when none can.
    reasons : dict of str to str
        Per target, best first: why it does not run this call, or '' when it could.
    threads : int
        Number of threads that a large call runs on.
    """

    target: str | None
    reasons: dict[str, str]
    threads: int

    def __str__(self) -> str:
        lines = [f"target {self.target}, {self.threads} threads"]
        for name, reason in self.reasons.items():
            state = reason or "usable, but slower than another target"
            if name == self.target:
                state = "runs"
            lines.append(f"  {name:<12} {state}")
        return "\n".join(lines)


def targets() -> tuple[str, ...]:
    """Return the names of the targets that can run on this machine, fastest first.

    The last one is ``"reference"``: the definition in float64 NumPy, which is slow and runs only when chosen by name.

    Examples
    --------
    >>> import keywise as kw
    >>> kw.targets()[-2:]
    ('portable', 'reference')
    """
    return tuple(name for name, reason in _REASONS.items() if not reason)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Run every call inside the block on the named target.

    Another target is never used instead.

    Parameters
    ----------
    name : str
        One of `targets()`.

    Yields
    ------
    None

    Raises
    ------
    TargetError
        There is no such target, or this machine cannot run it.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> x = np.ones((1, 1, 2, 3))
    >>> with kw.using("reference"):
    ...     kw.attend(x, x, x).dtype
    dtype('float64')
    """
    if name not in _REASONS:
        raise TargetError("target", f"must be one of {', '.join(targets())}", got=name)
    if _REASONS[name]:
        raise TargetError(
            "target", f"{name!r} cannot run here: {_REASONS[name]}", remedy=f"use one of {', '.join(targets())}"
        )
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def explain(
    query: Any = None,
    key: Any = None,
    value: Any = None,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
) -> Explanation:
    """Report which target would run a call, and why the others would not.

    Without arguments, the report is about all calls that the kernels support.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks
        As in `attend`.

    Returns
    -------
    Explanation

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        `attend` would refuse the call.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> x = np.ones((1, 1, 2, 3))
    >>> print(kw.explain(x, x, x).reasons["portable"])
    float64 is computed by the reference only
    """
    dtype = None
    options = {"mask": mask, "bias": bias, "scale": scale, "softcap": softcap, "sinks": sinks}
    if any(argument is not None for argument in (query, key, value, *options.values())):
        dtype = make_call(query, key, value, **options).inputs.dtype
    chosen = _chosen.get()
    reasons = {name: _find_reason(name, dtype, chosen) for name in _REASONS}
    target = next((name for name, reason in reasons.items() if not reason), None)
    return Explanation(target, reasons, get_num_threads())


def _find_reason(name: str, dtype: str | None, chosen: str | None) -> str:
    if _REASONS[name]:
        return _REASONS[name]
    if chosen is not None and name != chosen:
        return f"target {chosen!r} was chosen by name"
    if dtype == "float64" and name != REFERENCE:
        return "float64 is computed by the reference only"
    return ""


def choose_target(dtype: str) -> str:
    """Return the name of the target that runs a call.

    Parameters
    ----------
    dtype
        Element type of the query.

    Raises
    ------
    TargetError
        No target may run it.
    """
    return _choose_target(dtype, _chosen.get())


@functools.cache
def _choose_target(dtype: str, chosen: str | None) -> str:
    for name in _REASONS:
        # The definition is slow and stores every score, so it runs only when it is chosen by name.
        if not _find_reason(name, dtype, chosen) and (name != REFERENCE or chosen == REFERENCE):
            return name
    reason = f"the chosen target {chosen!r} does not compute it" if chosen else "no kernel computes it"
    raise TargetError(
        "query",
        f"must not have dtype {dtype}: {reason}",
        remedy="use float32, or call inside keywise.using('reference')",
    )


_threads: int | None = None


def set_num_threads(threads: int | None) -> None:
    """Set the number of threads of every later call.

    The default is KEYWISE_THREADS, else torch's number when torch is loaded, else the CPUs this process may use.
    Results do not depend on it.

    Parameters
    ----------
    threads : int or None
        From 1 to 1024; None returns to the default.

    Raises
    ------
    DtypeError, OptionError
        The number is not an integer or is out of bounds.

    Examples
    --------
    >>> import keywise as kw
    >>> kw.set_num_threads(2); kw.get_num_threads()
    2
    >>> kw.set_num_threads(None)
    """
    global _threads  # noqa: PLW0603  (one number per process, as in torch)
    _threads = None if threads is None else check_int("threads", threads, minimum=1, maximum=MAX_THREADS)


def get_num_threads() -> int:
    """Return the number of threads that a large call runs on.

    Raises
    ------
    OptionError
        The environment variable KEYWISE_THREADS is not a number from 1 to 1024.

    Examples
    --------
    >>> import keywise as kw
    >>> kw.get_num_threads() >= 1
    True
    """
    if _threads is not None:
        return _threads
    from_environment = native.read_environment("KEYWISE_THREADS")  # a microsecond faster than os.environ
    if from_environment:
        if not from_environment.isdecimal() or not 1 <= int(from_environment) <= MAX_THREADS:
            raise OptionError("KEYWISE_THREADS", f"must be an integer from 1 to {MAX_THREADS}", got=from_environment)
        return int(from_environment)
    torch = sys.modules.get("torch")
    # A torch that is being imported has no get_num_threads yet.
    count_torch_threads = getattr(torch, "get_num_threads", None)
    if count_torch_threads is not None:
        return int(count_torch_threads())
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_multiply_adds(rounds: int, dtype: str) -> float:
    """Multiply and add in registers alone, and return the number of operations.

    Parameters
    ----------
    rounds
        Number of repetitions.
    dtype
        ``"bfloat16"`` for dot products of bfloat16 pairs where the target has them, otherwise float32.
    """
    return native.multiply_adds(choose_target(dtype), rounds, dtype == "bfloat16")


def sum_buffer(data: Array) -> float:
    """Return the sum of a contiguous float32 vector, read as fast as the target can.

    Parameters
    ----------
    data
        The vector.
    """
    return native.sum_buffer(choose_target("float32"), data)
