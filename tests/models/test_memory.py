"""Models that do not fit the memory are refused before they are loaded."""

import pytest

pytest.importorskip("torch", reason="models need keywise[hf]")

from keywise.errors import ModelError
from keywise.models import load_model, memory
from tests.support.gguf_models import write_gguf


def test_memory_is_checked_before_loading(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", block_format="Q8_0")
    load_model(path, cache_dir=tmp_path)
    monkeypatch.setattr(memory, "measure_available_memory", lambda: 10_000)
    with pytest.raises(ModelError, match=r"'tiny' needs 0\.0 GB of memory for its weights, and 0\.0 GB are available"):
        load_model(path, cache_dir=tmp_path)


def test_the_form_of_the_weights_decides(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", block_format="Q8_0")
    as_is, expanded = [], []
    monkeypatch.setattr("keywise.models.loading.check_memory", lambda _name, needed: as_is.append(needed))
    load_model(path, cache_dir=tmp_path)
    monkeypatch.setattr("keywise.models.loading.check_memory", lambda _name, needed: expanded.append(needed))
    load_model(path, weights="expanded", dtype="float32", cache_dir=tmp_path)
    assert 0 < as_is[0] <= path.stat().st_size
    assert 3 * as_is[0] < expanded[0] < 4 * as_is[0]
