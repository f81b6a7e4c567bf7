"""Peak memory of a forward pass with readings on every layer, against transformers' sdpa without any."""

# ruff: noqa: PLC0415  (torch is slow to import: only the processes that measure need it)

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.machine import available_cpus
from benchmarks.markdown import table
from benchmarks.processes import stream
from benchmarks.results import Run

WAYS = {
    "sdpa": "transformers sdpa, no readings",
    "plain": "keywise, no readings",
    "mass": "keywise, key mass, entropy and lse on every layer",
    "full": "keywise, key mass, entropy, lse, top 8 and 64 segments on every layer",
}
SEGMENTS = 64
STEADY = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Freed tensors leave holes in glibc's heap, so that the peak of one and the same pass differs from run to run; with a
fixed threshold it does not."""


def run(tokens: int, model: str | None) -> Iterator[dict[str, Any]]:
    """Measure every way in a process of its own, with glibc's own threshold and with a fixed one."""
    for environment in ({}, STEADY):
        for way in WAYS:
            yield from stream(_measure, way, tokens, model, threads=len(available_cpus()), environment=environment)


def _measure(way: str, tokens: int, model_name: str | None) -> Iterator[dict[str, Any]]:
    """Run one forward pass and report this process's peak memory, after loading and after the pass."""
    import torch

    import keywise.hf
    from keywise.models.loading import load_model

    model = load_model(model_name, dtype="float32").model
    if way != "sdpa":
        keywise.hf.use(model)
    else:
        model.set_attn_implementation("sdpa")
    ids = torch.randint(100, 10000, (1, tokens), generator=torch.Generator().manual_seed(0))
    segments = [tokens * i // SEGMENTS for i in range(SEGMENTS + 1)] if way == "full" else None
    with torch.no_grad():
        model(ids[:, :64])
        loaded_bytes = _peak_bytes()
        start = time.perf_counter()
        if way in {"mass", "full"}:
            with keywise.hf.record_stats(model, top_k=8 if way == "full" else 0, segment_bounds=segments):
                model(ids)
        else:
            model(ids)
    yield {
        "way": way,
        "tokens": tokens,
        "fixed_threshold": "MALLOC_MMAP_THRESHOLD_" in os.environ,
        "seconds": time.perf_counter() - start,
        "loaded_bytes": loaded_bytes,
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tables(runs: Sequence[Run]) -> str:
    """Write one table of peaks."""
    return "\n\n".join(_table(run.results) for run in runs)


def _table(results: Sequence[dict[str, Any]]) -> str:
    peaks = {(found["way"], found["fixed_threshold"]): found["peak_bytes"] for found in results}

    def cells(way: str, *, fixed: bool) -> list[str]:
        if (way, fixed) not in peaks:
            return ["", ""]
        peak, plain = peaks[way, fixed], peaks.get(("sdpa", fixed))
        against = "" if way == "sdpa" or plain is None else f"{(peak - plain) / 1e9:+.2f} GB"
        return [f"{peak / 1e9:.2f} GB", against]

    columns = ["attention", "peak", "against sdpa", "peak, fixed threshold", "against sdpa"]
    return table(columns, [[what, *cells(way, fixed=False), *cells(way, fixed=True)] for way, what in WAYS.items()])
