"""Gradients of random problems, compared with the definition: errors are at most twice those of plain arithmetic.

Plain arithmetic is torch's autograd of plain attention in the problem's dtype (plain.py). Both errors are measured
against the definition in float64. As in judging.py, a floor is added for results that plain arithmetic computes exactly
by chance. `python -m tests.support.gradients --count 2000` compares many problems on every target.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import keywise as kw
from keywise.attention.backward import Dropout, Gradients, StatsGradients, StatsRequest, attend_backward, attend_forward
from keywise.attention.gradients import BackwardCall
from keywise.attention.problem import Problem, make_problem
from keywise.attention.reference import compute_scores, compute_softmax
from keywise.attention.reference_backward import GradientResult, evaluate_backward
from tests.support.cases import BIASES, DTYPES, LAYOUTS, MASKS, SEGMENTS, Case, limit_size
from tests.support.judging import SINGLE_STEP, as_float64, find_largest_error, find_largest_size
from tests.support.plain import attend_tensors, make_tensors

STATISTICS = ("lse", "entropy", "key_mass", "segment_mass")


@dataclass(frozen=True)
class GradientCase:
    """A problem, and which of its results have gradients; equal cases have equal arrays."""

    case: Case
    statistics: bool = False
    dropout: float = 0.0

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the forward pass."""
        stats = StatsRequest(**self.case.stats_arguments()) if self.statistics else None
        dropout = Dropout(self.dropout, seed=self.case.seed + 2**40, offset=3) if self.dropout else None
        return {**self.case.arguments(), "stats": stats, "dropout": dropout}

    def gradients(self) -> tuple[torch.Tensor, StatsGradients]:
        """Return gradients of the output and of the statistics."""
        random_numbers = np.random.default_rng([self.case.seed, 2])
        case = self.case
        heads = case.key_heads * case.group
        output = random_numbers.standard_normal((case.batch, heads, case.queries, case.value_dim or case.head_dim))
        output_gradient = torch.from_numpy(output).to(getattr(torch, case.dtype))
        if not self.statistics:
            return output_gradient, StatsGradients()

        def draw(*shape: int) -> np.ndarray:
            return random_numbers.standard_normal(shape).astype(np.float32)

        rows = (case.batch, heads, case.queries)
        ranges = make_problem(**self.arguments()).stats
        assert ranges is not None
        segments = None if ranges.segment_count is None else draw(*rows, ranges.segment_count)
        return output_gradient, StatsGradients(draw(*rows), draw(*rows), draw(*rows[:2], case.keys), segments)

    def needs(self) -> list[str]:
        """Return the arguments that have gradients."""
        return [*("query", "key", "value"), *(["bias"] if self.case.bias != "none" else []), *self._sinks()]

    def _sinks(self) -> list[str]:
        return ["sinks"] if self.case.sinks else []


def compute_gradients(gradient_case: GradientCase) -> Gradients:
    """Run both passes on the current target."""
    arguments = gradient_case.arguments()
    output_gradient, stats_gradients = gradient_case.gradients()
    forward = attend_forward(**arguments)
    saved = {} if forward.stats is None else {"entropy": forward.stats.entropy}
    if stats_gradients.segment_mass is not None:
        saved["segment_mass"] = forward.stats.segment_mass
    return attend_backward(
        output_gradient,
        **arguments,
        output=forward.output,
        lse=forward.lse,
        lse_rest=forward.lse_rest,
        stats_gradients=stats_gradients,
        needs=gradient_case.needs(),
        **saved,
    )


