"""The short way of a plain call: the bits of the long one, and aside wherever an argument needs a closer look."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention import kernels
from keywise.attention.arrays import as_host_array
from keywise.attention.operation import run
from keywise.attention.problem import Chunks
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


def short(query: Any, key: Any, value: Any, **options: Any) -> Any:
    return kernels.attend(query, key, value, **{"mask": None, "scale": None, "transposed_output": False, **options})


def long(query: Any, key: Any, value: Any, **options: Any) -> Any:
    """Go the long way: the short one takes nothing that is taken already."""
    return run(*(taken(array) for array in (query, key, value)), **options)


def taken(array: Any) -> Any:
    return Chunks(map(taken, array)) if isinstance(array, Chunks) else as_host_array("array", array)


def bits(tensor: torch.Tensor) -> Any:
    return tensor.view(torch.uint8).numpy()


@pytest.fixture
def query() -> torch.Tensor:
    return torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("queries", "keys"), SIZES)
def test_the_short_way_has_the_bits_of_the_long_one(
    target: str, dtype: str, mask: str, queries: int, keys: int
) -> None:
    case = Case(dtype, queries=queries, keys=keys, head_dim=24, value_dim=20, group=3)
    arguments = [case.arguments()[name] for name in ("query", "key", "value")]
    for scale in (None, 0.3, -0.3):
        for transposed in (False, True):
            options = {"mask": MASKS[mask], "scale": scale, "transposed_output": transposed}
            right = long(*arguments, **options)
            got = run(*arguments, **options)
            assert type(got) is torch.Tensor
            assert got.is_contiguous()
            assert got.dtype == arguments[0].dtype
            np.testing.assert_array_equal(bits(got), bits(right))
            taken = short(*arguments, **options)
            assert (taken is None) == (target == "reference")
            if taken is not None:
                np.testing.assert_array_equal(bits(taken), bits(right))


READINGS = {
    "all": StatsRequest(),
    "little": StatsRequest(top_k=0, key_mass=False),
    "rows": StatsRequest(top_k=3, queries=(1, 3)),
    "no rows": StatsRequest(queries=(2, 2)),
    "bounds": StatsRequest(top_k=40, segment_bounds=[0, 3, 10]),
    "ids": StatsRequest(segment_ids=torch.tensor([0, 0, -1, 2, 2, 2, 0, 1, 1, -1, 4, 4])),
    "row weights": StatsRequest(query_weights=np.array([0.5, 0.0, 2.0, 1.0])),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("want", READINGS)
def test_readings_take_the_short_way_too(target: str, dtype: str, want: str) -> None:
    case = Case(dtype, queries=4, keys=12, head_dim=24, value_dim=20, group=3)
    arguments = [case.arguments()[name] for name in ("query", "key", "value")]
    options = {"mask": kw.Mask(causal=True), "reading": READINGS[want], "transposed_output": True}
    right, got, taken = long(*arguments, **options), run(*arguments, **options), short(*arguments, **options)
    assert (taken is None) == (target == "reference")
    for number, field in enumerate(dataclasses.fields(kw.AttentionStats)):
        expected = getattr(right, field.name)
        for found in (getattr(got, field.name), *([] if taken is None else [taken[number]])):
            assert type(found) is type(expected), field.name
            if expected is not None:
                assert (found.dtype, found.shape) == (expected.dtype, expected.shape), field.name
                np.testing.assert_array_equal(bits(found.flatten()), bits(expected.flatten()), err_msg=field.name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", [(12,), (5, 7), (1, 10, 1)])
def test_pieces_take_the_short_way_too(target: str, dtype: str, cuts: tuple[int, ...]) -> None:
    case = Case(dtype, queries=4, keys=12, head_dim=24, value_dim=20, group=3, peaky=True)
    query, key, value = (case.arguments()[name] for name in ("query", "key", "value"))
    chunks = [Chunks(array.split(cuts, dim=2)) for array in (key, value)]
    options = {
        "mask": kw.Mask(causal=True, window=(9, None)),
        "reading": StatsRequest(top_k=3, segment_bounds=[0, 6, 12]),
    }
    right, got = long(query, *chunks, **options), short(query, *chunks, **options)
    assert (got is None) == (target == "reference")
    for number, field in enumerate(dataclasses.fields(kw.AttentionStats)) if got else ():
        expected = bits(getattr(right, field.name).flatten())
        np.testing.assert_array_equal(bits(got[number].flatten()), expected, err_msg=field.name)
    if got:
        one = short(query, key, value, mask=options["mask"])
        np.testing.assert_array_equal(bits(short(query, *chunks, mask=options["mask"])), bits(one))


def test_pieces_that_need_a_closer_look_go_the_long_way(query: torch.Tensor) -> None:
    whole = Chunks([query, query])
    for odd in (query[:, :, :0], query[:, :1], query[..., :7], query.half(), query[0], query.numpy(), query.mT):
        for chunks in ((Chunks([odd, query]), whole), (whole, Chunks([query, odd])), (Chunks([query, odd]),) * 2):
            assert short(query, *chunks) is None
            assert short(query, *chunks, stats=StatsRequest()) is None
    for chunks in ((whole, query), (query, whole), (whole, Chunks([query])), (Chunks(), Chunks())):
        assert short(query, *chunks) is None


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "cache", "expanded", "strided"])
def test_layouts_are_read_in_place_unless_the_last_axis_has_gaps(layout: str) -> None:
    arguments = [Case(layout=layout).arguments()[name] for name in ("query", "key", "value")]
    got = short(*arguments)
    assert (got is None) == (layout == "strided")
    np.testing.assert_array_equal(bits(run(*arguments)), bits(long(*arguments)))


class Subclass(torch.Tensor):
    pass


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    buffer = np.empty(tensor.numel() * 4 + 1, np.uint8)
    shifted = buffer[1:].view(np.float32).reshape(tensor.shape)
    shifted[...] = tensor.numpy()
    return torch.from_numpy(shifted)


ASIDE = {
    "float64": lambda x: x.double(),
    "whole numbers": lambda x: x.int(),
    "3 axes": lambda x: x[0],
    "5 axes": lambda x: x[None],
    "no batch": lambda x: x[:0],
    "no heads": lambda x: x[:, :0],
    "no tokens": lambda x: x[:, :, :0],
    "no head_dim": lambda x: x[..., :0],
    "a subclass": lambda x: x.as_subclass(Subclass),
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "gaps": lambda x: torch.stack([x, x], -1)[..., 0],
    "off its boundary": unaligned,
    "sparse": lambda x: x.to_sparse(),
    "on no device": lambda x: x.to("meta"),
    "NumPy": lambda x: x.numpy(),
    "nothing": lambda _: None,
    "negated": torch._neg_view,
}


@pytest.mark.parametrize("change", ASIDE)
@pytest.mark.parametrize("which", range(3))
def test_what_needs_a_closer_look_goes_the_long_way(query: torch.Tensor, change: str, which: int) -> None:
    arguments: list[Any] = [query, query, query]
    arguments[which] = ASIDE[change](query)
    assert short(*arguments) is None


def test_shapes_that_do_not_fit_go_the_long_way(query: torch.Tensor) -> None:
    three = torch.cat([query, query[:, :1]], 1)
    for arguments in (
        (query, query.expand(2, -1, -1, -1), query),
        (query, query[..., :7], query),
        (query, query[:, :, :4], query),
        (query, query[:, :1], query),
        (three, query, query),
        (query, three, three),
        (query, query.half(), query),
        (query, query, query.bfloat16()),
    ):
        assert short(*(tensor.contiguous() for tensor in arguments)) is None


def test_options_that_need_a_closer_look_go_the_long_way(query: torch.Tensor) -> None:
    for mask in (kw.Mask(lengths=[3]), kw.Mask(starts=[1]), kw.Mask(allowed=np.ones((5, 5), bool)), "causal", False):
        assert short(query, query, query, mask=mask) is None
    for scale in (True, float("nan"), float("inf"), 1e31, 1, "1", np.float32(1)):
        assert short(query, query, query, scale=scale) is None


def test_gradients_are_refused_and_not_wanted_ones_are_not(query: torch.Tensor) -> None:
    right = kw.attend(query, query, query)
    wants = query.clone().requires_grad_()
    for arguments in ((wants, query, query), (query, wants, query), (query, query, wants)):
        with pytest.raises(kw.TargetError, match="requires gradients"):
            kw.attend(*arguments)
        with torch.no_grad():
            assert torch.equal(kw.attend(*arguments), right)


def test_negated_elements_are_refused_as_numpy_refuses_them(query: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match="negative bit"):
        kw.attend(torch._neg_view(query), query, query)


def test_the_result_is_a_tensor_of_its_own(query: torch.Tensor) -> None:
    first = kw.attend(query, query, query)
    kept = first.clone()
    second = kw.attend(-query, query, query)
    assert torch.equal(first, kept)
    assert first.data_ptr() != second.data_ptr()
    first += 1
    assert torch.equal(first, kept + 1)


def test_an_error_of_the_environment_is_told_at_the_call(query: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYWISE_THREADS", "many")
    with pytest.raises(kw.OptionError, match="KEYWISE_THREADS='many'"):
        kw.attend(query, query, query)
