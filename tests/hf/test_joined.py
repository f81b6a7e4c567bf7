"""Keys and values in several pieces are one tensor to a model, and pieces to the kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from keywise.attention.arrays import HostArray, as_host_array
from keywise.attention.operation import run
from keywise.cache.quantised import quantised
from keywise.hf.joined import apart, join, joined_class


def chunks(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 3, tokens, 8, generator=generator).to(dtype) for tokens in (5, 1, 7)]


def joined_of(parts: list[Tensor]) -> Tensor:
    return join([as_host_array("part", part) for part in parts], parts[0].dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_piece_is_a_view_of_its_memory(dtype: torch.dtype) -> None:
    chunk = chunks(dtype)[0]
    found = joined_of([chunk])
    assert type(found) is Tensor
    assert torch.equal(found, chunk)
    assert found.data_ptr() == chunk.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_a_tensor_to_everyone_else(dtype: torch.dtype) -> None:
    parts = chunks(dtype)
    whole, joined = torch.cat(parts, dim=2), joined_of(parts)
    assert isinstance(joined, Tensor)
    assert (joined.shape, joined.dtype, joined.device) == (whole.shape, whole.dtype, whole.device)
    assert not joined.requires_grad
    query = torch.randn(2, 6, 4, 8).to(dtype)
    for work in (
        lambda key: key.transpose(1, 2).reshape(2, 13, 24),
        lambda key: key[:, :, -4:],
        lambda key: key.repeat_interleave(2, dim=1),
        lambda key: torch.nn.functional.scaled_dot_product_attention(query, key, key, enable_gqa=True),
    ):
        found = work(joined_of(parts))
        assert type(found) is Tensor
        assert torch.equal(found, work(whole))


def test_what_is_written_to_it_is_what_the_kernel_reads() -> None:
    joined, value = joined_of(chunks()), joined_of(chunks())
    joined.transpose(1, 2).mul_(2)
    key, same = apart(joined, value)
    assert type(key) is Tensor
    assert torch.equal(key, 2 * torch.cat(chunks(), dim=2))
    assert torch.equal(same, torch.cat(chunks(), dim=2))


def test_the_kernel_reads_the_pieces_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, query = chunks(), torch.randn(2, 6, 4, 8)
    joined = joined_of(parts), joined_of(parts)
    monkeypatch.setattr(joined_class(), "dense", property(lambda _: pytest.fail("the pieces were copied together")))
    key, value = apart(*joined)
    assert [chunk.data_ptr() for chunk in key] == [chunk.data_ptr() for chunk in parts]
    whole = torch.cat(parts, dim=2)
    torch.testing.assert_close(run(query, key, value), run(query, whole, whole))


def test_int8_is_a_tensor_of_the_models_dtype() -> None:
    parts, query = chunks(torch.bfloat16), torch.randn(2, 6, 4, 8).to(torch.bfloat16)
    rounded: list[HostArray] = [quantised("part", as_host_array("part", part)) for part in parts]
    for held in (rounded, rounded[:1]):
        joined = join(held, torch.bfloat16)
        assert isinstance(joined, joined_class())
        right = torch.cat([torch.from_numpy(chunk.floats("float32")).to(torch.bfloat16) for chunk in held], dim=2)
        assert torch.equal(joined + 0, right)
        key, value = apart(join(held, torch.bfloat16), join(held, torch.bfloat16))
        torch.testing.assert_close(run(query, key, value), run(query, right, right), atol=0.02, rtol=0.02)
