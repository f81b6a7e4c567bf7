"""Records of statistics as arrays, tables, pages and files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperForConditionalGeneration

import keywise.hf
from keywise.errors import FormatError, MissingFileError, ModelError, OptionError, ShapeError
from keywise.hf import StatsRecord
from keywise.hf.layer_stats import STATISTICS, get_statistic

IDS = torch.tensor([[5, 6, 7, 8, 9, 5, 6], [0, 0, 4, 3, 2, 1, 9]])
PADDING = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
TOKENS = [f"t{number}" for number in range(12)]


def make_llama() -> Any:
    torch.manual_seed(3)
    small = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=3,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(small).eval()


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_llama()


@pytest.fixture
def record(llama: Any) -> StatsRecord:
    keywise.hf.use(llama)
    with torch.no_grad(), keywise.hf.record_stats(llama, top_k=3, segment_bounds=[0, 2, 5]) as recorded:
        llama(IDS, attention_mask=PADDING)
    return recorded


@pytest.fixture
def generated(llama: Any) -> StatsRecord:
    keywise.hf.use(llama)
    with torch.no_grad(), keywise.hf.record_stats(llama, heads=[1, 3], top_k=2) as recorded:
        llama.generate(IDS[:1], max_new_tokens=4, do_sample=False)
    return recorded


def get_eager_weights(model: Any) -> np.ndarray:
    """Return the weights [layers, B, Hq, Q, N] of eager attention."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(IDS, attention_mask=PADDING, output_attentions=True).attentions
    return torch.stack(weights).numpy()


def test_stacked_statistics_equal_the_matrices_of_eager_attention(llama: Any, record: StatsRecord) -> None:
    weights = get_eager_weights(llama)
    is_token = PADDING.bool().numpy()[None, :, None, :]
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    entropy = -(weights * logs).sum(-1)
    stacked = record.stack("entropy")
    assert stacked.shape == (1, 3, 2, 4, 7)
    shown = np.broadcast_to(is_token, stacked[0].shape)
    np.testing.assert_allclose(stacked[0][shown], entropy[shown], atol=1e-5)
    mass = (weights * is_token[..., None]).sum(-2)
    np.testing.assert_allclose(record.stack("key_mass")[0], mass, atol=1e-5)
    segments = np.stack([weights[..., :2].sum(-1), weights[..., 2:5].sum(-1)], axis=-1)
    np.testing.assert_allclose(record.stack("segment_mass")[0][shown], segments[shown], atol=1e-5)


def test_steps_of_different_shapes_are_stacked_apart(generated: StatsRecord) -> None:
    with pytest.raises(ShapeError, match=r"must have one shape in 4 steps of 3 layers.*select some with step"):
        generated.stack("entropy")
    assert generated.step(0).stack("entropy").shape == (1, 3, 1, 2, 7)
    later = StatsRecord(call for call in generated if call.step > 0)
    assert later.stack("top_keys").shape == (3, 3, 1, 2, 1, 2)
    with pytest.raises(ShapeError, match="must have one shape in 3 steps of 3 layers"):
        later.stack("key_mass")
    with pytest.raises(ShapeError, match="steps of 3 layers"):
        StatsRecord(list(later)[:-1]).stack("lse")


def test_top_tokens_are_the_heaviest_of_eager_attention(llama: Any, record: StatsRecord) -> None:
    weights = get_eager_weights(llama)[2, 1, 3]
    found = record.top_tokens(TOKENS, 2, 3, item=1)
    assert list(found) == [0, 1, 2, 3, 4, 5, 6]
    assert len(found[6]) == 3
    assert len(found[3]) == 2, "two keys are visible"
    for query in range(2, 7):
        expected = np.argsort(-weights[query], kind="stable")[: len(found[query])]
        assert [top.key for top in found[query]] == expected.tolist()
        assert [top.token for top in found[query]] == [f"t{key}" for key in expected]
        np.testing.assert_allclose([top.weight for top in found[query]], weights[query][expected], atol=1e-5)


