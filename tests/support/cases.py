"""Attention problems described by a few fields each: the `Case(...)` that a failing test prints rebuilds its arrays."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import keywise as kw
from keywise.attention.problem import Problem, make_problem
from keywise.attention.reference import find_visible_keys
from keywise.attention.stats_request import StatsRequest

DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = ("contiguous", "transposed", "cache", "expanded", "reversed", "strided")
MASKS = (
    "none",
    "causal",
    "window",
    "causal window",
    "lengths",
    "starts",
    "empty item",
    "keep_first",
    "documents",
    "causal documents",
    "allowed",
    "allowed per key",
    "allowed with empty rows",
    "everything",
)
BIASES = ("none", "per key", "per pair", "per head", "per row", "full", "same dtype", "hiding")
SEGMENTS = ("none", "bounds", "inner bounds", "ids")


@dataclass(frozen=True)
class Case:
    """One problem; equal cases have equal arrays."""

    dtype: str = "float32"
    batch: int = 2
    key_heads: int = 2
    group: int = 2
    queries: int = 5
    keys: int = 33
    head_dim: int = 16
    value_dim: int = 0
    """0 for as wide as head_dim."""
    layout: str = "contiguous"
    mask: str = "none"
    bias: str = "none"
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    peaky: bool = False
    top_k: int = 8
    segment_kind: str = "none"
    query_weights: bool = False
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `attend`, with NaN and infinity in keys hidden from every query."""
        random_numbers = np.random.default_rng(self.seed)
        query, key, value = self._numbers(random_numbers)
        options: dict[str, Any] = {
            "mask": self._mask(random_numbers),
            "bias": self._bias(random_numbers),
            "scale": self.scale,
            "softcap": self.softcap,
            "sinks": self._sinks(random_numbers),
        }
        if self.layout != "expanded":
            _poison(key, value, make_problem(query, key, value, **{**options, "bias": None}))
        return {
            "query": lay_out(query, self.layout, self.dtype),
            "key": lay_out(key, self.layout, self.dtype),
            "value": lay_out(value, self.layout, self.dtype),
            **options,
        }

    def stats_arguments(self) -> dict[str, Any]:
        """Return the arguments of `attention_stats` that `attend` does not have."""
        random_numbers = np.random.default_rng([self.seed, 1])
        query_weights = random_numbers.uniform(0, 2, (self.key_heads * self.group, self.queries)).astype(np.float32)
        query_weights[:, :: max(2, self.queries // 3)] = 0
        return {
            "top_k": self.top_k,
            ("segment_ids" if self.segment_kind == "ids" else "segment_bounds"): self._make_segments(random_numbers),
            "query_weights": query_weights if self.query_weights else None,
        }

    def problem(self) -> Problem:
        """Return the problem, statistics included."""
        return make_problem(**self.arguments(), stats=StatsRequest(**self.stats_arguments()))

    def _numbers(self, random_numbers: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        query_shape = (self.batch, self.key_heads * self.group, self.queries, self.head_dim)
        key_shape = (self.batch, self.key_heads, self.keys, self.head_dim)
        value_shape = (*key_shape[:3], self.value_dim or self.head_dim)
        query, key, value = (random_numbers.standard_normal(shape) for shape in (query_shape, key_shape, value_shape))
        if self.layout == "expanded":
            key[:], value[:], query[:] = key[:1, :1], value[:1, :1], query[:1]
        if self.peaky and self.keys:
            # Scores spread to about +-8, and one key that the first query of each group meets at score 10.
            query *= 3
            first = query[:, :: self.group, 0] if self.queries else key[:, :, 0]
            scale = self.scale or self.head_dim**-0.5
            key[:, :, self.keys // 3] = first * (10 / (scale * np.maximum((first**2).sum(-1, keepdims=True), 1e-3)))
            if self.layout == "expanded":
                key[:] = key[:1, :1]
        # Numbers every dtype holds exactly enough: rounding them is the case's business, not the kernel's.
        return tuple(_round(array, self.dtype) for array in (query, key, value))  # type: ignore[return-value]

    def _mask(self, random_numbers: np.random.Generator) -> kw.Mask | np.ndarray | None:
        batch, heads, queries, keys = self.batch, self.key_heads * self.group, self.queries, self.keys
        left, right = int(random_numbers.integers(0, keys + 1)), int(random_numbers.integers(0, keys + 1))
        lengths = random_numbers.integers((keys + 1) // 2, keys + 1, batch)
        starts = random_numbers.integers(0, keys // 2 + 1, batch)
        documents = np.sort(random_numbers.integers(0, 4, (batch, keys)), axis=1).astype(np.int32)
        allowed = random_numbers.random((batch, heads, queries, keys)) < 0.6
        empty_rows = allowed.copy()
        empty_rows[:, :, ::2] = False
        masks: dict[str, kw.Mask | np.ndarray | None] = {
            "none": None,
            "causal": kw.Mask(causal=True),
            "window": kw.Mask(window=(left // 2, right // 2)),
            "causal window": kw.Mask(causal=True, window=(left // 3, None)),
            "lengths": kw.Mask(lengths=lengths),
            "starts": kw.Mask(causal=True, starts=starts),
            "empty item": kw.Mask(lengths=np.where(np.arange(batch) == 0, 0, keys)),
            "keep_first": kw.Mask(causal=True, window=(left // 4, 0), keep_first=min(3, keys), starts=starts),
            "documents": kw.Mask(documents=documents),
            "causal documents": kw.Mask(causal=True, documents=documents, lengths=lengths),
            "allowed": allowed[:1, :1],
            "allowed per key": allowed[:, :1, :1],
            "allowed with empty rows": empty_rows,
            "everything": kw.Mask(
                causal=True,
                window=(left, right),
                lengths=lengths,
                starts=starts // 2,
                keep_first=1,
                documents=documents // 2,
                allowed=allowed | (random_numbers.random((1, 1, 1, keys)) < 0.5),
            ),
        }
        return masks[self.mask]

    def _bias(self, random_numbers: np.random.Generator) -> Any:
        batch, heads, queries, keys = self.batch, self.key_heads * self.group, self.queries, self.keys
        shapes: dict[str, tuple[int, ...]] = {
            "per key": (keys,),
            "per pair": (queries, keys),
            "per head": (1, heads, 1, keys),
            "per row": (batch, 1, queries, 1),
            "full": (batch, heads, queries, keys),
            "same dtype": (heads, queries, keys),
            "hiding": (queries, keys),
        }
        if self.bias == "none":
            return None
        bias = torch.from_numpy(random_numbers.standard_normal(shapes[self.bias]).astype(np.float32))
        if self.bias == "hiding":
            bias = bias.masked_fill(bias > 0.8, -torch.inf)
        return bias.to(getattr(torch, self.dtype)) if self.bias == "same dtype" else bias

    def _sinks(self, random_numbers: np.random.Generator) -> np.ndarray | None:
        sinks = random_numbers.normal(1, 2, self.key_heads * self.group).astype(np.float32)
        return sinks if self.sinks else None

    def _make_segments(self, random_numbers: np.random.Generator) -> Any:
        keys = self.keys
        if self.segment_kind == "bounds":
            cuts = random_numbers.choice(np.arange(1, keys), min(keys - 1, 40), replace=False)
            return [0, *sorted(cuts.tolist()), keys]
        if self.segment_kind == "inner bounds":
            return [keys // 4, keys // 4 + 1 + keys // 3] if keys > 3 else [0, keys]
        if self.segment_kind == "ids":
            return random_numbers.integers(-1, max(1, min(keys, 5)), keys)
        return None


def _round(array: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(array).to(getattr(torch, dtype)).to(torch.float32).numpy()


def _poison(key: np.ndarray, value: np.ndarray, problem: Problem) -> None:
    """Fill keys and values that are hidden from every query with NaN and infinity."""
    batch, _, key_heads, _, keys, _, _ = problem.shape
    hidden = ~find_visible_keys(problem).reshape(batch, key_heads, -1, keys).any(axis=2)
    key[hidden] = np.nan
    value[hidden] = np.where(np.arange(value.shape[3]) % 2, np.inf, np.nan)


def lay_out(numbers: np.ndarray, layout: str, dtype: str) -> Any:
    """Store numbers [B, H, N, D] in one of the memory layouts that callers use."""
    tensor = torch.from_numpy(numbers).to(getattr(torch, dtype))
    batch, heads, tokens, width = tensor.shape
    if layout == "contiguous":
        return tensor
    if layout == "transposed":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "expanded":
        same_heads = bool(torch.equal(tensor, tensor[:, :1].expand_as(tensor)))
        return tensor[:1, : 1 if same_heads else heads].contiguous().expand(batch, heads, tokens, width)
    if layout == "cache":
        stale = torch.full((batch, heads, tokens + 40, width), 3e4, dtype=tensor.dtype)
        stale[:, :, ::2] = torch.nan
        stale[:, :, 5 : 5 + tokens] = tensor
        return stale[:, :, 5 : 5 + tokens]
    if layout == "strided":
        wide = torch.full((batch, heads, tokens, 2 * width), torch.nan, dtype=tensor.dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    assert layout == "reversed"
    return as_numpy(tensor.flip(1, 2).contiguous())[:, ::-1, ::-1]


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a NumPy array over the tensor's memory; bfloat16 through ml_dtypes."""
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    import ml_dtypes

    return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)


def limit_size(case: Case, numbers: int = 500_000) -> Case:
    """Return the case with fewer items, heads or queries where the definition would store too many numbers."""
    for smaller in ({"batch": 1}, {"key_heads": 1}, {"queries": min(case.queries, 49)}, {"group": min(case.group, 3)}):
        per_key = case.queries + case.head_dim + (case.value_dim or case.head_dim)
        if case.batch * case.key_heads * case.group * case.keys * per_key > numbers:
            case = replace(case, **smaller)
    return case


def combine_pairwise(factors: Mapping[str, Sequence[Any]], seed: int) -> list[Case]:
    """Return cases in which every pair of values of two factors meets at least once."""
    chooser = random.Random(seed)
    names = list(factors)
    open_pairs = {
        ((one, a), (other, b))
        for one, other in itertools.combinations(range(len(names)), 2)
        for a in range(len(factors[names[one]]))
        for b in range(len(factors[names[other]]))
    }
    ordered = sorted(open_pairs)
    chooser.shuffle(ordered)
    cases = []
    for pair in ordered:
        if pair not in open_pairs:
            continue
        chosen = dict(pair)
        for factor in chooser.sample(range(len(names)), len(names)):
            if factor not in chosen:
                values = chooser.sample(range(len(factors[names[factor]])), len(factors[names[factor]]))
                chosen[factor] = max(values, key=lambda value: _count_new_pairs(factor, value, chosen, open_pairs))
        open_pairs -= set(itertools.combinations(sorted(chosen.items()), 2))
        fields = {names[factor]: factors[names[factor]][value] for factor, value in chosen.items()}
        cases.append(limit_size(Case(seed=len(cases), **fields)))
    return cases


def _count_new_pairs(factor: int, value: int, chosen: Mapping[int, int], open_pairs: set[Any]) -> int:
    new = (factor, value)
    return sum((min(new, old), max(new, old)) in open_pairs for old in chosen.items())
