"""Layers in blocks: few and many rows, gradients, models of several architectures written to tiny GGUF files."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from keywise.attention.quantised import QuantisedMatrix
from keywise.errors import DtypeError, ModelError, OptionError
from keywise.models import load_model, quantised
from keywise.models.quantised import QuantisedEmbedding, QuantisedLinear, expand, quantise, quantise_layers

pytest.importorskip("gguf", reason="writes GGUF files; it comes with keywise[hf]")

from tests.support.gguf_models import ARCHITECTURES, load_with_transformers, write_gguf


def make_matrix(rows: int = 70, columns: int = 96, seed: int = 0) -> QuantisedMatrix:
    weights = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    return quantise("layer", weights, "Q8_0")


@pytest.mark.parametrize("count", [0, 1, quantised.MIN_TORCH_ROWS, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_torch", [True, False])
def test_few_and_many_rows_give_the_product(
    monkeypatch: pytest.MonkeyPatch, count: int, dtype: torch.dtype, by_torch: bool
) -> None:
    monkeypatch.setattr(quantised, "_multiplies_bfloat16", lambda: by_torch)
    monkeypatch.setattr(quantised, "BUFFER_BYTES", 96 * 4 * 16)  # several parts of the matrix
    monkeypatch.setattr(quantised, "_buffers", type(quantised._buffers)())
    matrix = make_matrix()
    layer = QuantisedLinear(matrix, torch.nn.Parameter(torch.randn(70).to(dtype)))
    rows = torch.randn(2, count, 96).to(dtype)
    expected = torch.nn.functional.linear(rows.double(), expand(matrix, torch.float32).double(), layer.bias.double())
    with torch.no_grad():
        output = layer(rows)
    assert output.shape == (2, count, 70)
    tolerance = 1e-2 if dtype is torch.float32 else 0.15
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("count", [3, 40])
def test_gradients_reach_the_inputs(count: int) -> None:
    matrix = make_matrix()
    layer = QuantisedLinear(matrix, None)
    rows = torch.randn(count, 96, requires_grad=True)
    gradient = torch.randn(count, 70)
    layer(rows).backward(gradient)
    expected = gradient.double() @ expand(matrix, torch.float32).double()
    torch.testing.assert_close(rows.grad.double(), expected, rtol=1e-4, atol=1e-4)


def test_embeddings_return_rows_and_refuse_other_ids() -> None:
    matrix = make_matrix()
    embedding = QuantisedEmbedding(matrix, torch.float32)
    ids = torch.tensor([[3, 69], [0, 3]])
    assert torch.equal(embedding(ids), expand(matrix, torch.float32)[ids])
    assert embedding.to(torch.bfloat16)(ids).dtype is torch.bfloat16
    for wrong in (70, -1):
        with pytest.raises(IndexError, match="token ids must be 0 to 69"):
            embedding(torch.tensor([0, wrong]))


def test_layers_refuse_other_dtypes_and_saving() -> None:
    layer = QuantisedLinear(make_matrix(), None)
    with pytest.raises(DtypeError, match=r"input must be of float32, bfloat16 or float16, got torch\.float64"):
        layer(torch.zeros(1, 96, dtype=torch.float64))
    with pytest.raises(ModelError, match="must have ordinary weights to be saved"):
        layer.state_dict()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("block_format", ["F32", "F16", "Q8_0", "Q4_1", "Q4_0"])
def test_models_in_blocks_have_the_logits_of_transformers(tmp_path: Path, architecture: str, block_format: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", architecture=architecture, block_format=block_format)
    loaded = load_model(path, dtype="float32", cache_dir=tmp_path)
    layers = [module for module in loaded.model.modules() if isinstance(module, QuantisedLinear)]
    assert bool(layers) == (block_format[0] == "Q")
    expected = load_with_transformers(path)
    assert type(loaded.model) is type(expected)
    for count in (1, 5, 30):
        ids = torch.arange(1, 1 + count)[None] % 40
        with torch.no_grad():
            logits, known = loaded.model(ids).logits, expected(ids).logits
        torch.testing.assert_close(logits, known, rtol=1e-3, atol=1e-3 * known.abs().max().item())


@pytest.mark.parametrize(("weights", "block_format"), [("int4", "Q4_1"), ("int8", "Q8_0")])
def test_weights_are_rounded_on_loading(tmp_path: Path, weights: str, block_format: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    expanded = load_model(path, weights="expanded", cache_dir=tmp_path)
    expanded.model.save_pretrained(tmp_path / "saved")
    expanded.tokenizer.save_pretrained(tmp_path / "saved")
    ids = torch.tensor([[1, 5, 9]])
    for source in (path, tmp_path / "saved"):
        loaded = load_model(source, weights=weights, cache_dir=tmp_path)
        formats = {module.matrix.block_format for module in loaded.model.modules() if hasattr(module, "matrix")}
        assert formats == {block_format}
        assert loaded.model.lm_head.matrix.blocks is loaded.model.model.embed_tokens.matrix.blocks
        with torch.no_grad():
            error = loaded.model(ids).logits - expanded.model(ids).logits
        assert 0 < error.abs().max() < (1.0 if weights == "int4" else 0.1)
    with pytest.raises(OptionError, match="weights must be one of as-is, expanded, int4, int8, got 'int2'"):
        load_model(path, weights="int2", cache_dir=tmp_path)


def test_layers_whose_size_is_no_multiple_of_a_block_are_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(40, 8))
    with pytest.raises(ValueError, match="input size of '0' must be a multiple of the 32 weights of a block, got 40"):
        quantise_layers(model, "Q8_0")


def test_copies_of_a_model_compute_the_same(tmp_path: Path) -> None:
    model = load_model(write_gguf(tmp_path / "tiny.gguf", block_format="Q8_0"), cache_dir=tmp_path).model
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", extra={"blk.0.attn_rot_embd.weight": (4,)})
    with pytest.raises(ModelError, match=r"has no place for its tensor 'blk\.0\.attn_rot_embd\.weight'"):
        load_model(path, cache_dir=tmp_path)
