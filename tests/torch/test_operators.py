"""The custom operators under torch.compile, torch.export, torch.func and torch.library's own checks."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

import keywise as kw
import keywise.torch as kt
from keywise.attention.stats_request import StatsRequest
from keywise.torch.operators import attention
from keywise.torch.settings import split_settings
from tests.torch.test_functional import draw

pytestmark = pytest.mark.usefixtures("one_torch_thread", "fresh_compiler")
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make_inputs():
    shapes = [(2, 4, 5, 8), (2, 2, 6, 8), (2, 2, 6, 7), (1, 4, 1, 6)]
    return [draw(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]


def compute_loss(query, key, value, bias):
    stats = kt.attention_stats(
        query, key, value, bias=bias, mask=kw.Mask(causal=True, window=(3, None)), segment_bounds=[0, 2, 6], top_k=2
    )
    return stats.output.square().sum() + stats.entropy.sum() + stats.key_mass.square().sum() + stats.lse.sum()


def test_torch_accepts_the_operator():
    query, key, value, bias = make_inputs()
    for request in (None, StatsRequest(2, [0, 2, 6], queries=(1, 4)), StatsRequest(100, key_mass=False)):
        tensors, numbers = split_settings(
            mask=kw.Mask(causal=True, lengths=[5, 6]),
            upper_left=False,
            bias=bias,
            scale=None,
            softcap=None,
            sinks=None,
            dropout_p=0.0,
            transposed_output=True,
            stats=request,
            has_stats_gradients=request is not None,
        )
        torch.library.opcheck(attention, (query, key, value, *tensors, *numbers))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_loss_has_the_same_gradients(backend):
    inputs = make_inputs()
    expected = torch.autograd.grad(compute_loss(*inputs), inputs)
    compiled = torch.compile(compute_loss, fullgraph=True, backend=backend)
    for expected_gradient, gradient in zip(expected, torch.autograd.grad(compiled(*inputs), inputs), strict=True):
        assert_close(gradient, expected_gradient, **TOLERANCE)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = torch.nn.Linear(8, 24)

    def forward(self, x):
        query, key, value = self.projection(x).chunk(3, dim=-1)
        return kt.scaled_dot_product_attention(query, key, value, is_causal=True)


@pytest.mark.parametrize("is_training", [False, True])
def test_growing_inputs_are_compiled_twice_at_most(is_training):
    layer = Layer()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for tokens in range(5, 15):
        x = draw(2, 4, tokens, 8)
        with torch.set_grad_enabled(is_training):
            output = compiled(x)
            assert_close(output, layer(x), **TOLERANCE)
        if is_training:
            output.sum().backward()
    # Once for the first size, once for all sizes.
    assert counter.frame_count == 2


def test_steps_of_one_size_are_compiled_once():
    layer = Layer()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for step in range(5):
        compiled(draw(2, 4, 6, 8, seed=step)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert counter.frame_count == 1


def test_compiled_dropout_draws_a_new_mask_at_each_call():
    function = torch.compile(
        lambda x: kt.scaled_dot_product_attention(x, x, x, dropout_p=0.5), fullgraph=True, backend="aot_eager"
    )
    x = draw(1, 2, 9, 8).requires_grad_()
    first = function(x)
    assert not torch.equal(function(x), first)
    first.sum().backward()
    assert x.grad.isfinite().all()


def test_an_exported_module_serves_other_sizes():
    layer = Layer()
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("tokens")}
    exported = torch.export.export(layer, (draw(2, 4, 5, 8),), dynamic_shapes=(sizes,))
    assert "keywise.attention" in str(exported.graph)
    x = draw(3, 4, 9, 8)
    assert_close(exported.module()(x), layer(x), **TOLERANCE)


def test_functional_gradients_are_those_of_autograd():
    inputs = make_inputs()
    expected = torch.autograd.grad(compute_loss(*inputs), inputs)
    actual = torch.func.grad(compute_loss, argnums=(0, 1, 2, 3))(*inputs)
    for expected_gradient, gradient in zip(expected, actual, strict=True):
        assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("mapped", range(4), ids=["query", "key", "value", "bias"])
@pytest.mark.parametrize("axis", [0, 1])
def test_vmap_is_a_loop(mapped, axis):
    inputs = [tensor.detach() for tensor in make_inputs()]
    many = torch.stack([draw(*inputs[mapped].shape, seed=seed) for seed in range(3)], dim=axis)

    def compute(item):
        arguments = [item if number == mapped else tensor for number, tensor in enumerate(inputs)]
        return compute_loss(*arguments)

    items = many.unbind(axis)
    assert_close(torch.vmap(compute, in_dims=axis)(many), torch.stack([compute(item) for item in items]))
    expected = torch.stack([torch.func.grad(compute)(item) for item in items])
    assert_close(torch.vmap(torch.func.grad(compute), in_dims=axis)(many), expected)


def test_vmap_of_sinks_and_of_masks_with_fewer_axes_is_a_loop():
    query, key, value, _ = (tensor.detach() for tensor in make_inputs())
    sinks = draw(3, 4)
    masks = draw(3, 5, 6) > 0
    expected = torch.stack([kt.attend(query, key, value, sinks=each) for each in sinks])
    assert_close(torch.vmap(lambda each: kt.attend(query, key, value, sinks=each))(sinks), expected)
    expected = torch.stack([kt.attend(query, key, value, mask=each) for each in masks])
    assert_close(torch.vmap(lambda each: kt.attend(query, key, value, mask=each))(masks), expected)


def test_vmap_draws_different_dropout_for_each_item():
    x = draw(1, 2, 9, 8)
    outputs = torch.vmap(lambda query: kt.attend(query, query, query, dropout_p=0.5), randomness="different")(
        torch.stack([x, x])
    )
    assert not torch.equal(outputs[0], outputs[1])


def test_the_jacobian_is_that_of_torch():
    query, key, value, _ = (tensor.detach() for tensor in make_inputs())
    options = {"enable_gqa": True}
    actual = torch.func.jacrev(lambda q: kt.scaled_dot_product_attention(q, key, value, **options))(query)
    expected = torch.func.jacrev(lambda q: torch.nn.functional.scaled_dot_product_attention(q, key, value, **options))(
        query
    )
    assert_close(actual, expected, **TOLERANCE)


def test_a_compiled_function_returns_statistics_with_gradients():
    inputs = make_inputs()[:3]

    def compute(query, key, value):
        stats = kt.attention_stats(query, key, value, segment_ids=[0, 0, 1, 1, 1, 1])
        return stats.segment_mass, stats.top_weights

    segment_mass, top_weights = torch.compile(compute, fullgraph=True, backend="aot_eager")(*inputs)
    assert not top_weights.requires_grad
    expected = torch.autograd.grad(compute(*inputs)[0].square().sum(), inputs[:2])
    for expected_gradient, gradient in zip(
        expected, torch.autograd.grad(segment_mass.square().sum(), inputs[:2]), strict=True
    ):
        assert_close(gradient, expected_gradient, **TOLERANCE)