def sum_to_shape(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum the gradient of a broadcast bias over the axes that the bias does not have."""
    sizes = (1,) * (4 - len(shape)) + tuple(shape)
    summed = tuple(axis for axis in range(4) if sizes[axis] == 1)
    return gradient.sum(axis=summed, keepdims=True).reshape(shape)


def compute_plain_gradients(
    problem: Problem, gradient_case: GradientCase, dtype: torch.dtype, scale_first: bool
) -> dict[str, np.ndarray]:
    """Return the gradients of plain attention in `dtype` by autograd, that of the bias [B, Hq, Q, N]."""
    output_gradient, stats_gradients = gradient_case.gradients()
    tensors = {name: tensor.requires_grad_() for name, tensor in make_tensors(problem, dtype).items()}
    results = attend_tensors(problem, tensors, dtype, scale_first)
    loss = (results["output"].float() * output_gradient.float()).sum()
    for name in STATISTICS:
        gradient = getattr(stats_gradients, name)
        if gradient is not None:
            result = results[name].float()
            used = torch.isfinite(result)
            loss = loss + (result[used] * torch.from_numpy(gradient)[used]).sum()
    names = list(tensors)
    gradients = torch.autograd.grad(loss, [tensors[name] for name in names], allow_unused=True)
    found = dict(zip(names, gradients, strict=True))
    zero = {name: torch.zeros_like(tensors[name]) if found[name] is None else found[name] for name in names}
    return {name: tensor.to(torch.float64).numpy() for name, tensor in zero.items()}


def evaluate(problem: Problem, gradient_case: GradientCase) -> GradientResult:
    """Return the gradients of the definition."""
    output_gradient, stats_gradients = gradient_case.gradients()
    floats = output_gradient.to(torch.float64).numpy()
    unused = np.zeros(())
    return evaluate_backward(problem, BackwardCall(floats, unused, unused, None, None, None, stats_gradients))


def measure_sizes(problem: Problem, gradient_case: GradientCase) -> dict[str, np.ndarray]:
    """Return the largest terms that each gradient is a sum of: errors are relative to them.

    Where a query sees one key, for example, the gradient of the score is a difference of equal numbers.
    """
    output_gradient, stats_gradients = gradient_case.gradients()
    softmax = compute_softmax(problem)
    group = problem.shape.query_heads // problem.shape.key_heads
    value, key = (
        np.repeat(np.nan_to_num(floats, nan=0.0, posinf=0.0, neginf=0.0), group, axis=1)
        for floats in (problem.value_floats(np.float64), problem.key_floats(np.float64))
    )
    weight_gradient = np.abs(output_gradient.to(torch.float64).numpy() @ value.swapaxes(2, 3) * softmax.dropout_factors)
    for gradient in stats_gradients:
        if gradient is not None:
            weight_gradient = weight_gradient + np.abs(gradient).max(initial=0.0)
    weights = softmax.weights
    mean = (weights * weight_gradient).sum(axis=3, keepdims=True)
    score = np.where(softmax.hidden, 0.0, weights * (weight_gradient + mean))
    query = np.abs(problem.query.floats(np.float64))
    value_gradient = (weights * softmax.dropout_factors).swapaxes(2, 3) @ np.abs(output_gradient.double().numpy())
    sizes = {
        "query": np.abs(problem.scale) * score @ np.abs(key),
        "key": np.abs(problem.scale) * score.swapaxes(2, 3) @ query,
        "value": value_gradient,
        "bias": score,
        "sinks": mean.sum(axis=(0, 2, 3)),
    }
    return {name: np.asarray(size) for name, size in sizes.items()}


def find_failures(gradient_case: GradientCase, targets: tuple[str, ...]) -> list[str]:
    """Return what is wrong with the gradients of a problem, on each of these targets."""
    problem = make_problem(**gradient_case.arguments())
    expected = evaluate(problem, gradient_case)
    sizes = measure_sizes(problem, gradient_case)
    dtype = getattr(torch, problem.dtype)
    plain = [compute_plain_gradients(problem, gradient_case, dtype, first) for first in (False, True)]
    score_step = SINGLE_STEP * (4 + _find_largest_score(problem))
    failures = []
    for target in targets:
        with kw.using(target):
            gradients = compute_gradients(gradient_case)
        for name in gradient_case.needs():
            actual = as_float64(getattr(gradients, name))
            reference, size, baselines = getattr(expected, name), sizes[name], [each[name] for each in plain]
            if name == "bias":
                reference, size = (sum_to_shape(each, actual.shape) for each in (reference, size))
                baselines = [sum_to_shape(each, actual.shape) for each in baselines]
            floor = max(float(torch.finfo(dtype).eps), score_step) * find_largest_size(size)
            plain_error = max(find_largest_error(baseline, reference) for baseline in baselines)
            error = find_largest_error(actual, reference)
            if not error <= 2 * plain_error + floor:
                failures.append(
                    f"{target}: {name} is wrong by {error:.3g}, plain arithmetic by {plain_error:.3g}, "
                    f"floor {floor:.3g}"
                )
    return failures


def _find_largest_score(problem: Problem) -> float:
    score = compute_scores(problem)
    return float(np.abs(score[np.isfinite(score)]).max(initial=0.0))


def make_random_case(seed: int) -> GradientCase:
    """Return a problem of random sizes and options."""
    chooser = random.Random(seed)
    case = Case(
        dtype=chooser.choice(DTYPES),
        batch=chooser.randint(1, 3),
        key_heads=chooser.randint(1, 3),
        group=chooser.randint(1, 4),
        queries=chooser.choice([1, 2, 7, 48, 49, 100, 250]),
        keys=chooser.choice([1, 5, 16, 33, 100, 256, 300, 520]),
        head_dim=chooser.choice([1, 3, 8, 16, 40, 64, 80, 128]),
        value_dim=chooser.choice([0, 0, 1, 5, 16, 64, 72]),
        layout=chooser.choice(LAYOUTS),
        mask=chooser.choice(MASKS),
        bias=chooser.choice(["none", *BIASES]),
        scale=chooser.choice([None, None, 0.3, -0.2, 0.0]),
        softcap=chooser.choice([None, None, 0.7, 20.0]),
        sinks=chooser.random() < 0.3,
        peaky=chooser.random() < 0.5,
        top_k=0,
        segment_kind=chooser.choice(SEGMENTS),
        query_weights=chooser.random() < 0.5,
        seed=seed,
    )
    small = limit_size(case, numbers=6_000_000)
    return GradientCase(small, statistics=chooser.random() < 0.5, dropout=chooser.choice([0.0, 0.0, 0.1, 0.6]))


def main() -> None:
    """Compare problems from `--first` on and print failures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    targets = kw.targets()[:-1]
    failed = 0
    for seed in range(options.first, options.first + options.count):
        gradient_case = make_random_case(seed)
        failures = find_failures(gradient_case, targets)
        failed += bool(failures)
        if failures:
            sys.stdout.write(f"{gradient_case}\n  " + "\n  ".join(failures) + "\n")
    sys.stdout.write(f"{options.count - failed} of {options.count} problems passed on {', '.join(targets)}\n")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
