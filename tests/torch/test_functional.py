"""scaled_dot_product_attention against torch's, gradients against finite differences, and refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

import keywise as kw
import keywise.torch as kt

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + math.prod(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def compute_with_gradients(function, inputs, **options):
    """Return the output and the gradients of a loss in which all elements differ."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        options["attn_mask"] = mask.detach().clone().requires_grad_()
        inputs_of_loss = [*inputs, options["attn_mask"]]
    else:
        inputs_of_loss = inputs
    output = function(*inputs, **options)
    weights = torch.arange(output.numel()).cos().reshape(output.shape)
    return output, *torch.autograd.grad((output * weights).sum(), inputs_of_loss)


def hide_some(*shape: int) -> torch.Tensor:
    visible = draw(*shape, seed=7) > -0.3
    visible[..., 0] = True
    return visible


SHAPES = {
    "2-D": ((5, 8), (6, 8), (6, 7)),
    "3-D": ((3, 5, 8), (3, 6, 8), (3, 6, 7)),
    "4-D": ((2, 4, 5, 8), (2, 4, 6, 8), (2, 4, 6, 7)),
    "5-D": ((2, 3, 4, 5, 8), (2, 3, 4, 6, 8), (2, 3, 4, 6, 8)),
    "batch of query broadcast": ((4, 5, 8), (2, 4, 6, 8), (2, 4, 6, 8)),
    "batch of key broadcast": ((2, 4, 5, 8), (1, 4, 6, 8), (2, 4, 6, 8)),
    "one key head": ((2, 4, 5, 8), (2, 1, 6, 8), (2, 1, 6, 8)),
    "one value head": ((2, 4, 5, 8), (2, 4, 6, 8), (2, 1, 6, 8)),
    "more queries than keys": ((2, 4, 7, 8), (2, 4, 3, 8), (2, 4, 3, 8)),
    "no batch items": ((0, 4, 5, 8), (0, 4, 6, 8), (0, 4, 6, 8)),
    "no queries": ((2, 4, 0, 8), (2, 4, 6, 8), (2, 4, 6, 8)),
    "no keys": ((2, 4, 5, 8), (2, 4, 0, 8), (2, 4, 0, 8)),
}


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_gradients_are_those_of_torch(name, is_causal):
    inputs = [draw(*shape, seed=seed) for seed, shape in enumerate(SHAPES[name])]
    expected = compute_with_gradients(functional.scaled_dot_product_attention, inputs, is_causal=is_causal)
    actual = compute_with_gradients(kt.scaled_dot_product_attention, inputs, is_causal=is_causal)
    for expected_tensor, tensor in zip(expected, actual, strict=True):
        assert_close(tensor, expected_tensor, **TOLERANCE)


@pytest.mark.parametrize("heads", [(4, 2, 2), (4, 1, 1), (4, 2, 4), (6, 3, 2)], ids=str)
def test_grouped_heads_are_those_of_torch(heads):
    inputs = [draw(2, count, 5, 8, seed=seed) for seed, count in enumerate(heads)]
    expected = compute_with_gradients(functional.scaled_dot_product_attention, inputs, enable_gqa=True)
    actual = compute_with_gradients(kt.scaled_dot_product_attention, inputs, enable_gqa=True)
    for expected_tensor, tensor in zip(expected, actual, strict=True):
        assert_close(tensor, expected_tensor, **TOLERANCE)


MASK_SHAPES = [(5, 6), (1, 6), (5, 1), (4, 5, 6), (1, 5, 6), (4, 1, 6), (2, 4, 5, 6), (2, 1, 1, 6), (2, 1, 5, 6)]


@pytest.mark.parametrize("kind", ["boolean", "float", "minus infinity"])
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_masks_and_their_gradients_are_those_of_torch(shape, kind):
    mask = {
        "boolean": hide_some(*shape),
        "float": draw(*shape),
        "minus infinity": torch.zeros(shape).masked_fill(~hide_some(*shape), -torch.inf),
    }[kind]
    inputs = [draw(2, 4, tokens, 8, seed=tokens + seed) for seed, tokens in enumerate((5, 6, 6))]
    expected = compute_with_gradients(functional.scaled_dot_product_attention, inputs, attn_mask=mask)
    actual = compute_with_gradients(kt.scaled_dot_product_attention, inputs, attn_mask=mask)
    for expected_tensor, tensor in zip(expected, actual, strict=True):
        assert_close(tensor, expected_tensor, **TOLERANCE)


