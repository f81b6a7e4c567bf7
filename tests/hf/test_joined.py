"""Keys and values in several chunks: one tensor to a model, chunks to the kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from keywise.attention.arrays import HostArray, as_host_array
from keywise.attention.operation import run
from keywise.cache.int8 import quantise
from keywise.hf.joined import JoinedTensor, join_chunks, split_chunks


def make_chunks(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 3, tokens, 8, generator=generator).to(dtype) for tokens in (5, 1, 7)]


def join(chunks: list[Tensor]) -> Tensor:
    return join_chunks([as_host_array("key", chunk) for chunk in chunks], chunks[0].dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_chunk_is_a_view_of_its_memory(dtype: torch.dtype) -> None:
    chunk = make_chunks(dtype)[0]
    view = join([chunk])
    assert type(view) is Tensor
    assert torch.equal(view, chunk)
    assert view.data_ptr() == chunk.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_operations_see_the_dense_tensor(dtype: torch.dtype) -> None:
    chunks = make_chunks(dtype)
    dense = torch.cat(chunks, dim=2)
    joined = join(chunks)
    assert isinstance(joined, Tensor)
    assert (joined.shape, joined.dtype, joined.device) == (dense.shape, dense.dtype, dense.device)
    assert not joined.requires_grad
    query = torch.randn(2, 6, 4, 8).to(dtype)
    for operation in (
        lambda key: key.transpose(1, 2).reshape(2, 13, 24),
        lambda key: key[:, :, -4:],
        lambda key: key.repeat_interleave(2, dim=1),
        lambda key: torch.nn.functional.scaled_dot_product_attention(query, key, key, enable_gqa=True),
    ):
        actual = operation(join(chunks))
        assert type(actual) is Tensor
        assert torch.equal(actual, operation(dense))


def test_numbers_written_to_a_joined_tensor_reach_the_kernels() -> None:
    joined_key = join(make_chunks())
    joined_value = join(make_chunks())
    joined_key.transpose(1, 2).mul_(2)
    key, value = split_chunks(joined_key, joined_value)
    assert type(key) is Tensor
    assert torch.equal(key, 2 * torch.cat(make_chunks(), dim=2))
    assert torch.equal(value, torch.cat(make_chunks(), dim=2))


def test_attention_uses_the_chunks_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = make_chunks()
    query = torch.randn(2, 6, 4, 8)
    joined = join(chunks), join(chunks)
    monkeypatch.setattr(JoinedTensor, "dense", property(lambda _: pytest.fail("the chunks were copied")))
    key, value = split_chunks(*joined)
    assert [chunk.data_ptr() for chunk in key] == [chunk.data_ptr() for chunk in chunks]
    dense = torch.cat(chunks, dim=2)
    torch.testing.assert_close(run(query, key, value), run(query, dense, dense))


def test_int8_chunks_are_a_tensor_of_the_models_dtype() -> None:
    query = torch.randn(2, 6, 4, 8).to(torch.bfloat16)
    rounded: list[HostArray] = [quantise("key", as_host_array("key", chunk)) for chunk in make_chunks(torch.bfloat16)]
    for chunks in (rounded, rounded[:1]):
        joined = join_chunks(chunks, torch.bfloat16)
        assert isinstance(joined, JoinedTensor)
        dense = torch.cat([torch.from_numpy(chunk.floats("float32")).to(torch.bfloat16) for chunk in chunks], dim=2)
        assert torch.equal(joined + 0, dense)
        key, value = split_chunks(join_chunks(chunks, torch.bfloat16), join_chunks(chunks, torch.bfloat16))
        torch.testing.assert_close(run(query, key, value), run(query, dense, dense), atol=0.02, rtol=0.02)
