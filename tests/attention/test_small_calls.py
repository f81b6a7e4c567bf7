"""Plain tensors are read in place, with the bits of the same arrays through NumPy, and unreadable ones are refused."""

from __future__ import annotations

import dataclasses
import gc
import sys
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention.arrays import as_host_array
from keywise.attention.call import Chunks, make_call
from keywise.attention.operation import run
from keywise.attention.stats_request import StatsRequest
from tests.support.cases import DTYPES, Case

MASKS = {
    "none": None,
    "causal": kw.Mask(causal=True),
    "window": kw.Mask(window=(3, 1)),
    "past any sequence": kw.Mask(causal=True, window=(10**12, 10**12), keep_first=10**12),
    "keep_first": kw.Mask(causal=True, window=(2, None), keep_first=2),
}
SIZES = [(1, 1), (1, 40), (4, 4), (17, 300), (64, 64), (130, 130)]


def as_host(array: Any) -> Any:
    return Chunks(map(as_host, array)) if isinstance(array, Chunks) else as_host_array("array", array)


def run_through_numpy(query: Any, key: Any, value: Any, **options: Any) -> Any:
    return run(as_host(query), as_host(key), as_host(value), **options)


def are_read_in_place(query: Any, key: Any, value: Any) -> tuple[bool, ...]:
    """Return whether kernels read each array of a call as a plain tensor, without NumPy."""
    inputs = make_call(query, key, value).inputs
    arrays = (inputs.query_array, *inputs.key_arrays, *inputs.value_arrays)
    return tuple(type(array) is torch.Tensor for array in arrays)


def bits(tensor: torch.Tensor) -> Any:
    return tensor.view(torch.uint8).numpy()


def check_same_bits(actual: torch.Tensor, expected: torch.Tensor, name: str = "output") -> None:
    assert type(actual) is type(expected) is torch.Tensor, name
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), name
    np.testing.assert_array_equal(bits(actual.flatten()), bits(expected.flatten()), err_msg=name)


def check_same_stats(actual: kw.AttentionStats, expected: kw.AttentionStats) -> None:
    for field in dataclasses.fields(kw.AttentionStats):
        of_actual, of_expected = getattr(actual, field.name), getattr(expected, field.name)
        if of_expected is None:
            assert of_actual is None, field.name
        else:
            check_same_bits(of_actual, of_expected, field.name)


@pytest.fixture
def query() -> torch.Tensor:
    return torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("queries", "keys"), SIZES)
def test_plain_tensors_have_the_bits_of_the_same_arrays_through_numpy(
    target: str, dtype: str, mask: str, queries: int, keys: int
) -> None:
    case = Case(dtype, queries=queries, keys=keys, head_dim=24, value_dim=20, group=3)
    arguments = [case.arguments()[name] for name in ("query", "key", "value")]
    assert all(are_read_in_place(*arguments))
    for scale in (None, 0.3, -0.3):
        for transposed in (False, True):
            options = {"mask": MASKS[mask], "scale": scale, "transposed_output": transposed}
            output = run(*arguments, **options)
            assert output.is_contiguous()
            check_same_bits(output, run_through_numpy(*arguments, **options))