@pytest.mark.parametrize("shape", [(3, 1, 5, 6), (2, 1, 1, 5, 6), (2, 3, 4, 1, 6), (5, 6)], ids=str)
def test_masks_of_five_axes_are_those_of_torch(shape):
    inputs = [draw(2, 3, 4, tokens, 8, seed=tokens + seed) for seed, tokens in enumerate((5, 6, 6))]
    for mask in (hide_some(*shape), draw(*shape)):
        expected = compute_with_gradients(functional.scaled_dot_product_attention, inputs, attn_mask=mask)
        actual = compute_with_gradients(kt.scaled_dot_product_attention, inputs, attn_mask=mask)
        for expected_tensor, tensor in zip(expected, actual, strict=True):
            assert_close(tensor, expected_tensor, **TOLERANCE)


def test_a_query_without_keys_has_output_and_gradients_of_zero():
    mask = hide_some(5, 6)
    mask[2] = False
    inputs = [draw(1, 2, tokens, 8, seed=tokens) for tokens in (5, 6, 6)]
    output, query_gradient, *_ = compute_with_gradients(kt.scaled_dot_product_attention, inputs, attn_mask=mask)
    assert not output[:, :, 2].any()
    assert not query_gradient[:, :, 2].any()


def test_nan_that_a_mask_hides_is_in_no_gradient():
    query, key, value = (draw(1, 2, tokens, 8, seed=tokens) for tokens in (5, 6, 6))
    visible = torch.ones(5, 6, dtype=torch.bool)
    visible[:, 3] = False
    key[:, :, 3] = value[:, :, 3] = math.nan
    for gradient in compute_with_gradients(kt.scaled_dot_product_attention, (query, key, value), attn_mask=visible):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_errors_in_half_precision_are_at_most_twice_those_of_torch(dtype):
    inputs = [draw(2, 4, 40, 16, dtype=dtype, seed=seed) for seed in range(3)]
    exact = compute_with_gradients(
        functional.scaled_dot_product_attention, [tensor.double() for tensor in inputs], is_causal=True
    )
    plain = compute_with_gradients(functional.scaled_dot_product_attention, inputs, is_causal=True)
    actual = compute_with_gradients(kt.scaled_dot_product_attention, inputs, is_causal=True)
    for exact_tensor, plain_tensor, tensor in zip(exact, plain, actual, strict=True):
        assert tensor.dtype == dtype
        error = (tensor - exact_tensor).abs().max()
        assert error <= 2 * (plain_tensor - exact_tensor).abs().max() + torch.finfo(dtype).eps / 4


# ---- Statistics ----

OPTIONS = {
    "plain": {},
    "causal": {"mask": kw.Mask(causal=True)},
    "window": {"mask": kw.Mask(causal=True, window=(2, None), keep_first=1)},
    "padding": {"mask": kw.Mask(lengths=[5, 6], starts=[1, 0])},
    "softcap": {"softcap": 2.0},
    "documents": {"mask": kw.Mask(causal=True, documents=torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2]]))},
    "scale": {"scale": 0.3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_of_output_and_statistics_are_those_of_finite_differences(name):
    query, key, value, bias, sinks = (
        draw(*shape, dtype=torch.float64, seed=seed).requires_grad_()
        for seed, shape in enumerate([(2, 4, 5, 4), (2, 2, 6, 4), (2, 2, 6, 3), (4, 1, 6), (4,)])
    )

    def compute(query, key, value, bias, sinks):
        stats = kt.attention_stats(
            query,
            key,
            value,
            bias=bias,
            sinks=sinks,
            segment_bounds=[0, 2, 5],
            query_weights=torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0]),
            top_k=2,
            **OPTIONS[name],
        )
        return stats.output, stats.lse, stats.entropy, stats.key_mass, stats.segment_mass

    with kw.using("reference"):
        assert torch.autograd.gradcheck(compute, (query, key, value, bias, sinks), fast_mode=True)


def test_gradients_with_dropout_are_those_of_finite_differences():
    query, key, value = (draw(2, 2, 6, 4, dtype=torch.float64, seed=seed).requires_grad_() for seed in range(3))

    def compute(query, key, value):
        torch.manual_seed(3)
        stats = kt.attention_stats(query, key, value, dropout_p=0.4, mask=kw.Mask(causal=True))
        return stats.output, stats.entropy, stats.key_mass

    with kw.using("reference"):
        assert torch.autograd.gradcheck(compute, (query, key, value))


