"""torch's own samples of scaled_dot_product_attention, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import keywise.torch as kt

pytest.importorskip("expecttest", reason="torch's samples need the package expecttest")
from torch.testing._internal.common_methods_invocations import op_db

NAME = "nn.functional.scaled_dot_product_attention"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def list_samples(dtype):
    (info,) = [each for each in op_db if each.name == NAME]
    torch.manual_seed(0)
    return list(info.sample_inputs("cpu", dtype, requires_grad=True))


SAMPLE_COUNT = len(list_samples(torch.float32))


def compute_with_gradients(function, sample, dtype):
    """Return output and gradients in float64, computed in another dtype."""
    tensors = [sample.input, *sample.args, *sample.kwargs.values()]
    copies = {
        id(tensor): tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)
        for tensor in tensors
        if isinstance(tensor, torch.Tensor)
    }
    query, *others = (copies[id(tensor)] for tensor in (sample.input, *sample.args))
    options = {name: copies.get(id(value), value) for name, value in sample.kwargs.items()}
    torch.manual_seed(0)
    output = function(query, *others, **options)
    wanted = [tensor for tensor in copies.values() if tensor.requires_grad]
    weights = torch.arange(output.numel()).cos().reshape(output.shape)
    gradients = torch.autograd.grad((output.double() * weights).sum(), wanted)
    return [tensor.double() for tensor in (output, *gradients)]


def compute_plain_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
    """Compute attention by plain arithmetic in the dtype of the inputs; torch's own goes through float32 at times."""
    assert not dropout_p
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


def test_torch_has_samples():
    assert SAMPLE_COUNT >= 20


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", range(SAMPLE_COUNT))
def test_errors_are_at_most_twice_those_of_plain_arithmetic(number, dtype):
    sample = list_samples(dtype)[number]
    actual = compute_with_gradients(kt.scaled_dot_product_attention, sample, dtype)
    if sample.kwargs.get("dropout_p"):
        # torch's random numbers are others: the same seed gives the same result here, with finite gradients.
        again = compute_with_gradients(kt.scaled_dot_product_attention, sample, dtype)
        assert all(torch.equal(first, second) for first, second in zip(actual, again, strict=True))
        assert all(tensor.isfinite().all() for tensor in actual)
        return
    exact = compute_with_gradients(functional.scaled_dot_product_attention, sample, torch.float64)
    plain = compute_with_gradients(compute_plain_attention, sample, dtype)
    # As in tests/support/judging.py: float32 rounds scores, and every result is a sum of terms that may cancel.
    largest_score = float((sample.input.double() @ sample.args[0].double().transpose(-1, -2)).abs().max()) / 8**0.5
    largest = max(float(tensor.detach().abs().max()) for tensor in exact)
    floor = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps * (4 + largest_score)) * largest
    for exact_tensor, plain_tensor, tensor in zip(exact, plain, actual, strict=True):
        error = float((tensor - exact_tensor).detach().abs().max())
        plain_error = float((plain_tensor - exact_tensor).detach().abs().max())
        assert error <= 2 * plain_error + floor, f"sample {number}: {tuple(sample.input.shape)} {sample.kwargs}"
