"""Keys and values in chunks: the same results as in one array, without a copy."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention.operation import Chunks, run
from keywise.attention.problem import make_problem
from keywise.attention.stats_request import StatsRequest
from keywise.errors import DtypeError, ShapeError
from tests.support.cases import DTYPES, MASKS, Case
from tests.support.judging import as_float64, check_output, check_stats, expect_case, make_arguments


def split_arguments(arguments: dict[str, Any], cuts: tuple[int, ...]) -> dict[str, Any]:
    """Split keys and values at some tokens, with every other chunk in memory of its own."""
    cut: dict[str, Any] = dict(arguments)
    for name in ("key", "value"):
        array = arguments[name]
        bounds = itertools.pairwise([0, *cuts, array.shape[2]])
        parts = [array[:, :, begin:end] for begin, end in bounds]
        cut[name] = Chunks(part.contiguous() if number % 2 else part for number, part in enumerate(parts))
    return cut


def check_split_case(case: Case, cuts: tuple[int, ...]) -> None:
    arguments = split_arguments(make_arguments(case), cuts)
    check_output(run(**arguments), expect_case(case))
    check_stats(run(**arguments, stats=StatsRequest(**case.stats_arguments())), expect_case(case))


CUTS = ((33,), (1, 2, 300), (0, 17, 17, 255, 299), tuple(range(7, 300, 23)))
CASES = [
    Case(
        DTYPES[number % 3],
        queries=(1, 3, 60)[number % 3],
        keys=300,
        group=1 + number % 3,
        head_dim=(24, 64)[number % 2],
        value_dim=(0, 9)[number % 2],
        mask=mask,
        bias=("none", "full", "per key", "hiding")[number % 4],
        softcap=(None, 20.0)[number % 2],
        sinks=number % 2 == 0,
        peaky=number % 3 == 0,
        top_k=(8, 1, 40)[number % 3],
        segment_kind=("bounds", "ids", "inner bounds")[number % 3],
        query_weights=number % 2 == 0,
        seed=number,
    )
    for number, mask in enumerate(MASKS)
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.mask)
@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: f"{len(cuts) + 1} chunks")
def test_chunks_equal_the_definition(case: Case, cuts: tuple[int, ...], target: str) -> None:
    check_split_case(case, cuts)


LONG = [
    (Case(batch=1, key_heads=1, group=4, queries=1, keys=5_000, head_dim=64, segment_kind="ids"), (4_000, 4_999)),
    (
        Case("bfloat16", batch=1, key_heads=1, group=8, queries=2, keys=4_100, mask="causal window"),
        (1_024, 1_025, 3_000),
    ),
    (
        Case("float16", batch=1, key_heads=2, queries=150, keys=1_500, mask="causal", segment_kind="bounds"),
        (700, 1_301),
    ),
    (
        Case(batch=1, key_heads=1, queries=49, keys=2_000, head_dim=16, top_k=40, query_weights=True),
        tuple(range(10, 2_000, 9)),
    ),
]


@pytest.mark.parametrize(("case", "cuts"), LONG, ids=lambda item: item.dtype if isinstance(item, Case) else len(item))
def test_long_chunks_equal_the_definition(case: Case, cuts: tuple[int, ...], kernel: str) -> None:
    check_split_case(case, cuts)


@pytest.mark.parametrize("queries", [1, 30])
def test_chunks_are_not_copied_and_bits_do_not_depend_on_threads(queries: int) -> None:
    arguments = split_arguments(Case(queries=queries, key_heads=1, keys=3_000, mask="causal").arguments(), (900, 2_500))
    problem = make_problem(**arguments)
    for chunk, key, value in zip(problem.chunks, arguments["key"], arguments["value"], strict=True):
        assert np.shares_memory(chunk.key.data, key.numpy())
        assert np.shares_memory(chunk.value.data, value.numpy())
    results = []
    for threads in (1, 2, 3, 7):
        kw.set_num_threads(threads)
        stats = run(**arguments, stats=StatsRequest())
        results.append((stats.output, stats.key_mass, stats.top_weights, stats.entropy))
    kw.set_num_threads(None)
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("number", range(len(CASES)), ids=MASKS)
def test_bits_do_not_depend_on_the_chunks(number: int, kernel: str) -> None:
    case = replace(CASES[number], queries=(1, 5, 60, 200)[number % 4], keys=(300, 1_500)[number // 2 % 2])
    arguments, request = case.arguments(), StatsRequest(**case.stats_arguments())
    unsplit, unsplit_stats = run(**arguments), run(**arguments, stats=request)
    cuts = sorted(np.random.default_rng(number).integers(0, case.keys, 4).tolist())
    for places in (cuts, range(3, case.keys, 41), (256, 257)):
        cut = split_arguments(arguments, tuple(places))
        assert torch.equal(run(**cut), unsplit)
        actual = run(**cut, stats=request)
        for name in ("output", "lse", "entropy", "top_keys", "top_weights", "key_mass", "segment_mass"):
            np.testing.assert_array_equal(
                as_float64(getattr(actual, name)), as_float64(getattr(unsplit_stats, name)), err_msg=name
            )


def test_hidden_nan_in_one_chunk_does_not_leak(target: str) -> None:
    arguments = Case(batch=1, queries=2, keys=40).arguments()
    poisoned = {name: arguments[name].clone() for name in ("key", "value")}
    for name in ("key", "value"):
        poisoned[name][:, :, 20:25] = torch.nan
    mask = kw.Mask(starts=[25])
    expected = kw.attend(**{**arguments, "mask": mask})
    actual = run(**split_arguments({**arguments, **poisoned, "mask": mask}, (23, 30)))
    np.testing.assert_allclose(as_float64(actual), as_float64(expected), atol=1e-6)


def test_chunks_that_do_not_fit_are_refused() -> None:
    query, chunk = np.ones((1, 2, 3, 4), np.float32), np.ones((1, 2, 5, 4), np.float32)
    with pytest.raises(ShapeError, match="as many chunks as key"):
        run(query, Chunks([chunk, chunk]), Chunks([chunk]))
    with pytest.raises(ShapeError, match="as many chunks as key"):
        run(query, Chunks(), Chunks())
    with pytest.raises(ShapeError, match="as many chunks as key"):
        run(query, chunk, Chunks([chunk]))
    with pytest.raises(ShapeError, match="key chunk 1 must have the heads"):
        run(query, Chunks([chunk, chunk[:, :1]]), Chunks([chunk, chunk[:, :1]]))
    with pytest.raises(ShapeError, match="value chunk 1 must have the heads"):
        run(query, Chunks([chunk, chunk]), Chunks([chunk, chunk[..., :3]]))
    with pytest.raises(DtypeError, match="float16"):
        run(query, Chunks([chunk, chunk.astype(np.float16)]), Chunks([chunk, chunk]))


def test_chunks_without_tokens_change_nothing(target: str) -> None:
    arguments = Case(queries=3, keys=20).arguments()
    empty, none = arguments["key"][:, :, :0], Chunks([arguments["key"][:, :, :0]] * 2)
    unsplit = run(
        **{
            **arguments,
            "key": Chunks([empty, arguments["key"], empty]),
            "value": Chunks([empty, arguments["value"], empty]),
        }
    )
    assert torch.equal(unsplit, kw.attend(**arguments))
    assert not run(**{**arguments, "key": none, "value": none}).any()
