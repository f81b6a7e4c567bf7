"""A backend: one implementation, prepared for a case, checked and then timed."""

# ruff: noqa: PLC0415  (torch is slow to import, or absent: only calls need it)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from numpy.typing import NDArray

from benchmarks.inputs import Inputs, to_numpy

MAX_WEIGHTS_BYTES = 2**30
"""Limit of the float32 weights of a baseline that stores them all: it holds several copies."""


class UnsupportedCaseError(Exception):
    """A baseline does not support a case; the message says why."""


def keep_inputs() -> None:
    """Do nothing: most backends leave their inputs unchanged."""


@dataclass(frozen=True)
class Backend:
    """One implementation prepared for a case.

    Attributes
    ----------
    call
        The function that is timed.
    get_output
        Converts the result of `call` to the output [batch, query_heads, queries, head_dim].
    reset
        Restores the inputs before a sample; it is not timed.
    """

    call: Callable[[], Any]
    get_output: Callable[[Any], NDArray[Any]] = to_numpy
    reset: Callable[[], None] = keep_inputs


@dataclass(frozen=True)
class Baseline:
    """An implementation that can be prepared for cases.

    Attributes
    ----------
    modules
        Modules that it needs.
    prepare
        Prepares a case for a number of threads, its inputs in the implementation's own layout; raises
        `UnsupportedCaseError`.
    """

    modules: tuple[str, ...]
    prepare: Callable[[Inputs, int], Backend]

    def find_missing_modules(self) -> list[str]:
        """Return the names of the modules that are not installed."""
        return [module for module in self.modules if find_spec(module) is None]


def refuse_large_weights(inputs: Inputs) -> None:
    """Raise an error if the weights of a case are too large to store."""
    weights_bytes = inputs.case.weights_bytes
    if weights_bytes > MAX_WEIGHTS_BYTES:
        raise UnsupportedCaseError(f"stores every weight: {weights_bytes / 1e9:.1f} GB in float32")


def make_visible_mask(inputs: Inputs) -> Any:
    """Return the mask [queries, keys] of a causal case as a torch tensor.

    It is True where a key is visible.
    """
    import torch

    case = inputs.case
    past = case.keys - case.queries
    mask = torch.ones(case.queries, case.keys, dtype=torch.bool).tril(past)
    return mask if case.window is None else mask.triu(past - case.window + 1)


def shorten_message(error: Exception) -> str:
    """Return the beginning of an error's message in one line."""
    return " ".join(str(error).split())[:160]