def test_top_tokens_of_a_decoding_step_have_its_positions(generated: StatsRecord) -> None:
    found = generated.top_tokens(TOKENS, 1, 3, step=2)
    assert list(found) == [8]
    assert sum(top.weight for top in found[8]) == pytest.approx(
        generated.step(2).layer(1)[0].stats.top_mass[0, 1].item()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TOKENS, 3, 0), r"layer and step must name one call, got 0 calls at step 0, got 3"),
        ((TOKENS, 0, 0), r"head must be one of the recorded heads \[1, 3\], got 0"),
        ((TOKENS[:3], 0, 1), "tokens must have the text of every key, of the last at"),
    ],
)
def test_top_tokens_of_what_is_not_there(generated: StatsRecord, arguments: Any, message: str) -> None:
    with pytest.raises((OptionError, ShapeError), match=message):
        generated.top_tokens(*arguments)
    with pytest.raises(OptionError, match="item must be between 0 and 0, got 4"):
        generated.top_tokens(TOKENS, 0, 1, item=4)


def test_tables_have_a_row_for_every_number(generated: StatsRecord) -> None:
    pytest.importorskip("pandas", reason="tables need keywise[study]")
    table = generated.to_dataframe("entropy")
    assert list(table.columns) == ["name", "layer", "kind", "step", "item", "head", "query", "entropy"]
    assert len(table) == 3 * 2 * (7 + 3)
    one = table[(table.layer == 2) & (table["head"] == 3) & (table.step == 0)]
    np.testing.assert_array_equal(one.entropy, generated.step(0).layer(2)[0].stats.entropy[0, 1])
    assert one["query"].tolist() == list(range(7))
    assert table[table.step == 3]["query"].unique().tolist() == [9]
    mass = generated.to_dataframe("key_mass")
    assert mass[mass.step == 1].key.max() == 7
    tops = generated.to_dataframe("top_keys")
    assert list(tops.columns)[-4:] == ["query", "rank", "key", "weight"]
    assert (tops.key <= tops["query"]).all()
    assert len(tops[tops["query"] == 0]) == 3 * 2, "the first query sees one key, and no row is made up"
    assert tops.equals(generated.to_dataframe("top_weights"))


def test_a_statistic_that_is_not_there_is_named(llama: Any, generated: StatsRecord) -> None:
    with pytest.raises(OptionError, match=r"name must be one of lse, entropy, top_keys.*got 'output'"):
        generated.stack("output")
    with pytest.raises(OptionError, match="got 'segment_mass'; pass segment_bounds or segment_ids"):
        generated.to_dataframe("segment_mass")
    with torch.no_grad(), keywise.hf.record_stats(llama, key_mass=False) as recorded:
        llama(IDS)
    with pytest.raises(OptionError, match="got 'key_mass'; record with key_mass=True"):
        recorded.stack("key_mass")
    for use in (StatsRecord().stack, StatsRecord().to_dataframe):
        with pytest.raises(OptionError, match=r"must hold a call, got StatsRecord\(0 calls of 0 layers\)"):
            use("entropy")


def test_pages_map_every_layer_and_head(generated: StatsRecord, tmp_path: Path) -> None:
    generated.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert page.count("<table") == 3
    assert page.count("<td") == 3 * 3 * 2
    mean = np.mean([generated.step(step).layer(1).stack("entropy")[0, 0, 0, 1].mean() for step in range(4)])
    row = re.search(r"Entropy.*?layer 1</th><td[^>]*>[^<]*</td><td[^>]*>([^<]*)<", page, re.DOTALL)
    assert row is not None
    assert float(row[1]) == pytest.approx(mean, abs=0.006)
    assert generated._repr_html_() in page
    with pytest.raises(OptionError, match="record must hold a call"):
        StatsRecord().to_html(tmp_path / "empty.html")
    with pytest.raises(FormatError, match="path must name a file that can be written"):
        generated.to_html(tmp_path / "gone" / "page.html")


