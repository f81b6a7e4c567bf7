"""Tuned heads: stored as JSON with a version, and refused where they cannot be read."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from transformers import LlamaConfig

from keywise.documents import Heads, Reader
from keywise.documents.heads import (
    ANSWER_WEIGHTS,
    FILES,
    RANKINGS,
    describe_architecture,
    find_heads,
    find_related_heads,
    locate_own_heads,
)
from keywise.errors import FormatError, MissingFileError, ModelError, OptionError
from keywise.models import LoadedModel
from tests.support.chat_models import make_byte_tokenizer, make_chat_model
from tests.support.damaged_stores import damage_tuned_heads

POWERS = {"attention": {"matching": 2.0, "copying": 1.0, "previous": 0.5}}
ODDS = {"lexical": {"mass": 0.5, "lexical": 9.0, "bias": -1.0}}
HEADS = Heads(((0, 0), (0, 1)), ((1, 0),), POWERS, ODDS, answer_sentences=1, tuned_on="a test")
WEIGHTS = "files: " + 64 * "a"


def test_saved_heads_are_loaded_unchanged(tmp_path: Path) -> None:
    path = HEADS.save(tmp_path / "heads.json", model="tiny", weights=WEIGHTS, architecture="llama")
    assert Heads.load(path) == HEADS
    content = json.loads(path.read_text())
    assert (content["format"], content["version"], content["weights"]) == ("keywise.heads", 4, [WEIGHTS])


def test_own_heads_of_a_model_are_found_by_its_weights(tmp_path: Path) -> None:
    path = locate_own_heads({"weights": WEIGHTS}, tmp_path)
    path.parent.mkdir(parents=True)
    HEADS.save(path, model="tiny", weights=WEIGHTS, architecture="llama")
    assert find_heads({"weights": WEIGHTS}, tmp_path) == HEADS
    assert find_heads({"weights": "files: " + 64 * "b"}, tmp_path) is None


def test_a_model_without_heads_takes_those_of_a_relative(tmp_path: Path) -> None:
    path = locate_own_heads({"weights": WEIGHTS}, tmp_path)
    path.parent.mkdir(parents=True)
    HEADS.save(path, model="tiny", weights=WEIGHTS, architecture="qwen2, 2 layers")
    (path.parent / "damaged.json").write_bytes(b"{}")  # an error for its own model only
    related = find_related_heads("qwen2, 2 layers", tmp_path)
    assert related == replace(HEADS, tuned_on="a test, with the related model tiny")
    assert find_related_heads("qwen2, 3 layers", tmp_path) is None


def test_a_relative_of_the_default_model_takes_its_heads(tmp_path: Path) -> None:
    config = LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
    heads = find_related_heads(describe_architecture(config), tmp_path)
    assert heads is not None
    assert "SmolLM2-135M-Instruct" in str(heads.tuned_on)


def test_a_reader_tells_that_it_takes_the_heads_of_a_relative(tmp_path: Path) -> None:
    loaded = LoadedModel(make_chat_model(), make_byte_tokenizer(), "other", None)
    path = locate_own_heads({"weights": WEIGHTS}, tmp_path)
    path.parent.mkdir(parents=True)
    HEADS.save(path, model="tiny", weights=WEIGHTS, architecture=describe_architecture(loaded.model.config))
    lines: list[str] = []
    reader = Reader(loaded, keep=False, cache_dir=tmp_path, status=lines.append)
    assert reader.heads.matching == HEADS.matching
    assert lines == ["No heads are tuned for other: using those tuned on a test, with the related model tiny"]


def test_shipped_heads_are_found_and_complete(tmp_path: Path) -> None:
    shipped = [path for path in files("keywise.documents").joinpath("tuned").iterdir() if path.name.endswith(".json")]
    for path in shipped:
        for weights in json.loads(path.read_text("utf-8"))["weights"]:
            heads = find_heads({"weights": weights}, tmp_path)
            assert heads is not None
            assert heads.powers.keys() == RANKINGS.keys()
            assert heads.answer_odds.keys() == ANSWER_WEIGHTS.keys()
    assert shipped


def test_heads_of_an_earlier_build_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    fields = {"matching": [], "copying": [], "powers": {}, "none_mass": 0.0, "none_power": 0.0}
    path.write_text(json.dumps({"model": "tiny", "weights": [WEIGHTS], "heads": fields}))
    with pytest.raises(FormatError, match=r"heads\.json' was made by an earlier build; delete it or create it again"):
        Heads.load(path)
    path.write_text(json.dumps({"version": 9, "model": "tiny", "weights": [WEIGHTS], "heads": fields}))
    with pytest.raises(FormatError, match="was made by another build"):
        Heads.load(path)


def write_checked(path: Path, **changes: object) -> Path:
    """Write a file of heads with other entries and a right checksum."""
    content = json.loads(HEADS.save(path, model="tiny", weights=WEIGHTS, architecture="llama").read_text())
    content["heads"].update(changes)
    entries = {name: content[name] for name in ("model", "architecture", "weights", "heads")}
    path.write_bytes(FILES.encode(entries))
    return path


def test_every_changed_byte_is_detected(tmp_path: Path) -> None:
    path = HEADS.save(tmp_path / "heads.json", model="tiny", weights=WEIGHTS, architecture="llama")
    content = path.read_bytes()
    for place in range(len(content)):
        for changed in (
            content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
            content[:place] + content[place + 1 :],
            content[:place] + b" " + content[place:],
            content[:place],
        ):
            path.write_bytes(changed)
            with pytest.raises(FormatError):
                Heads.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"matching": []},
        {"matching": [[0, -1]]},
        {"matching": [[0, 1.0]]},
        {"matching": [[0, 1, 2]]},
        {"copying": [["a", 1]]},
        {"powers": {"attention": {"matching": float("nan"), "copying": 1.0, "previous": 1.0}}},
        {"powers": {"attention": {"matching": 1.0}}},
        {"powers": {"other": {}}},
        {"answer_odds": {"lexical": {"mass": float("inf"), "lexical": 1.0, "bias": 0.0}}},
        {"answer_odds": {"lexical": {"mass": -1.0, "lexical": 1.0, "bias": 0.0}}},
        {"answer_odds": {"lexical": {"mass": 1.0, "lexical": 1.0}}},
        {"answer_odds": {"attention": {"bias": 0.0}}},
        {"answer_sentences": True},
        {"tuned_on": 7},
        {"moves_sentences": 1},
    ],
)
def test_entries_out_of_bounds_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(FormatError, match="path must be a file of tuned heads"):
        Heads.load(write_checked(tmp_path / "heads.json", **changes))


def test_heads_of_another_model_are_refused(tmp_path: Path) -> None:
    path = locate_own_heads({"weights": "files: " + 64 * "b"}, tmp_path)
    path.parent.mkdir(parents=True)
    HEADS.save(path, model="tiny", weights=WEIGHTS, architecture="llama")
    with pytest.raises(FormatError, match="has heads of another model"):
        find_heads({"weights": "files: " + 64 * "b"}, tmp_path)


@pytest.mark.parametrize("head", [(2, 0), (0, 2)])
def test_heads_that_the_model_lacks_are_refused(head: tuple[int, int]) -> None:
    loaded = LoadedModel(make_chat_model(), make_byte_tokenizer(), "tiny", None)
    with pytest.raises(OptionError, match=r"heads must be .* pairs of model 'tiny', which has 2 layers of 2 heads"):
        Reader(loaded, keep=False, heads=replace(HEADS, matching=(head,)))


def test_a_context_shorter_than_the_template_is_refused() -> None:
    loaded = LoadedModel(make_chat_model(max_position_embeddings=8), make_byte_tokenizer(), "tiny", None)
    with pytest.raises(ModelError, match=r"model must have a context that is longer than the .* got 8"):
        Reader(loaded, keep=False)


def test_a_model_that_fails_when_it_runs_is_refused() -> None:
    loaded = LoadedModel(make_chat_model(), make_byte_tokenizer(), "tiny", None)
    reader = Reader(loaded, keep=False)
    loaded.model.model.layers[0].mlp.act_fn = None
    with pytest.raises(ModelError, match="model 'tiny' fails when it runs: TypeError"):
        reader.read("The lamp is lit.")


@pytest.mark.parametrize(
    "text", ["", "7", "[" * 100_000, "[]", "{}", '{"version": 4, "heads": {"matching": 7}}', "\x00"]
)
def test_damaged_files_of_heads_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "heads.json"
    path.write_text(text)
    with pytest.raises(FormatError, match="path must be a file of tuned heads") as caught:
        Heads.load(path)
    assert caught.value.argument == "path"


def test_files_of_any_depth_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    # Python's reader of JSON goes a few levels deeper than its writer.
    for depth in range(600, 1000, 10):
        path.write_text('{"version": 4, "heads": {}, "more": ' + "[" * depth + "]" * depth + "}")
        with pytest.raises(FormatError, match="path must be a file of tuned heads"):
            Heads.load(path)


def test_damaged_copies_are_refused(tmp_path: Path) -> None:
    ends = damage_tuned_heads(tmp_path, 1000)
    assert ends["refused"] > 700, ends


def test_missing_heads_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="path must name an existing file"):
        Heads.load(tmp_path / "gone.json")
    with pytest.raises(FormatError, match="path must name a file of tuned heads"):
        Heads.load(tmp_path)
    with pytest.raises(FormatError, match="path must name a file that can be written"):
        HEADS.save(tmp_path / "gone" / "heads.json", model="tiny", weights=WEIGHTS, architecture="llama")
