"""Time keywise against torch's scaled_dot_product_attention: `python bench/attention.py [--threads 1] [--json]`.

The last rows of every output are checked against the definition first. Then the two (and keywise's readings) run in
turns in one process, and the medians of their times are compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional

import keywise as kw
from keywise.attention import reference
from keywise.attention.problem import make_problem

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}


@dataclass(frozen=True)
class Case:
    """One problem: query rows against keys."""

    name: str
    dtype: str
    query_heads: int
    key_heads: int
    queries: int
    keys: int
    head_dim: int
    causal: bool = False


def prefill(dtype: str, tokens: int, head_dim: int, causal: bool) -> Case:
    kind = "causal" if causal else "full"
    return Case(f"prefill {kind} {dtype} L={tokens} D={head_dim} H=8", dtype, 8, 8, tokens, tokens, head_dim, causal)


def decoding(dtype: str, query_heads: int, key_heads: int, keys: int, head_dim: int) -> Case:
    name = f"decoding {dtype} H={query_heads}/{key_heads} N={keys} D={head_dim}"
    return Case(name, dtype, query_heads, key_heads, 1, keys, head_dim)


CASES = [
    *(
        prefill(dtype, 2048, dim, causal)
        for dtype in ("float32", "bfloat16")
        for dim in (64, 128)
        for causal in (False, True)
    ),
    decoding("bfloat16", 32, 8, 8192, 128),
    decoding("float32", 32, 8, 8192, 128),
    decoding("bfloat16", 9, 3, 8192, 64),
    decoding("float32", 8, 8, 8192, 64),
]


def run(case: Case, rounds: int) -> dict[str, Any]:
    """Check and time one case."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    query = torch.randn(1, case.query_heads, case.queries, case.head_dim).to(dtype)
    key, value = (torch.randn(1, case.key_heads, case.keys, case.head_dim).to(dtype) for _ in range(2))
    mask = kw.Mask(causal=case.causal)
    grouped = case.query_heads != case.key_heads
    ways: dict[str, Callable[[], Any]] = {
        "torch": lambda: functional.scaled_dot_product_attention(
            query, key, value, is_causal=case.causal, enable_gqa=grouped
        ),
        "attend": lambda: kw.attend(query, key, value, mask=mask),
        "read": lambda: kw.read(query, key, value, mask=mask),
    }
    check(case, query, key, value, mask, ways)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    operations = 4 * case.query_heads * case.queries * case.keys * case.head_dim / (2 if case.causal else 1)
    return {
        "case": asdict(case),
        "seconds": seconds,
        "times_torch": medians["torch"] / medians["attend"],
        "read_over_attend": medians["read"] / medians["attend"],
        "gflop_per_second": operations / medians["attend"] / 1e9,
        "gigabytes_per_second": 2 * key.nbytes / medians["attend"] / 1e9,
    }


def check(  # noqa: PLR0917
    case: Case, query: Any, key: Any, value: Any, mask: kw.Mask, ways: dict[str, Callable[[], Any]]
) -> None:
    """Compare the last rows of every way with the definition (all rows would take n x n float64 numbers)."""
    rows = min(case.queries, 64)
    options: dict[str, Any] = {"bias": None, "scale": None, "softcap": None, "sinks": None}
    problem = make_problem(query[:, :, -rows:], key, value, mask=mask, **options)
    truth = torch.from_numpy(reference.evaluate(problem).output)
    for name, way in ways.items():
        result = way()
        output = result.output if isinstance(result, kw.Reading) else result
        error = (output[:, :, -rows:].double() - truth).abs().max().item()
        if not error <= TOLERANCE[case.dtype]:
            raise SystemExit(f"{case.name}: {name} is off by {error:.2g}; nothing is timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and keywise")
    parser.add_argument("--rounds", type=int, default=9, help="times each way runs")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--json", action="store_true", help="print JSON with every sample")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kw.set_threads(options.threads)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "target": kw.explain().target,
        "threads": options.threads,
        "torch": torch.__version__,
        "keywise": kw.__version__,
    }
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        print("| case | GFLOP/s | GB/s | times torch | read / attend |\n| --- | --- | --- | --- | --- |")
    results = []
    for case in CASES:
        if options.only not in case.name:
            continue
        results.append(run(case, options.rounds))
        found = results[-1]
        if not options.json:
            prefills = case.queries > 1
            speed = f"{found['gflop_per_second']:.0f} | " if prefills else f" | {found['gigabytes_per_second']:.1f}"
            print(
                f"| {case.name} | {speed} | {found['times_torch']:.2f} | {found['read_over_attend']:.2f} |", flush=True
            )
    if options.json:
        print(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
