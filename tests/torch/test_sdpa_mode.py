"""sdpa(), enable() and disable(): what runs on keywise, what torch computes, and the counts of both."""

from __future__ import annotations

import threading
from typing import ClassVar

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

import keywise as kw
import keywise.torch as kt
from tests.torch.test_functional import draw

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def test_calls_are_served_and_counted():
    x = draw(1, 2, 5, 8)
    expected = functional.scaled_dot_product_attention(x, x, x, None, 0.0, True)
    with kt.sdpa() as report:
        assert_close(functional.scaled_dot_product_attention(x, x, x, None, 0.0, True), expected, **TOLERANCE)
        assert_close(torch._C._nn.scaled_dot_product_attention(query=x, key=x, value=x, is_causal=True), expected)
    functional.scaled_dot_product_attention(x, x, x)
    assert report == kt.SdpaReport(served=2)


def make_passed_on():
    x = torch.ones(1, 2, 3, 4)
    nested = torch.nested.nested_tensor([torch.ones(2, 3, 4), torch.ones(2, 3, 4)], layout=torch.jagged)
    return {
        "query is on device 'meta'": (x.to("meta"),) * 3,
        "query has dtype torch.float64": (x.double(),) * 3,
        "query is a nested tensor": (nested.transpose(1, 2),) * 3,
        "query has a head_dim of 0": (x[..., :0], x[..., :0], x),
    }


@pytest.mark.parametrize("reason", make_passed_on())
def test_calls_that_keywise_cannot_compute_go_to_torch(reason):
    inputs = make_passed_on()[reason]
    with kt.sdpa() as report:
        output = functional.scaled_dot_product_attention(*inputs)
    assert output.shape == functional.scaled_dot_product_attention(*inputs).shape
    assert report == kt.SdpaReport(served=0, passed_on={reason: 1})


def test_float64_is_served_on_the_reference_target():
    x = torch.ones(1, 2, 3, 4, dtype=torch.float64)
    with kw.using("reference"), kt.sdpa() as report:
        functional.scaled_dot_product_attention(x, x, x)
    assert report.served == 1


def test_forward_mode_and_traces_go_to_torch():
    x = torch.ones(1, 2, 3, 4)
    # torch has forward-mode differentiation for this kernel alone.
    with kt.sdpa() as report, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.func.jvp(lambda query: functional.scaled_dot_product_attention(query, x, x), (x,), (x,))
        torch.jit.trace(
            lambda query: functional.scaled_dot_product_attention(query, query, query), (x,), check_trace=False
        )
    assert report.served == 0
    assert set(report.passed_on) == {
        "forward-mode differentiation is active",
        "the call is traced by torch.jit.trace",
    }


class Named(torch.Tensor):
    """A tensor that tells its class which functions it meets."""

    functions: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.functions.append(function.__name__)
        return super().__torch_function__(function, types, args, kwargs)


def test_tensors_with_operations_of_their_own_keep_them():
    x = torch.ones(1, 2, 3, 4)
    with kt.sdpa() as report:
        output = functional.scaled_dot_product_attention(x.as_subclass(Named), x, x)
    assert isinstance(output, Named)
    assert "scaled_dot_product_attention" in Named.functions
    assert report.passed_on == {"query has operations of its own": 1}


@pytest.mark.parametrize("gradients", [False, True])
def test_torch_encoders_are_served_in_training_and_inference(gradients):
    encoder = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
    ).train(gradients)
    x = draw(2, 6, 16)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    with torch.set_grad_enabled(gradients):
        expected = encoder(x, src_key_padding_mask=padding)
        with kt.sdpa() as report:
            actual = encoder(x, src_key_padding_mask=padding)
    assert report == kt.SdpaReport(served=2)
    assert_close(actual[~padding], expected[~padding], **TOLERANCE)


def test_dense_weights_are_computed_by_torch():
    layer = torch.nn.MultiheadAttention(16, 4)
    x = draw(3, 2, 16)
    with kt.sdpa() as report:
        _, weights = layer(x, x, x)
    assert weights is not None
    assert report == kt.SdpaReport()


def test_gradients_flow_through_the_block():
    x = draw(1, 2, 5, 8).requires_grad_()
    (expected,) = torch.autograd.grad(functional.scaled_dot_product_attention(x, x, x).square().sum(), x)
    with kt.sdpa():
        output = functional.scaled_dot_product_attention(x, x, x)
    assert_close(torch.autograd.grad(output.square().sum(), x)[0], expected, **TOLERANCE)


def test_the_inner_block_counts():
    x = draw(1, 2, 5, 8)
    with kt.sdpa() as outer:
        functional.scaled_dot_product_attention(x, x, x)
        with kt.sdpa() as inner:
            functional.scaled_dot_product_attention(x, x, x)
    assert (outer.served, inner.served) == (1, 1)


def test_compiled_functions_run_on_keywise():
    torch.compiler.reset()
    names = []

    def list_operators(graph, _inputs):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    x = draw(1, 2, 5, 8)
    compiled = torch.compile(
        lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True),
        fullgraph=True,
        backend=list_operators,
    )
    with kt.sdpa():
        actual = compiled(x)
    assert any("keywise.attention" in name for name in names), names
    assert_close(actual, functional.scaled_dot_product_attention(x, x, x, is_causal=True), **TOLERANCE)


def test_enable_acts_until_disable():
    x = draw(1, 2, 5, 8)
    report = kt.enable()
    try:
        functional.scaled_dot_product_attention(x, x, x)
        with pytest.raises(kw.OptionError, match="enable must not be called twice"):
            kt.enable()
    finally:
        assert kt.disable() is report
    functional.scaled_dot_product_attention(x, x, x)
    assert report.served == 1
    with pytest.raises(kw.OptionError, match=r"disable must follow enable\(\)"):
        kt.disable()


def test_disable_inside_of_another_mode_is_refused():
    kt.enable()
    try:
        with kt.sdpa(), pytest.raises(kw.OptionError, match="disable must be called outside"):
            kt.disable()
    finally:
        kt.disable()


def test_other_threads_are_left_alone():
    x = draw(1, 2, 5, 8)
    with kt.sdpa() as report:
        thread = threading.Thread(target=functional.scaled_dot_product_attention, args=(x, x, x))
        thread.start()
        thread.join()
    assert report.served == 0
