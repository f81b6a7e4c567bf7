"""Forward and backward pass of attention, compared with torch's; gradients are checked first."""

# ruff: noqa: PLC0415  (torch is slow to import: only the processes that measure need it)

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.cases import Case
from benchmarks.inputs import make_inputs
from benchmarks.machine import measure_limits
from benchmarks.markdown import format_number, format_table, format_threads
from benchmarks.processes import run_in_process
from benchmarks.results import Run
from benchmarks.timing import TOLERANCE, TimeBudget, wait_until_idle

KEYWISE, TORCH = "keywise", "torch"
_HEADS = ((8, 8), (9, 3), (32, 8))
_CHECKED_TOKENS = 512
"""Longer cases are checked on as many tokens: torch stores every weight in float64."""
_MAX_OPERATIONS = 4e11


def list_cases() -> list[Case]:
    """Return the cases: whole texts, and sentences as an encoder sees them, 32 at a time.

    Examples
    --------
    >>> from benchmarks.backward import list_cases
    >>> list_cases()[-1].name
    'full bfloat16 B=32 H=12/12 Q=128 N=128 D=64'
    """
    texts = [
        Case(dtype, 1, heads, key_heads, tokens, tokens, dim, causal)
        for dtype in ("float32", "bfloat16")
        for tokens in (512, 2048, 8192)
        for dim in (64, 128)
        for heads, key_heads in _HEADS
        for causal in (False, True)
    ]
    sentences = [
        Case(dtype, 32, 12, 12, tokens, tokens, 64) for dtype in ("float32", "bfloat16") for tokens in (64, 128)
    ]
    return [case for case in texts if case.operations <= _MAX_OPERATIONS] + sentences


def run_cases(cases: Sequence[Case], threads: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """Measure cases, in one process per number of threads.

    Parameters
    ----------
    cases
        The cases.
    threads
        Numbers of threads.
    seconds
        Time for the rounds of one case.
    """
    for count in threads:
        yield from run_in_process(_measure_cases, list(cases), seconds, threads=count)


def _measure_cases(cases: Sequence[Case], seconds: float) -> Iterator[dict[str, Any]]:
    import torch

    limits = measure_limits(torch.get_num_threads())
    for case in cases:
        backends = _prepare_backends(case)
        yield {
            "name": case.name,
            "threads": limits.threads,
            "target": limits.target,
            "operations": case.operations,
            "operations_per_second": limits.operations_per_second["float32"],
            "relative_error": _check_gradients(case),
            "seconds": _time_in_turns(backends, TimeBudget(seconds)),
        }


def _prepare_backends(case: Case) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Return the forward and the backward pass of both, the second called with the result of the first."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from keywise.attention.backward import attend_backward, attend_forward

    inputs = make_inputs(case)
    arrays = (inputs.query, inputs.key, inputs.value)
    gradient = torch.randn(inputs.query.shape, generator=torch.Generator().manual_seed(1)).to(inputs.query.dtype)
    leaves = [array.clone().requires_grad_() for array in arrays]

    def run_torch() -> Any:
        query, key, value = leaves
        return scaled_dot_product_attention(query, key, value, is_causal=case.causal, enable_gqa=case.has_grouped_heads)

    return {
        KEYWISE: (
            lambda: attend_forward(*arrays, mask=inputs.mask),
            lambda forward: attend_backward(
                gradient,
                *arrays,
                output=forward.output,
                lse=forward.lse,
                lse_rest=forward.lse_rest,
                mask=inputs.mask,
            )[:3],
        ),
        TORCH: (run_torch, lambda output: torch.autograd.grad(output, leaves, gradient)),
    }


def _check_gradients(case: Case) -> float:
    """Return the largest error of keywise's gradients of a case, relative to the largest gradient in float64.

    Raises
    ------
    RuntimeError
        The error is larger than that of outputs may be.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    tokens = min(case.keys, _CHECKED_TOKENS)
    small = Case(
        case.dtype, 1, case.query_heads, case.key_heads, tokens, tokens, case.head_dim, case.causal, case.window
    )
    inputs = make_inputs(small)
    gradient = torch.randn(inputs.query.shape, generator=torch.Generator().manual_seed(1)).to(inputs.query.dtype)
    exact = [array.double().requires_grad_() for array in (inputs.query, inputs.key, inputs.value)]
    query, key, value = exact
    output = scaled_dot_product_attention(query, key, value, is_causal=small.causal, enable_gqa=small.has_grouped_heads)
    expected = torch.autograd.grad(output, exact, gradient.double())
    forward, backward = _prepare_backends(small)[KEYWISE]
    errors = [
        float((actual.double() - reference).abs().max() / reference.abs().max())
        for actual, reference in zip(backward(forward()), expected, strict=True)
    ]
    if max(errors) > TOLERANCE[case.dtype]:
        raise RuntimeError(f"{case.name}: gradients are off by {max(errors):.2g} of the largest")
    return max(errors)


def _time_in_turns(
    backends: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]], budget: TimeBudget
) -> dict[str, dict[str, list[float]]]:
    """Time backends in turns; per backend, the seconds of the forward and the backward pass in every round."""
    seconds: dict[str, dict[str, list[float]]] = {name: {"forward": [], "backward": []} for name in backends}
    rounds = 1
    number = 0
    while number <= rounds:
        start = time.perf_counter()
        for name, (forward, backward) in backends.items():
            wait_until_idle()
            begin = time.perf_counter()
            result = forward()
            middle = time.perf_counter()
            backward(result)
            end = time.perf_counter()
            # The first round warms caches and threads.
            if number:
                seconds[name]["forward"].append(middle - begin)
                seconds[name]["backward"].append(end - middle)
        rounds = budget.count_rounds(time.perf_counter() - start)
        number += 1
    return seconds


def format_tables(runs: Sequence[Run]) -> str:
    """Format one table per run and number of threads."""
    parts = []
    for run in runs:
        for threads in dict.fromkeys(result["threads"] for result in run.results):
            members = [result for result in run.results if result["threads"] == threads]
            columns = ["case", "keywise ms", "GFLOP/s", "of limit", "torch ms", "torch ÷ keywise", "backward alone"]
            heading = (
                f"{format_threads(threads)}, target {members[0]['target']}. GFLOP/s are those of the backward pass, "
                "five products; *of limit*: divided by the multiply-adds that registers alone reach."
            )
            parts.append(f"{heading}\n\n{format_table(columns, [_format_case(result) for result in members])}")
    return "\n\n".join(parts)


def _format_case(result: dict[str, Any]) -> list[str]:
    medians = {
        name: {step: statistics.median(values) for step, values in steps.items()}
        for name, steps in result["seconds"].items()
    }
    total = {name: sum(steps.values()) for name, steps in medians.items()}
    # The forward pass has two products, the backward pass five.
    rate = 2.5 * result["operations"] / medians[KEYWISE]["backward"]
    return [
        result["name"],
        format_number(total[KEYWISE] * 1e3),
        format_number(rate / 1e9),
        f"{rate / result['operations_per_second']:.0%}",
        format_number(total[TORCH] * 1e3),
        f"{total[TORCH] / total[KEYWISE]:.2f}",
        f"{medians[TORCH]['backward'] / medians[KEYWISE]['backward']:.2f}",
    ]
