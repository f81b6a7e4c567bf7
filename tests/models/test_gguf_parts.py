"""GGUF files in several parts: loaded as one file, or refused with the part that is missing."""

import shutil

import pytest

pytest.importorskip("torch", reason="models need keywise[hf]")
pytest.importorskip("gguf", reason="models need keywise[hf]")

import torch

from keywise.errors import ModelError
from keywise.models import fingerprint, load_model
from keywise.models.gguf_parts import list_gguf_parts, name_gguf_model
from keywise.models.sources import find_model
from tests.support.gguf_models import write_gguf


@pytest.fixture
def parts(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", block_format="Q8_0", tensors_per_part=5)
    (first,) = tmp_path.glob("tiny-00001-of-*.gguf")
    return list_gguf_parts(first)


def test_parts_load_as_one_file(tmp_path, parts):
    whole = load_model(write_gguf(tmp_path / "whole.gguf", block_format="Q8_0"), cache_dir=tmp_path)
    split = load_model(parts[1], cache_dir=tmp_path)  # any part names the model
    assert len(parts) > 2
    assert split.name == "tiny"
    assert split.weights_file == parts[0]
    ids = torch.arange(12)[None]
    assert torch.equal(split.model(ids).logits, whole.model(ids).logits)
    assert find_model(parts[0]).size_bytes == sum(part.stat().st_size for part in parts)


def test_every_part_belongs_to_the_fingerprint(tmp_path, parts):
    loaded = load_model(parts[0], cache_dir=tmp_path)

    def digest():
        return fingerprint(loaded.model, weights_file=parts[0], cache_dir=tmp_path)["weights"]

    before = digest()
    content = bytearray(parts[-1].read_bytes())
    content[-1] ^= 1
    parts[-1].write_bytes(content)
    assert digest() != before


def test_a_missing_part_is_named(tmp_path, parts):
    parts[1].unlink()
    with pytest.raises(ModelError, match=rf"1 of its {len(parts)} parts are missing beside it: {parts[1].name}"):
        load_model(parts[0], cache_dir=tmp_path)


def test_a_part_of_another_place_is_refused(tmp_path, parts):
    shutil.copy(parts[2], parts[1])
    with pytest.raises(ModelError, match=r"must be part 1 of \d, counted from 0, as its name says; its header says 2"):
        load_model(parts[0], cache_dir=tmp_path)


def test_a_part_under_the_name_of_a_whole_file_is_refused(tmp_path, parts):
    renamed = parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelError, match="must be part 0 of 1"):
        load_model(renamed, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "model"),
    [("a.gguf", "a"), ("a-00001-of-00002.gguf", "a"), ("a-1-of-2.gguf", "a-1-of-2"), ("x-00003-of-00003.GGUF", "x")],
)
def test_models_are_named_without_the_part(tmp_path, name, model):
    assert name_gguf_model(tmp_path / name) == model


def test_part_numbers_out_of_range_are_refused(tmp_path):
    path = tmp_path / "a-00003-of-00002.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="part 3 of 2"):
        load_model(path)
