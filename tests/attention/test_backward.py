"""Gradients of attention and of its statistics, on every target."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention.arrays import HostArray
from keywise.attention.backward import (
    Dropout,
    Forward,
    Gradients,
    StatsGradients,
    StatsRequest,
    attend_backward,
    attend_forward,
)
from tests.support.cases import Case
from tests.support.gradients import GradientCase, compute_gradients, find_failures, make_random_case

INPUTS = ("query", "key", "value")


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def run_both(
    query: Any, key: Any, value: Any, gradient: Any, *, needs: tuple[str, ...] = INPUTS, **options: Any
) -> tuple[Forward, Gradients]:
    """Run the forward and the backward pass."""
    stats_options = {name: options.pop(name) for name in ("stats_gradients",) if name in options}
    forward = attend_forward(query, key, value, **options)
    if stats_options:
        stats_options |= {"entropy": forward.stats.entropy, "segment_mass": forward.stats.segment_mass}
    gradients = attend_backward(
        gradient,
        query,
        key,
        value,
        output=forward.output,
        lse=forward.lse,
        lse_rest=forward.lse_rest,
        needs=needs,
        **options,
        **stats_options,
    )
    return forward, gradients


# ---- Accuracy ----


@pytest.mark.parametrize("seed", range(40))
def test_errors_of_random_problems_are_at_most_twice_plain_ones(seed: int) -> None:
    gradient_case = make_random_case(seed)
    assert not find_failures(gradient_case, kw.targets()[:-1]), gradient_case


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mask", ["none", "causal", "causal documents"])
def test_errors_of_many_blocks_are_at_most_twice_plain_ones(dtype: str, mask: str) -> None:
    case = Case(dtype, 1, 1, group=2, queries=500, keys=700, head_dim=64, value_dim=32, mask=mask, bias="per key")
    failures = find_failures(GradientCase(case, statistics=True, dropout=0.2), kw.targets()[:-1])
    assert not failures, failures


class Attention(torch.autograd.Function):
    """Attention and its statistics with the gradients under test."""

    @staticmethod
    def forward(ctx: Any, options: dict[str, Any], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, bias, sinks = tensors
        forward = attend_forward(query, key, value, bias=bias, sinks=sinks, **options)
        stats = forward.stats
        ctx.options = options
        ctx.save_for_backward(*tensors, forward.output, forward.lse, stats.entropy, stats.segment_mass)
        return forward.output, stats.lse, stats.entropy, stats.key_mass, stats.segment_mass

    @staticmethod
    def backward(ctx: Any, output_gradient: torch.Tensor, *gradients: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, bias, sinks, output, lse, entropy, segment_mass = ctx.saved_tensors
        found = attend_backward(
            output_gradient,
            query,
            key,
            value,
            output=output,
            lse=lse,
            bias=bias,
            sinks=sinks,
            entropy=entropy,
            segment_mass=segment_mass,
            stats_gradients=StatsGradients(*gradients),
            needs=(*INPUTS, "bias", "sinks"),
            **ctx.options,
        )
        return None, *found


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"mask": kw.Mask(causal=True, lengths=[6, 5])},
    "window": {"mask": kw.Mask(window=(2, 1), keep_first=1)},
    "documents": {"mask": kw.Mask(causal=True, documents=[[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 2, 2]])},
    "softcap": {"softcap": 1.5, "scale": 0.8},
    "dropout": {"dropout": Dropout(0.3, seed=5)},
    "some queries": {"queries": (1, 4)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_definition_passes_gradcheck(name: str) -> None:
    options = dict(OPTIONS[name])
    query_weights = np.abs(draw(4, 5))
    options["stats"] = StatsRequest(
        top_k=0, segment_ids=[0, 0, 1, -1, 2, 0], query_weights=query_weights, queries=options.pop("queries", None)
    )
    shapes = ((2, 4, 5, 3), (2, 2, 6, 3), (2, 2, 6, 2), (4, 1, 6), (4,))
    tensors = [torch.from_numpy(draw(*shape)).double().requires_grad_() for shape in shapes]
    with kw.using("reference"):
        assert torch.autograd.gradcheck(lambda *inputs: Attention.apply(options, *inputs), tensors)


# ---- Hidden keys ----


def test_hidden_nan_reaches_no_gradient(kernel: str) -> None:
    query, key, value, gradient = draw(1, 2, 60, 16), draw(1, 1, 300, 16), draw(1, 1, 300, 16), draw(1, 2, 60, 16)
    bad_key, bad_value = key.copy(), value.copy()
    # Only the last ten queries see the key of NaN.
    bad_key[:, :, 290] = np.nan
    bad_value[:, :, 290] = np.inf
    mask = kw.Mask(causal=True)
    _, expected = run_both(query, key, value, gradient, mask=mask)
    _, actual = run_both(query, bad_key, bad_value, gradient, mask=mask)
    np.testing.assert_allclose(actual.query[:, :, :50], expected.query[:, :, :50], rtol=1e-4, atol=1e-5)
    assert np.isnan(actual.query[:, :, 50:]).all()
    # The last query sees every key.
    assert np.isnan(actual.key).all()


def test_queries_and_gradients_of_nan_reach_only_keys_that_they_see(kernel: str) -> None:
    query, key, value, gradient = draw(1, 1, 70, 8), draw(1, 1, 70, 8), draw(1, 1, 70, 8), draw(1, 1, 70, 8)
    documents = np.repeat([[0, 1]], 35, axis=1)
    mask = kw.Mask(documents=documents)
    _, expected = run_both(query, key, value, gradient, mask=mask)
    query[:, :, 3], gradient[:, :, 9] = np.nan, np.inf
    _, actual = run_both(query, key, value, gradient, mask=mask)
    for name in INPUTS:
        other_document = getattr(actual, name)[:, :, 35:]
        np.testing.assert_allclose(other_document, getattr(expected, name)[:, :, 35:], rtol=1e-4, atol=1e-5)
    assert not np.isfinite(actual.key[:, :, :35]).any()


def test_gradients_of_nan_follow_the_definition(kernel: str) -> None:
    query, key, value, gradient = draw(1, 2, 30, 8), draw(1, 1, 40, 8), draw(1, 1, 40, 8), draw(1, 2, 30, 8)
    key[:, :, 35], value[:, :, 20], query[:, 0, 4], gradient[:, 1, 7] = np.nan, np.nan, np.inf, np.nan
    mask = kw.Mask(causal=True, window=(9, None))
    _, actual = run_both(query, key, value, gradient, mask=mask)
    with kw.using("reference"):
        _, expected = run_both(query, key, value, gradient, mask=mask)
    for name in INPUTS:
        finite = np.isfinite(getattr(expected, name))
        assert (np.isfinite(getattr(actual, name)) == finite).all(), name
        np.testing.assert_allclose(
            getattr(actual, name)[finite], getattr(expected, name)[finite], rtol=1e-3, atol=1e-4, err_msg=name
        )


def test_a_query_without_keys_has_gradient_0_and_gives_none(target: str) -> None:
    query, key, value, gradient = draw(2, 2, 5, 8), draw(2, 1, 6, 8), draw(2, 1, 6, 8), draw(2, 2, 5, 8)
    query[0], gradient[0] = np.nan, np.nan
    bias, sinks = draw(2, 1, 5, 6), draw(2)
    options = {"mask": kw.Mask(lengths=[0, 6]), "bias": bias, "sinks": sinks, "needs": (*INPUTS, "bias", "sinks")}
    _, both = run_both(query, key, value, gradient, **options)
    alone_options = {**options, "mask": None, "bias": bias[1:]}
    _, alone = run_both(query[1:], key[1:], value[1:], gradient[1:], **alone_options)
    for name in (*INPUTS, "bias"):
        assert not getattr(both, name)[0].any(), name
        np.testing.assert_allclose(getattr(both, name)[1:], getattr(alone, name), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both.sinks, alone.sinks, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4), (1, 2, 3, 4)])
def test_empty_calls_have_gradients_of_their_shapes(target: str, shape: tuple[int, ...]) -> None:
    batch, heads, queries, dim = shape
    keys = 0 if queries else 5
    query, key, bias = draw(*shape), draw(batch, heads, keys, dim), draw(heads, 1, keys)
    _, gradients = run_both(query, key, key, query, bias=bias, sinks=[0.5, 1.0], needs=(*INPUTS, "bias", "sinks"))
    assert gradients.query.shape == shape
    assert gradients.key.shape == gradients.value.shape == key.shape
    assert gradients.bias.shape == bias.shape
    assert not any(gradient.any() for gradient in gradients)


# ---- Bits ----


@pytest.mark.parametrize("seed", [3, 11, 24, 32])
def test_bits_do_not_depend_on_the_number_of_threads(kernel: str, seed: int) -> None:
    gradient_case = make_random_case(seed)
    results = []
    for threads in (1, 2, 3):
        kw.set_num_threads(threads)
        results.append([gradient for gradient in compute_gradients(gradient_case) if gradient is not None])
    kw.set_num_threads(None)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert np.asarray(one.view(torch.uint8) if isinstance(one, torch.Tensor) else one).tobytes() == (
                np.asarray(two.view(torch.uint8) if isinstance(two, torch.Tensor) else two).tobytes()
            )


@pytest.mark.parametrize(("queries", "keys"), [(3000, 200), (300, 3000)])
def test_bits_of_split_heads_do_not_depend_on_the_number_of_threads(queries: int, keys: int) -> None:
    query, gradient, key = draw(1, 1, queries, 16), draw(1, 1, queries, 16), draw(1, 1, keys, 16)
    results = []
    for threads in (1, 3):
        kw.set_num_threads(threads)
        _, gradients = run_both(query, key, key, gradient, bias=draw(keys), needs=(*INPUTS, "bias"))
        results.append([array.tobytes() for array in gradients if array is not None])
    kw.set_num_threads(None)
    assert results[0] == results[1]
    with kw.using("reference"):
        _, expected = run_both(query, key, key, gradient, bias=draw(keys), needs=(*INPUTS, "bias"))
    for name in (*INPUTS, "bias"):
        size = np.abs(getattr(expected, name)).max()
        np.testing.assert_allclose(getattr(gradients, name), getattr(expected, name), atol=2e-5 * size, err_msg=name)


def test_each_gradient_alone_has_the_bits_of_all_together(kernel: str) -> None:
    arrays = [draw(1, 4, 50, 24), draw(1, 2, 300, 24), draw(1, 2, 300, 16), draw(1, 4, 50, 16)]
    options = {"bias": draw(50, 300), "sinks": draw(4), "mask": kw.Mask(causal=True)}
    names = (*INPUTS, "bias", "sinks")
    _, together = run_both(*arrays, **options, needs=names)
    for name in names:
        _, alone = run_both(*arrays, **options, needs=(name,))
        assert [other for other in names if getattr(alone, other) is not None] == [name]
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name), err_msg=name)


# ---- Arrays ----


def test_output_gradients_of_any_strides_are_read(kernel: str) -> None:
    query, key = torch.from_numpy(draw(1, 2, 9, 8)), torch.from_numpy(draw(1, 2, 9, 8))
    constant = torch.ones(1, 2, 9, 8)
    _, expected = run_both(query, key, key, constant)
    for gradient in (
        torch.ones(()).expand(1, 2, 9, 8),
        torch.ones(1, 9, 2, 8).transpose(1, 2),
        torch.ones(1, 2, 9, 16)[..., ::2],
    ):
        _, actual = run_both(query, key, key, gradient)
        for name in INPUTS:
            assert torch.equal(getattr(actual, name), getattr(expected, name))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gradients_have_the_dtype_and_library_of_their_arguments(dtype: str) -> None:
    tensor = torch.from_numpy(draw(1, 2, 5, 8)).to(getattr(torch, dtype))
    bias = torch.from_numpy(draw(5)).to(tensor.dtype)
    sinks = torch.from_numpy(draw(2))
    _, gradients = run_both(tensor, tensor, tensor, tensor, bias=bias, sinks=sinks, needs=(*INPUTS, "bias", "sinks"))
    for name in (*INPUTS, "bias"):
        assert getattr(gradients, name).dtype == tensor.dtype
    assert gradients.sinks.dtype == torch.float32
    assert gradients.bias.shape == bias.shape


# ---- Dropout ----


def test_dropout_keeps_the_expected_share_and_depends_on_seed_and_offset() -> None:
    query, key = np.zeros((2, 2, 50, 4), np.float32), np.zeros((2, 2, 200, 4), np.float32)
    value = np.broadcast_to(np.eye(200, dtype=np.float32), (2, 2, 200, 200)).copy()
    masks = [
        attend_forward(query, key, value, dropout=Dropout(0.25, seed, offset)).output > 0
        for seed, offset in ((1, 0), (2, 0), (1, 1), (1, 0))
    ]
    for kept in masks:
        assert abs(kept.mean() - 0.75) < 0.01
    assert (masks[0] == masks[3]).all()
    assert 0.5 < (masks[0] == masks[1]).mean() < 0.75
    assert 0.5 < (masks[0] == masks[2]).mean() < 0.75


def test_dropout_has_the_same_mask_on_every_target() -> None:
    query, key = np.zeros((2, 3, 7, 4), np.float32), np.zeros((2, 3, 333, 4), np.float32)
    value = np.broadcast_to(np.eye(333, dtype=np.float32), (2, 3, 333, 333)).copy()
    masks = []
    for target in kw.targets():
        with kw.using(target):
            masks.append(attend_forward(query, key, value, dropout=Dropout(0.4, 2**63 + 5, 2**32 - 1)).output > 0)
    assert all((kept == masks[0]).all() for kept in masks)


def test_dropout_of_everything_gives_0_and_statistics_are_of_the_weights_before(target: str) -> None:
    query, key = draw(1, 2, 5, 8), draw(1, 2, 30, 8)
    stats = StatsRequest(top_k=3)
    forward, gradients = run_both(query, key, key, query, dropout=Dropout(1.0, 3), stats=stats)
    assert not forward.output.any()
    assert not any(getattr(gradients, name).any() for name in INPUTS)
    plain = kw.attention_stats(query, key, key, top_k=3)
    np.testing.assert_allclose(forward.stats.key_mass, plain.key_mass, rtol=1e-5)
    np.testing.assert_allclose(forward.stats.entropy, plain.entropy, rtol=1e-5)


# ---- Errors ----

X = draw(1, 2, 3, 4)
LSE = np.zeros((1, 2, 3), np.float32)


@pytest.mark.parametrize(
    ("changed", "error", "argument", "text"),
    [
        ({"output": X[:, :, :2]}, kw.ShapeError, "output", "must have shape [1, 2, 3, 4], got [1, 2, 2, 4]"),
        ({"output_gradient": X.astype(np.float16)}, kw.DtypeError, "output_gradient", "query's dtype float32"),
        ({"lse": LSE[..., None]}, kw.ShapeError, "lse", "must have shape [1, 2, 3]"),
        ({"lse_rest": LSE[:, :1]}, kw.ShapeError, "lse_rest", "must have shape [1, 2, 3]"),
        ({"lse": LSE.astype(np.int32)}, kw.DtypeError, "lse", "must have dtype"),
        ({"needs": ("query", "scale")}, kw.OptionError, "needs", "must be some of query, key, value, bias, sinks"),
        ({"needs": ("bias",)}, kw.OptionError, "needs", "must not have 'bias' where no bias was passed"),
        ({"dropout": 0.1}, kw.DtypeError, "dropout", "must be a Dropout or None"),
        ({"dropout": Dropout(1.5, 0)}, kw.OptionError, "dropout.probability", "must be from 0 to 1, got 1.5"),
        ({"dropout": Dropout(0.5, -1)}, kw.OptionError, "dropout.seed", "must be between 0 and"),
        ({"dropout": Dropout(0.5, 0, 2**32)}, kw.OptionError, "dropout.offset", "must be between 0 and 4294967295"),
        (
            {"stats_gradients": StatsGradients(lse=LSE)},
            kw.OptionError,
            "stats_gradients.lse",
            "must be None without stats",
        ),
        (
            {"stats_gradients": StatsGradients(entropy=LSE), "stats": StatsRequest()},
            kw.OptionError,
            "entropy",
            "must be passed with its gradient",
        ),
        (
            {"stats_gradients": StatsGradients(segment_mass=X), "stats": StatsRequest()},
            kw.OptionError,
            "stats_gradients.segment_mass",
            "must be None where stats has no segments",
        ),
        (
            {"stats_gradients": StatsGradients(key_mass=LSE), "stats": StatsRequest(key_mass=False)},
            kw.OptionError,
            "stats_gradients.key_mass",
            "must be None where stats has no key mass",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    changed: dict[str, Any], error: type[kw.KeywiseError], argument: str, text: str
) -> None:
    arguments = {"output_gradient": X, "query": X, "key": X, "value": X, "output": X, "lse": LSE, **changed}
    with pytest.raises(error, match=re.escape(text)) as raised:
        attend_backward(**arguments)
    assert raised.value.argument == argument


def test_int8_keys_are_refused(target: str) -> None:
    stored = HostArray(np.ones((1, 2, 3, 4), np.int8), "int8", X, np.ones((1, 2, 3), np.float32))
    with pytest.raises(kw.DtypeError, match="key must have a float dtype, got int8 with scales"):
        attend_backward(X, X, stored, stored, output=X, lse=LSE)


def test_a_gradient_that_does_not_fit_the_memory_is_a_memory_error(kernel: str) -> None:
    row = np.zeros((1, 1, 1, 2**10), np.float32)
    keys = np.broadcast_to(row, (1, 1, 2**31 - 1, 2**10))
    with pytest.raises(MemoryError):
        attend_backward(row, row, keys, keys, output=row, lse=np.zeros((1, 1, 1), np.float32))