def compute_dense_stats(query, key, bounds):
    """Return statistics from the dense weights of plain torch."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    weights = scores.softmax(-1)
    segments = [weights[..., begin:end].sum(-1) for begin, end in itertools.pairwise(bounds)]
    return {
        "lse": scores.logsumexp(-1),
        "entropy": -(weights * weights.log()).sum(-1),
        "key_mass": weights.sum(-2),
        "segment_mass": torch.stack(segments, -1),
    }


@pytest.mark.parametrize("name", ["lse", "entropy", "key_mass", "segment_mass"])
def test_a_loss_on_one_statistic_has_the_gradients_of_plain_torch(name):
    query, key, value = (draw(2, 3, tokens, 8, seed=tokens).requires_grad_() for tokens in (5, 7, 7))
    bounds = [0, 3, 7]
    stats = kt.attention_stats(query, key, value, segment_bounds=bounds)
    actual = getattr(stats, name)
    expected = compute_dense_stats(query, key, bounds)[name]
    assert_close(actual, expected, **TOLERANCE)
    gradients = torch.autograd.grad(actual.square().sum(), (query, key))
    for expected_gradient, gradient in zip(
        torch.autograd.grad(expected.square().sum(), (query, key)), gradients, strict=True
    ):
        assert_close(gradient, expected_gradient, **TOLERANCE)


def test_segment_ids_and_bounds_have_the_same_gradients():
    query, key, value = (draw(1, 2, tokens, 8, seed=tokens).requires_grad_() for tokens in (3, 4, 4))
    by_bounds = kt.attention_stats(query, key, value, segment_bounds=[0, 1, 4]).segment_mass
    for ids in ([0, 1, 1, 1], torch.tensor([0, 1, 1, 1])):
        by_ids = kt.attention_stats(query, key, value, segment_ids=ids).segment_mass
        assert_close(by_ids, by_bounds)


@pytest.mark.parametrize("name", ["top_weights", "top_mass"])
def test_gradients_through_the_heaviest_keys_are_refused(name):
    query = draw(1, 1, 3, 8).requires_grad_()
    stats = kt.attention_stats(query, query, query)
    with pytest.raises(kw.OptionError, match=rf"{name} must not enter a loss.*{name}\.detach\(\)"):
        (stats.output.sum() + getattr(stats, name).sum()).backward()


def test_query_weights_with_gradients_are_refused():
    query = draw(1, 1, 3, 8)
    weights = torch.ones(3, requires_grad=True)
    with pytest.raises(kw.TargetError, match="query_weights must not require gradients"):
        kt.attention_stats(query, query, query, query_weights=weights)


# ---- Dropout ----


def test_dropout_keeps_the_expected_share_and_scales_it():
    query = torch.zeros(4, 8, 64, 16)
    value = torch.ones(4, 8, 64, 1)
    torch.manual_seed(0)
    output = kt.scaled_dot_product_attention(query, query, value, dropout_p=0.25)
    # Each output is the mean of 64 independent factors: 0, or 4/3 with probability 3/4.
    assert abs(float(output.mean()) - 1) < 5 * math.sqrt((4 / 3 - 1) / 64 / output.numel())
    assert (output * 48).sub((output * 48).round()).abs().max() < 1e-3
    assert 0.9 < float(output.std()) / math.sqrt((4 / 3 - 1) / 64) < 1.1


def test_dropout_follows_torch_generator():
    query = draw(1, 2, 9, 8)
    torch.manual_seed(5)
    first = kt.scaled_dot_product_attention(query, query, query, dropout_p=0.5)
    second = kt.scaled_dot_product_attention(query, query, query, dropout_p=0.5)
    torch.manual_seed(5)
    assert torch.equal(kt.scaled_dot_product_attention(query, query, query, dropout_p=0.5), first)
    assert not torch.equal(second, first)


def test_dropout_of_everything_is_zero():
    query = draw(1, 2, 9, 8).requires_grad_()
    output = kt.scaled_dot_product_attention(query, query, query, dropout_p=1.0)
    output.sum().backward()
    assert not output.any()
    assert not query.grad.any()


# ---- Refusals ----


def make_bad_calls():
    x = torch.ones(1, 2, 3, 4)
    return {
        "dtype": ((x.int(), x.int(), x.int()), {}, kw.DtypeError, "query must have one of the dtypes float32"),
        "complex": ((x.cfloat(), x.cfloat(), x.cfloat()), {}, kw.DtypeError, "got torch.complex64"),
        "mixed": ((x, x.bfloat16(), x), {}, kw.DtypeError, "key must have the query's dtype torch.float32"),
        "device": ((x.to("meta"),) * 3, {}, kw.TargetError, "query must be on the CPU, got device 'meta'"),
        "sparse": ((x, x.to_sparse(), x), {}, kw.DtypeError, "key must be a dense tensor"),
        "list": (([1.0], x, x), {}, kw.DtypeError, r"query must be a torch\.Tensor, got a list"),
        "one axis": ((x[0, 0, 0], x, x), {}, kw.ShapeError, "query must have 2 axes or more"),
        "heads": ((x, x[:, :1].expand(1, 3, 3, 4), x), {}, kw.ShapeError, "query must broadcast with key and value"),
        "groups": ((x, x.expand(3, 2, 3, 4)[:, :1], x[:, :0]), {"enable_gqa": True}, kw.ShapeError, "value must have"),
        "width": ((x, x[..., :3], x), {}, kw.ShapeError, "key must have the query's head_dim 4"),
        "tokens": ((x, x[:, :, :2], x), {}, kw.ShapeError, "value must have the key's heads and tokens"),
        "mask dtype": (
            (x, x, x),
            {"attn_mask": torch.ones(3, 3, dtype=torch.int64)},
            kw.DtypeError,
            "attn_mask must be",
        ),
        "mask shape": ((x, x, x), {"attn_mask": torch.ones(2, 3)}, kw.ShapeError, r"attn_mask must broadcast to"),
        "mask and causal": (
            (x, x, x),
            {"attn_mask": torch.ones(3, 3), "is_causal": True},
            kw.OptionError,
            "is_causal must be False with attn_mask",
        ),
        "dropout": ((x, x, x), {"dropout_p": 1.5}, kw.OptionError, "dropout_p must be from 0 to 1, got 1.5"),
        "float64": ((x.double(),) * 3, {}, kw.TargetError, "float64"),
    }


@pytest.mark.parametrize("name", make_bad_calls())
def test_bad_arguments_are_refused_by_name(name):
    inputs, options, error, message = make_bad_calls()[name]
    with pytest.raises(error, match=message):
        kt.scaled_dot_product_attention(*inputs, **options)


def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.ones(2, 3, 4), torch.ones(2, 1, 4)], layout=torch.jagged)
    with pytest.raises(kw.DtypeError, match="query must be a dense tensor"):
        kt.scaled_dot_product_attention(nested, nested, nested)


def test_tangents_are_refused():
    x = torch.ones(1, 2, 3, 4)
    with pytest.raises(kw.TargetError, match="query must not have a tangent"):
        torch.func.jvp(lambda query: kt.attend(query, x, x), (x,), (x,))


@pytest.mark.parametrize("position", range(3))
def test_an_input_that_was_changed_in_place_is_reported_by_torch(position):
    inputs = [draw(1, 2, 3, 4, seed=seed).requires_grad_() for seed in range(3)]
    copies = [tensor * 1 for tensor in inputs]
    output = kt.attend(*copies)
    copies[position].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_second_derivative_is_refused():
    query = draw(1, 2, 3, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(kt.attend(query, query, query).square().sum(), query, create_graph=True)
    with pytest.raises(kw.TargetError, match=r"query must not be differentiated twice"):
        gradient.sum().backward()


def test_attend_of_numpy_names_the_differentiable_function():
    query = draw(1, 2, 3, 4).requires_grad_()
    with pytest.raises(kw.TargetError, match=r"keywise\.torch\.attend"):
        kw.attend(query, query, query)


def test_autocast_casts_as_torch_does():
    query, key, value = (draw(1, 2, 3, 4, seed=seed) for seed in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        expected = functional.scaled_dot_product_attention(query, key, value.bfloat16())
        actual = kt.scaled_dot_product_attention(query, key, value.bfloat16())
    assert actual.dtype == expected.dtype == torch.bfloat16
    assert_close(actual, expected)
