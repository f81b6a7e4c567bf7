"""Plain attention in torch, in any dtype and with every score stored.

The errors of keywise are compared with its error against the float64 definition.
"""

from __future__ import annotations

import torch

from keywise.attention.problem import Problem
from keywise.attention.reference import Result, find_visible_keys


def _multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply as the usual half-precision kernels do: sums in float32, rounded once."""
    return (left.float() @ right.float()).to(left.dtype)


def attend_plainly(problem: Problem, dtype: torch.dtype, *, scale_first: bool) -> Result:
    """Evaluate a problem in `dtype`, scaling the queries or the scores.

    The results are float64 NumPy arrays.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # These tensors are small: waiting for a second thread costs more than it gives.
    try:
        return _attend_plainly(problem, dtype, scale_first)
    finally:
        torch.set_num_threads(threads)


def _attend_plainly(problem: Problem, dtype: torch.dtype, scale_first: bool) -> Result:
    group = problem.shape[1] // problem.shape[2]
    seen = torch.from_numpy(find_visible_keys(problem))
    query, key, value = (
        torch.from_numpy(numbers).to(dtype)
        for numbers in (problem.query.floats("float64"), problem.key_floats("float64"), problem.value_floats("float64"))
    )
    key, value = (tensor.nan_to_num(0, 0, 0).repeat_interleave(group, dim=1) for tensor in (key, value))
    if scale_first:
        score = _multiply(query * problem.scale, key.transpose(2, 3))
    else:
        score = _multiply(query, key.transpose(2, 3)) * problem.scale
    if problem.softcap is not None:
        score = problem.softcap * torch.tanh(score / problem.softcap)
    if problem.bias is not None:
        score = score + torch.from_numpy(problem.bias.floats("float64")).to(torch.float32)
    score = score.masked_fill(~seen, -torch.inf).to(dtype)
    with_sinks = score
    if problem.sinks is not None:
        sinks = torch.from_numpy(problem.sinks).to(dtype)[None, :, None, None]
        with_sinks = torch.cat([score, sinks.expand(*score.shape[:3], 1)], dim=3)
    empty = torch.isneginf(score).all(dim=3)
    weights = with_sinks.softmax(dim=3)[..., : score.shape[3]].masked_fill(empty[..., None], 0)
    lse = with_sinks.logsumexp(dim=3).masked_fill(empty, -torch.inf)
    result = {"output": _multiply(weights, value), "lse": lse, "entropy": torch.special.entr(weights).sum(dim=3)}
    request = problem.stats
    if request is not None:
        top = min(request.top_k, score.shape[3])
        result["top_weights"] = torch.nn.functional.pad(weights.topk(top, dim=3).values, (0, request.top_k - top))
        query_weights = (
            1 if request.query_weights is None else torch.from_numpy(request.query_weights.copy())[..., None].to(dtype)
        )
        result["key_mass"] = (weights * query_weights).sum(dim=2)
        if request.segment_count is not None:
            result["segment_mass"] = torch.zeros((*weights.shape[:3], request.segment_count), dtype=dtype)
            for begin, end, segment in request.segment_ranges.tolist():
                result["segment_mass"][..., segment] += weights[..., begin:end].sum(dim=3)
    return Result(**{name: tensor.to(torch.float64).numpy() for name, tensor in result.items()})
