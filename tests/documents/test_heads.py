"""Tuned heads: stored as JSON with a version, and refused where they cannot be read."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from keywise.documents import Heads
from keywise.documents.heads import RANKINGS, find_heads, locate_own_heads
from keywise.errors import FormatError, MissingFileError

POWERS = {"attention": {"matching": 2.0, "copying": 1.0, "previous": 0.5}}
HEADS = Heads(((0, 0), (0, 1)), ((1, 0),), POWERS, 0.2, 2.0, answer_sentences=1, tuned_on="a test")
WEIGHTS = "files: " + 64 * "a"


def test_saved_heads_are_loaded_unchanged(tmp_path: Path) -> None:
    path = HEADS.save(tmp_path / "heads.json", model="tiny", weights=WEIGHTS)
    assert Heads.load(path) == HEADS
    content = json.loads(path.read_text())
    assert (content["format"], content["version"], content["weights"]) == ("keywise.heads", 2, [WEIGHTS])


def test_own_heads_of_a_model_are_found_by_its_weights(tmp_path: Path) -> None:
    path = locate_own_heads({"weights": WEIGHTS}, tmp_path)
    path.parent.mkdir(parents=True)
    HEADS.save(path, model="tiny", weights=WEIGHTS)
    assert find_heads({"weights": WEIGHTS}, tmp_path) == HEADS
    assert find_heads({"weights": "files: " + 64 * "b"}, tmp_path) is None


def test_shipped_heads_are_found_and_complete(tmp_path: Path) -> None:
    shipped = [path for path in files("keywise.documents").joinpath("tuned").iterdir() if path.name.endswith(".json")]
    for path in shipped:
        for weights in json.loads(path.read_text("utf-8"))["weights"]:
            heads = find_heads({"weights": weights}, tmp_path)
            assert heads is not None
            assert heads.powers.keys() == RANKINGS.keys()
            assert heads.no_answer_power > 0
    assert shipped


def test_heads_of_an_earlier_build_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    fields = {"matching": [], "copying": [], "powers": {}, "none_mass": 0.0, "none_power": 0.0}
    path.write_text(json.dumps({"model": "tiny", "weights": [WEIGHTS], "heads": fields}))
    with pytest.raises(FormatError, match=r"heads\.json' was made by an earlier build; delete it or create it again"):
        Heads.load(path)
    path.write_text(json.dumps({"version": 3, "model": "tiny", "weights": [WEIGHTS], "heads": fields}))
    with pytest.raises(FormatError, match="was made by another build"):
        Heads.load(path)


@pytest.mark.parametrize("text", ["", "7", "[]", "{}", '{"version": 2, "heads": {"matching": 7}}', "\x00"])
def test_damaged_files_of_heads_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "heads.json"
    path.write_text(text)
    with pytest.raises(FormatError, match="path must be a file of tuned heads") as caught:
        Heads.load(path)
    assert caught.value.argument == "path"


def test_missing_heads_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="path must name an existing file"):
        Heads.load(tmp_path / "gone.json")
    with pytest.raises(FormatError, match="path must name a file of tuned heads"):
        Heads.load(tmp_path)
    with pytest.raises(FormatError, match="path must name a file that can be written"):
        HEADS.save(tmp_path / "gone" / "heads.json", model="tiny", weights=WEIGHTS)
