"""What a rival is: something that gets ready for a case, is checked, and then called under the clock."""

# ruff: noqa: PLC0415  (torch is slow to import, or absent: only calls need it)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from numpy.typing import NDArray

from benchmarks.inputs import Inputs, as_numpy

MOST_WEIGHTS_BYTES = 2**30
"""A rival that stores every weight is left out where they take more than this in float32: it holds several copies."""


class CannotError(Exception):
    """A rival cannot do a case; the message says why."""


def nothing() -> None:
    """Reset nothing: most rivals leave their inputs as they were."""


@dataclass(frozen=True)
class Backend:
    """One way to compute a case.

    Attributes
    ----------
    call
        What is timed.
    output
        Turns what `call` gave into the output [batch, query_heads, queries, head_dim].
    reset
        Puts the inputs back as they were, before a sample and outside the clock.
    """

    call: Callable[[], Any]
    output: Callable[[Any], NDArray[Any]] = as_numpy
    reset: Callable[[], None] = nothing


@dataclass(frozen=True)
class Baseline:
    """Someone who takes part.

    Attributes
    ----------
    packages
        Modules that it needs.
    prepare
        Gets ready for a case on a number of threads, with inputs in the rival's own layout; raises `CannotError`.
    """

    packages: tuple[str, ...]
    prepare: Callable[[Inputs, int], Backend]

    def missing(self) -> list[str]:
        """Name the modules that are not installed."""
        return [package for package in self.packages if find_spec(package) is None]


def refuse_large_weights(inputs: Inputs) -> None:
    """Refuse a case whose weights would not fit, for a rival that stores them all."""
    size = inputs.case.weights_bytes
    if size > MOST_WEIGHTS_BYTES:
        raise CannotError(f"stores every weight: {size / 1e9:.1f} GB in float32")


def visible(inputs: Inputs) -> Any:
    """Give the mask of a causal case as a torch tensor [queries, keys], True where a query may see."""
    import torch

    case = inputs.case
    past = case.keys - case.queries
    mask = torch.ones(case.queries, case.keys, dtype=torch.bool).tril(past)
    return mask if case.window is None else mask.triu(past - case.window + 1)


def one_line(error: Exception) -> str:
    """Give the beginning of an error's message in one line."""
    return " ".join(str(error).split())[:160]