STATS = {
    "all": StatsRequest(),
    "little": StatsRequest(top_k=0, key_mass=False),
    "queries": StatsRequest(top_k=3, queries=(1, 3)),
    "no queries": StatsRequest(queries=(2, 2)),
    "bounds": StatsRequest(top_k=40, segment_bounds=[0, 3, 10]),
    "ids": StatsRequest(segment_ids=torch.tensor([0, 0, -1, 2, 2, 2, 0, 1, 1, -1, 4, 4])),
    "query weights": StatsRequest(query_weights=np.array([0.5, 0.0, 2.0, 1.0])),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stats", STATS)
def test_statistics_of_plain_tensors_have_the_bits_of_the_same_arrays_through_numpy(
    target: str, dtype: str, stats: str
) -> None:
    case = Case(dtype, queries=4, keys=12, head_dim=24, value_dim=20, group=3)
    arguments = [case.arguments()[name] for name in ("query", "key", "value")]
    options = {"mask": kw.Mask(causal=True), "stats": STATS[stats], "transposed_output": True}
    check_same_stats(run(*arguments, **options), run_through_numpy(*arguments, **options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", [(12,), (5, 7), (1, 10, 1)])
def test_chunks_of_plain_tensors_have_the_bits_of_the_same_arrays_through_numpy(
    target: str, dtype: str, cuts: tuple[int, ...]
) -> None:
    case = Case(dtype, queries=4, keys=12, head_dim=24, value_dim=20, group=3, peaky=True)
    query, key, value = (case.arguments()[name] for name in ("query", "key", "value"))
    chunks = [Chunks(array.split(cuts, dim=2)) for array in (key, value)]
    assert all(are_read_in_place(query, *chunks))
    mask = kw.Mask(causal=True, window=(9, None))
    options = {"mask": mask, "stats": StatsRequest(top_k=3, segment_bounds=[0, 6, 12])}
    check_same_stats(run(query, *chunks, **options), run_through_numpy(query, *chunks, **options))
    check_same_bits(run(query, *chunks, mask=mask), run(query, key, value, mask=mask))


def test_chunks_of_different_array_types_equal_one_array(query: torch.Tensor) -> None:
    expected = kw.attend(query, torch.cat([query, query], 2), torch.cat([query, query], 2))
    empty = query[:, :, :0]
    for odd in (query.numpy(), query.mT.contiguous().mT, as_host(query)):
        for chunks in ((odd, query), (query, odd), (odd, odd), (empty, query, odd), (query, empty, odd, empty)):
            output = run(query, Chunks(chunks), Chunks(chunks))
            check_same_bits(output, expected)
            assert are_read_in_place(query, Chunks(chunks), Chunks(chunks))[0]


def test_chunks_that_do_not_fit_each_other_are_refused(query: torch.Tensor) -> None:
    whole = Chunks([query, query])
    for odd in (query[:, :1], query[..., :7], query.half(), query[0], query.mT):
        for chunks in ((Chunks([odd, query]), whole), (whole, Chunks([query, odd])), (Chunks([query, odd]),) * 2):
            for stats in (None, StatsRequest()):
                with pytest.raises((kw.ShapeError, kw.DtypeError), match="chunk"):
                    run(query, *chunks, stats=stats)
    for chunks in ((whole, query), (query, whole), (whole, Chunks([query])), (Chunks(), Chunks())):
        with pytest.raises(kw.ShapeError, match="as many chunks as key"):
            run(query, *chunks)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "cache", "expanded", "strided"])
def test_layouts_are_read_in_place_unless_the_last_axis_has_gaps(layout: str) -> None:
    arguments = [Case(layout=layout).arguments()[name] for name in ("query", "key", "value")]
    assert all(are_read_in_place(*arguments)) == (layout != "strided")
    check_same_bits(run(*arguments), run_through_numpy(*arguments))


class Subclass(torch.Tensor):
    pass


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    buffer = np.empty(tensor.numel() * 4 + 1, np.uint8)
    shifted = buffer[1:].view(np.float32).reshape(tensor.shape)
    shifted[...] = tensor.numpy()
    return torch.from_numpy(shifted)


CONVERTED = {
    "a subclass": lambda x: x.as_subclass(Subclass),
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "gaps": lambda x: torch.stack([x, x], -1)[..., 0],
    "off its boundary": unaligned,
    "NumPy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("change", CONVERTED)
@pytest.mark.parametrize("which", range(3))
def test_arrays_that_are_no_plain_tensors_are_read_through_numpy(query: torch.Tensor, change: str, which: int) -> None:
    arguments: list[Any] = [query, query, query]
    arguments[which] = CONVERTED[change](query)
    assert [not plain for plain in are_read_in_place(*arguments)] == [number == which for number in range(3)]
    output = kw.attend(*arguments)
    expected = kw.attend(query, query, query)
    np.testing.assert_array_equal(np.asarray(output), expected.numpy())
    assert isinstance(output, np.ndarray if change == "NumPy" and which == 0 else torch.Tensor)


REFUSED = {
    "integers": (lambda x: x.int(), kw.DtypeError),
    "3 axes": (lambda x: x[0], kw.ShapeError),
    "5 axes": (lambda x: x[None], kw.ShapeError),
    "no axis": (lambda _: torch.tensor(1.0), kw.ShapeError),
    "no head_dim": (lambda x: x[..., :0], kw.ShapeError),
    "sparse": (lambda x: x.to_sparse(), kw.DtypeError),
    "on no device": (lambda x: x.to("meta"), kw.TargetError),
    "nothing": (lambda _: None, kw.DtypeError),
    "negated": (torch._neg_view, RuntimeError),
}


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize("which", range(3))
def test_unreadable_arrays_are_refused(query: torch.Tensor, change: str, which: int) -> None:
    arguments: list[Any] = [query, query, query]
    make, error = REFUSED[change]
    arguments[which] = make(query)
    with pytest.raises(error) as caught:
        kw.attend(*arguments)
    if issubclass(error, kw.KeywiseError):
        assert caught.value.argument == ("query", "key", "value")[which]


@pytest.mark.parametrize("which", range(3))
def test_float64_beside_float32_is_refused(query: torch.Tensor, which: int) -> None:
    arguments = [query, query, query]
    arguments[which] = query.double()
    with pytest.raises(kw.DtypeError):
        kw.attend(*arguments)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_tensors_without_elements_give_results_without_elements_or_zero(
    query: torch.Tensor, axes: tuple[int, ...]
) -> None:
    shape = [0 if axis in axes else size for axis, size in enumerate(query.shape)]
    empty = torch.empty(shape)
    if 1 in axes:  # no heads
        with pytest.raises(kw.ShapeError, match="heads"):
            kw.attend(empty, empty, empty)
        return
    assert kw.attend(empty, empty, empty).shape == empty.shape
    if axes == (2,):
        assert not kw.attend(query, empty, empty).any()
        assert kw.attend(empty, query, query).shape == empty.shape


def test_shapes_that_do_not_fit_are_refused(query: torch.Tensor) -> None:
    three = torch.cat([query, query[:, :1]], 1)
    for arguments, argument in (
        ((query, query.expand(2, -1, -1, -1), query), "key"),
        ((query, query[..., :7], query), "key"),
        ((query, query[:, :, :4], query), "value"),
        ((query, query[:, :1], query), "value"),
        ((three, query, query), "query"),
        ((query, three, three), "query"),
        ((query, query.half(), query), "key"),
        ((query, query, query.bfloat16()), "value"),
    ):
        with pytest.raises((kw.ShapeError, kw.DtypeError)) as caught:
            kw.attend(*(tensor.contiguous() for tensor in arguments))
        assert caught.value.argument == argument, [list(tensor.shape) for tensor in arguments]


def test_masks_with_arrays_have_the_bits_of_the_same_arrays_through_numpy(query: torch.Tensor) -> None:
    arrays = (kw.Mask(lengths=[3]), kw.Mask(starts=[1]), kw.Mask(allowed=np.ones((5, 5), bool)), np.ones((5, 5), bool))
    for mask in arrays:
        check_same_bits(run(query, query, query, mask=mask), run_through_numpy(query, query, query, mask=mask))
    for wrong in ("causal", False):
        with pytest.raises(kw.DtypeError, match="mask"):
            kw.attend(query, query, query, mask=wrong)


def test_finite_scales_are_accepted_and_others_refused(query: torch.Tensor) -> None:
    for scale in (1, np.float32(0.5), -0.25):
        expected = run_through_numpy(query, query, query, scale=float(scale))
        check_same_bits(kw.attend(query, query, query, scale=scale), expected)
    for scale in (True, float("nan"), float("inf"), 1e31, "1"):
        with pytest.raises((kw.OptionError, kw.DtypeError), match="scale"):
            kw.attend(query, query, query, scale=scale)


def test_tensors_that_require_gradients_are_refused_unless_under_no_grad(query: torch.Tensor) -> None:
    expected = kw.attend(query, query, query)
    wants = query.clone().requires_grad_()
    for arguments in ((wants, query, query), (query, wants, query), (query, query, wants)):
        with pytest.raises(kw.TargetError, match="must not require gradients"):
            kw.attend(*arguments)
        with torch.no_grad():
            assert torch.equal(kw.attend(*arguments), expected)


def test_negated_views_are_refused_as_by_numpy(query: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match="negative bit"):
        kw.attend(torch._neg_view(query), query, query)


def test_result_shares_no_memory_with_later_results(query: torch.Tensor) -> None:
    first = kw.attend(query, query, query)
    kept = first.clone()
    second = kw.attend(-query, query, query)
    assert torch.equal(first, kept)
    assert first.data_ptr() != second.data_ptr()
    first += 1
    assert torch.equal(first, kept + 1)


def test_arrays_are_released_after_calls_and_errors(query: torch.Tensor) -> None:
    arrays = (query, query.numpy().copy(), as_host(query.clone()))
    counts = [sys.getrefcount(array) for array in arrays]
    for array in arrays:
        for _ in range(10):
            kw.attention_stats(array, array, array)
            with suppress(kw.ShapeError):
                kw.attend(array, array, query[0])
    del array
    gc.collect()  # the error's traceback holds the arguments
    assert [sys.getrefcount(array) for array in arrays] == counts


def test_bad_environment_variable_raises_at_the_call(query: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYWISE_THREADS", "many")
    with pytest.raises(kw.OptionError, match=r"KEYWISE_THREADS must be an integer .* got 'many'"):
        kw.attend(query, query, query)
