"""Plain attention in torch, in any dtype and with every score stored.

The errors of keywise are compared with its error against the float64 definition.
"""

from __future__ import annotations

import torch

from keywise.attention.dropout import compute_dropout_factors
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
    results = attend_tensors(problem, make_tensors(problem, dtype), dtype, scale_first)
    return Result(**{name: tensor.to(torch.float64).numpy() for name, tensor in results.items()})


def make_tensors(problem: Problem, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return query, key, value, bias and sinks as tensors in `dtype`, the bias in float32 and broadcast."""
    arrays = {
        "query": problem.query.floats("float64"),
        "key": problem.key_floats("float64"),
        "value": problem.value_floats("float64"),
        "sinks": problem.sinks,
    }
    tensors = {name: torch.from_numpy(array.copy()).to(dtype) for name, array in arrays.items() if array is not None}
    for name in ("key", "value"):
        tensors[name] = tensors[name].nan_to_num(0, 0, 0)
    if problem.bias is not None:
        tensors["bias"] = torch.from_numpy(problem.bias.floats("float64").copy()).to(torch.float32)
    return tensors


def attend_tensors(
    problem: Problem, tensors: dict[str, torch.Tensor], dtype: torch.dtype, scale_first: bool
) -> dict[str, torch.Tensor]:
    """Return the output and the statistics of a problem, with the gradients that autograd gives them."""
    group = problem.shape[1] // problem.shape[2]
    seen = torch.from_numpy(find_visible_keys(problem))
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
    if scale_first:
        score = _multiply(query * problem.scale, key.transpose(2, 3))
    else:
        score = _multiply(query, key.transpose(2, 3)) * problem.scale
    if problem.softcap is not None:
        score = problem.softcap * torch.tanh(score / problem.softcap)
    if "bias" in tensors:
        score = score + tensors["bias"]
    score = score.masked_fill(~seen, -torch.inf).to(dtype)
    empty = torch.isneginf(score).all(dim=3)
    # A softmax of nothing but -inf has gradients of NaN.
    score = score.masked_fill(empty[..., None], 0)
    with_sinks = score
    if "sinks" in tensors:
        sinks = tensors["sinks"][None, :, None, None]
        with_sinks = torch.cat([score, sinks.expand(*score.shape[:3], 1)], dim=3)
    weights = with_sinks.softmax(dim=3)[..., : score.shape[3]].masked_fill(empty[..., None], 0)
    kept = weights
    if problem.dropout is not None:
        kept = weights * torch.from_numpy(compute_dropout_factors(problem.dropout, problem.shape)).to(dtype)
    lse = with_sinks.logsumexp(dim=3).masked_fill(empty, -torch.inf)
    # The derivative of entr is infinite at 0.
    logarithm = weights.clamp_min(torch.finfo(dtype).tiny).log()
    result = {"output": _multiply(kept, value), "lse": lse, "entropy": -(weights * logarithm).sum(dim=3)}
    request = problem.stats
    if request is not None:
        top = min(request.top_k, score.shape[3])
        result["top_weights"] = torch.nn.functional.pad(weights.topk(top, dim=3).values, (0, request.top_k - top))
        query_weights = (
            1 if request.query_weights is None else torch.from_numpy(request.query_weights.copy())[..., None].to(dtype)
        )
        result["key_mass"] = (weights * query_weights).sum(dim=2)
        if request.segment_count is not None:
            masses = [torch.zeros_like(lse)] * request.segment_count
            for begin, end, segment in request.segment_ranges.tolist():
                masses[segment] = masses[segment] + weights[..., begin:end].sum(dim=3)
            result["segment_mass"] = torch.stack(masses, dim=3) if masses else torch.zeros((*lse.shape, 0), dtype=dtype)
    return result