def test_encoder_decoders_have_maps_of_both_kinds() -> None:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_source_positions=20,
        num_mel_bins=8,
        decoder_start_token_id=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = keywise.hf.use(WhisperForConditionalGeneration(config).eval())
    with torch.no_grad(), keywise.hf.record_stats(model) as record:
        model(torch.randn(1, 8, 40), decoder_input_ids=torch.tensor([[1, 5, 6]]))
    html = record._repr_html_()
    assert "Entropy, self-attention" in html
    assert "Entropy, cross-attention" in html
    assert record.kind("cross").stack("key_mass").shape == (1, 2, 1, 2, 20)
    with pytest.raises(OptionError, match=r"got 2 calls at step 0, got 0; see record\.layer"):
        StatsRecord(call for call in record if ".decoder." in call.name).top_tokens(TOKENS, 0, 0)


def test_saved_records_are_loaded_whole(record: StatsRecord, generated: StatsRecord, tmp_path: Path) -> None:
    for number, each in enumerate((record, generated, StatsRecord())):
        path = tmp_path / f"{number}.safetensors"
        each.save(path)
        again = StatsRecord.load(path)
        assert repr(again) == repr(each)
        for loaded, saved in zip(again, each, strict=True):
            for name in ("name", "layer", "kind", "step", "queries", "heads", "first_key"):
                assert getattr(loaded, name) == getattr(saved, name)
            for name in STATISTICS:
                if getattr(saved.stats, name) is None:
                    assert getattr(loaded.stats, name) is None
                else:
                    np.testing.assert_array_equal(get_statistic(loaded, name), get_statistic(saved, name))
    assert StatsRecord.load(tmp_path / "1.safetensors").top_tokens(TOKENS, 1, 3) == generated.top_tokens(TOKENS, 1, 3)


def test_damaged_and_other_files_are_refused(generated: StatsRecord, tmp_path: Path) -> None:
    path = tmp_path / "record.safetensors"
    generated.save(path)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        place = int(generator.integers(len(content)))
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="path "):
            StatsRecord.load(path)
    for length in (0, 7, 8, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(FormatError, match="path must name a file of recorded statistics"):
            StatsRecord.load(path)
    with pytest.raises(MissingFileError, match="path must name an existing file"):
        StatsRecord.load(tmp_path / "gone.safetensors")
    with pytest.raises(FormatError, match="path must name a file"):
        StatsRecord.load(tmp_path)


def test_a_model_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3, dtype=torch.bfloat16)}, path)
    with pytest.raises(FormatError, match="it is another safetensors file; write it with StatsRecord"):
        StatsRecord.load(path)


def test_an_array_without_axes_is_refused(
    generated: StatsRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.safetensors"
    monkeypatch.setattr("keywise.hf.record_file.get_statistic", lambda _call, _name: np.float32(1.0))
    generated.save(path)
    with pytest.raises(FormatError, match="its calls do not fit its arrays"):
        StatsRecord.load(path)


def test_a_well_formed_file_with_calls_that_do_not_fit_is_refused(
    generated: StatsRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write files whose digest is right, as somebody who knows the format could."""
    path = tmp_path / "record.safetensors"
    encode = json.dumps
    for change in (
        {"heads": [0]},
        {"heads": [-1, 2]},
        {"queries": [0, 6]},
        {"queries": [7]},
        {"name": 5},
        {"kind": "other"},
        {"step": "0"},
        {"layer": 1.5},
    ):

        def describe(calls: Any, change: dict[str, Any] = change) -> str:
            return encode([{**calls[0], **change}, *calls[1:]])

        monkeypatch.setattr("keywise.hf.record_file.json.dumps", describe)
        generated.save(path)
        with pytest.raises(FormatError, match="its calls do not fit its arrays"):
            StatsRecord.load(path)


def test_a_missing_pandas_names_the_command(generated: StatsRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keywise.util.optional_imports.find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r'pandas must be installed; use `pip install "keywise\[study\]"`'):
        generated.to_dataframe()
