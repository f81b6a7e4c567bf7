"""Peak memory of a forward pass with statistics of every layer, compared with transformers' sdpa."""

# ruff: noqa: PLC0415  (torch is slow to import: only the processes that measure need it)

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.markdown import format_table
from benchmarks.processes import run_in_process
from benchmarks.results import Run
from keywise.util.machine import list_available_cpus

SDPA = "sdpa"
KEYWISE = "keywise"
KEY_MASS = "keywise with key mass"
ALL_STATISTICS = "keywise with all statistics"
BACKENDS = {
    SDPA: "transformers' sdpa",
    KEYWISE: "keywise",
    KEY_MASS: "keywise; key mass, entropy and LSE of every layer",
    ALL_STATISTICS: "keywise; key mass, entropy, LSE, top 8 keys and 64 segments of every layer",
}
"""What is measured, and its description in the table."""

SEGMENTS = 64
FIXED_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment that fixes glibc's mmap threshold.

Freed tensors leave holes in glibc's heap, so that the peak of the same pass differs from run to run; with a fixed
threshold it does not."""


def run_backends(tokens: int, model: str | None) -> Iterator[dict[str, Any]]:
    """Measure every backend in a process of its own, under two mmap thresholds.

    They are glibc's own and a fixed one.

    Parameters
    ----------
    tokens
        Length of the text.
    model
        The language model; None for the default.
    """
    for environment in ({}, FIXED_THRESHOLD):
        for backend in BACKENDS:
            yield from run_in_process(
                _measure_peak, backend, tokens, model, threads=len(list_available_cpus()), environment=environment
            )


def _measure_peak(backend: str, tokens: int, model_name: str | None) -> Iterator[dict[str, Any]]:
    """Yield this process's peak memory after loading and after one forward pass."""
    import torch

    import keywise.hf
    from keywise.models.loading import load_model

    model = load_model(model_name, dtype="float32").model
    if backend == SDPA:
        model.set_attn_implementation("sdpa")
    else:
        keywise.hf.use(model)
    ids = torch.randint(100, 10000, (1, tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(ids[:, :64])
        loaded_bytes = _get_peak_bytes()
        start = time.perf_counter()
        if backend == KEY_MASS:
            with keywise.hf.record_stats(model, top_k=0):
                model(ids)
        elif backend == ALL_STATISTICS:
            bounds = [tokens * segment // SEGMENTS for segment in range(SEGMENTS + 1)]
            with keywise.hf.record_stats(model, top_k=8, segment_bounds=bounds):
                model(ids)
        else:
            model(ids)
        seconds = time.perf_counter() - start
    yield {
        "backend": backend,
        "tokens": tokens,
        "fixed_mmap_threshold": "MALLOC_MMAP_THRESHOLD_" in os.environ,
        "seconds": seconds,
        "loaded_bytes": loaded_bytes,
        "peak_bytes": _get_peak_bytes(),
    }


def _get_peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def format_tables(runs: Sequence[Run]) -> str:
    """Format one table of peaks per run."""
    return "\n\n".join(_format_peaks(run.results) for run in runs)


def _format_peaks(results: Sequence[dict[str, Any]]) -> str:
    peaks = {(result["backend"], result["fixed_mmap_threshold"]): result["peak_bytes"] for result in results}

    def format_cells(backend: str, *, fixed: bool) -> list[str]:
        peak = peaks.get((backend, fixed))
        sdpa_peak = peaks.get((SDPA, fixed))
        if peak is None:
            return ["", ""]
        if backend == SDPA or sdpa_peak is None:
            return [f"{peak / 1e9:.2f} GB", ""]
        return [f"{peak / 1e9:.2f} GB", f"{(peak - sdpa_peak) / 1e9:+.2f} GB"]

    columns = ["attention", "peak", "minus sdpa's", "peak, fixed threshold", "minus sdpa's"]
    rows = [
        [description, *format_cells(backend, fixed=False), *format_cells(backend, fixed=True)]
        for backend, description in BACKENDS.items()
    ]
    return format_table(columns, rows)
