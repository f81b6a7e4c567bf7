"""What of a document becomes a row, what an interrupted `add` keeps, and files that were moved or deleted."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keywise as kw
from keywise.library import ingest
from keywise.library.library import Library
from keywise.library.sentence_rows import add_headings
from tests.support.library_tools import WordEncoder, write_documents


class RecordingEncoder(WordEncoder):
    """Remembers what it encoded, and fails at the first text with a certain word."""

    def __init__(self, fails_at: str | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.fails_at = fails_at
        self._error = error

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        if self.fails_at is not None and any(self.fails_at in text for text in texts):
            raise self._error
        self.texts += [text for text in texts if text != "."]
        return super().encode(texts)


def open_library(folder: Path, encoder: WordEncoder | None = None) -> Library:
    return kw.Library.open(folder / "library", "a", encoder=encoder or WordEncoder())


def list_rows(library: Library, *columns: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = library.dataset.to_table(columns=list(columns)).to_pylist()
    return rows


def test_row_of_a_table_is_stored_and_encoded_with_its_header(tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("region,units\nNorth,12\nSouth,7\n", encoding="utf-8")
    encoder = RecordingEncoder()
    library = open_library(tmp_path, encoder)
    library.add([tmp_path / "sales.csv"])
    assert list_rows(library, "text", "source_text", "start", "kind") == [
        {"text": "region: North; units: 12", "source_text": "North,12", "start": 13, "kind": "table row"},
        {"text": "region: South; units: 7", "source_text": "South,7", "start": 22, "kind": "table row"},
    ]
    assert encoder.texts == ["region: North; units: 12", "region: South; units: 7"]


def test_headings_are_encoded_with_what_stands_under_them(tmp_path: Path) -> None:
    text = "# Lease\n\n## Fees\n\n- The *card* costs EUR 45.\n\n***\n\n## Nothing here\n"
    (tmp_path / "lease.md").write_text(text, encoding="utf-8")
    encoder = RecordingEncoder()
    library = open_library(tmp_path, encoder)
    library.add([tmp_path / "lease.md"])
    assert encoder.texts == ["Lease > Fees: The card costs EUR 45.", "Lease: Nothing here"]
    rows = list_rows(library, "text", "source_text", "gap", "heading_path", "paragraph")
    assert [row["text"] for row in rows] == ["The card costs EUR 45.", "Nothing here"]
    assert [row["heading_path"] for row in rows] == [["Lease", "Fees"], ["Lease"]]
    assert "".join(row["gap"] + (row["source_text"] or row["text"]) for row in rows) == text.rstrip()
    assert [row["paragraph"] for row in rows] == [0, 1]
    (hit,) = library.search("fees of the lease", top=1, where="array_has(heading_path, 'Fees')")
    assert (hit.text, hit.heading_path, hit.kind) == ("The card costs EUR 45.", ("Lease", "Fees"), "list item")


def test_long_headings_leave_room_for_the_sentence() -> None:
    path = [f"Part {number} of the long title" for number in range(40)]
    encoded = add_headings("It is EUR 45.", path)
    assert encoded.endswith("Part 39 of the long title: It is EUR 45.")
    assert len(encoded) < 220
    assert len(add_headings("It is EUR 45.", ["x" * 1000])) < 220


def test_document_of_headings_alone_is_stored(tmp_path: Path) -> None:
    (tmp_path / "list.md").write_text("# Lamps\n\n# Boats\n", encoding="utf-8")
    library = open_library(tmp_path)
    assert library.add([tmp_path / "list.md"]).sentences == 2
    assert library.add([tmp_path / "list.md"]).unchanged


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_documents_that_were_encoded_before_an_interruption_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr(ingest, "ENCODED_SENTENCES", 12)
    paths = write_documents(tmp_path / "documents", 20)
    encoder = RecordingEncoder(fails_at="of house 15", error=error)
    library = open_library(tmp_path, encoder)
    with pytest.raises(error):
        library.add([tmp_path / "documents"])
    assert sorted(library.documents()) == [str(path) for path in paths[:14]]
    encoder.fails_at = None
    encoder.texts.clear()
    again = library.add([tmp_path / "documents"])
    assert (len(again.unchanged), len(again.added), len(encoder.texts)) == (14, 6, 36)


@pytest.mark.parametrize("damage", [False, True])
def test_long_document_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bool
) -> None:
    monkeypatch.setattr(ingest, "ENCODED_SENTENCES", 10)
    monkeypatch.setattr(ingest, "LONG_SENTENCES", 100)
    write_documents(tmp_path / "documents", 1)
    book = tmp_path / "documents" / "book.txt"
    book.write_text("\n\n".join(f"House {number} has a lamp." for number in range(150)), encoding="utf-8")
    encoder = RecordingEncoder(fails_at="House 77 ")
    library = open_library(tmp_path, encoder)
    with pytest.raises(KeyboardInterrupt):
        library.add([tmp_path / "documents"])
    assert list(library.documents()) == []
    unfinished = list(Path(library.path, "_unfinished").iterdir())
    assert len(unfinished) == 1
    if damage:
        content = unfinished[0].read_bytes()
        unfinished[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    encoder.fails_at = None
    encoder.texts.clear()
    assert library.add([tmp_path / "documents"]).sentences == 156
    assert (
        len([text for text in encoder.texts if text.startswith("House") and "lamp" in text]) == 150 - (not damage) * 70
    )
    assert list(Path(library.path, "_unfinished").iterdir()) == []
    rows = list_rows(library, "text", "key")
    expected = np.asarray(WordEncoder().encode([row["text"] for row in rows]), np.float16)
    np.testing.assert_array_equal(np.array([row["key"] for row in rows], np.float16), expected)


def test_old_keys_of_unfinished_documents_are_removed(tmp_path: Path) -> None:
    paths = write_documents(tmp_path / "documents", 2)
    library = open_library(tmp_path)
    library.add(paths[:1])
    folder = Path(library.path, "_unfinished")
    folder.mkdir()
    for name, seconds in (("old.keys", 0), ("young.keys", time.time())):
        (folder / name).write_bytes(b"0\n")
        os.utime(folder / name, (seconds, seconds))
    library.add(paths)
    assert [path.name for path in folder.iterdir()] == ["young.keys"]


def test_documents_are_committed_every_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "ENCODED_SENTENCES", 6)
    monkeypatch.setattr(ingest, "COMMIT_SECONDS", 0.25)

    class WatchingEncoder(WordEncoder):
        """Takes 0.1 seconds, and counts the documents that another process would see."""

        def __init__(self) -> None:
            super().__init__()
            self.counts: list[int] = []

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            if texts != ["."]:
                self.counts.append(len(kw.Library.open(tmp_path / "library", encoder=WordEncoder()).documents()))
                time.sleep(0.1)
            return super().encode(texts)

    write_documents(tmp_path / "documents", 12)
    encoder = WatchingEncoder()
    open_library(tmp_path, encoder).add([tmp_path / "documents"])
    counts = encoder.counts
    assert counts == sorted(counts)
    assert counts[-1] >= 6
    assert all(number - count <= 4 for number, count in enumerate(counts)), counts


def test_moved_documents_keep_their_keys(tmp_path: Path) -> None:
    paths = write_documents(tmp_path / "documents", 6)
    encoder = RecordingEncoder()
    library = open_library(tmp_path, encoder)
    library.add([tmp_path / "documents"])
    before = {row["text"]: row["key"] for row in list_rows(library, "text", "key")}
    (tmp_path / "documents" / "old").mkdir()
    moved = {str(path): str(path.parent / "old" / path.name) for path in paths[:3]}
    for name, new_name in moved.items():
        Path(name).rename(new_name)
    (tmp_path / "documents" / "copy.txt").write_bytes(paths[4].read_bytes())
    encoder.texts.clear()
    result = library.add([tmp_path / "documents"])
    assert (result.moved, result.added, result.sentences) == (moved, [str(tmp_path / "documents" / "copy.txt")], 0)
    assert (result.gone, result.updated, encoder.texts) == ([], [], [])
    assert set(library.documents()) == {*moved.values(), *map(str, paths[3:]), *result.added}
    rows = list_rows(library, "text", "key", "document", "sentence")
    assert len(rows) == 7 * 6
    assert all(before[row["text"]] == row["key"] for row in rows)
    assert library.search("Ben keeps the lamp of house 1")[0].document == moved[str(paths[1])]
    assert len(library.add([tmp_path / "documents"]).unchanged) == 7


def test_moved_document_that_is_read_as_another_format_is_encoded(tmp_path: Path) -> None:
    path = tmp_path / "sales.txt"
    path.write_text("region,units\nNorth,12\n", encoding="utf-8")
    library = open_library(tmp_path)
    library.add([path])
    path.rename(tmp_path / "sales.csv")
    result = library.add([path.with_suffix(".csv")], prune=True)
    assert (result.moved, result.sentences) == ({}, 1)
    assert list_rows(library, "text")[-1] == {"text": "region: North; units: 12"}


def test_deleted_documents_are_told_and_pruned(tmp_path: Path) -> None:
    paths = write_documents(tmp_path / "documents", 4)
    others = write_documents(tmp_path / "documents2", 1, edition=5)
    library = open_library(tmp_path)
    library.add([tmp_path / "documents", tmp_path / "documents2"])
    for path in [*paths[:2], *others]:
        path.unlink()
    result = library.add([tmp_path / "documents"])
    assert (result.gone, result.removed) == ([str(path) for path in paths[:2]], [])
    assert len(library.documents()) == 5
    result = library.add([tmp_path / "documents"], prune=True)
    assert (result.gone, result.removed) == ([], [str(path) for path in paths[:2]])
    assert set(library.documents()) == {str(path) for path in [*paths[2:], *others]}
    assert library.add([others[0]], prune=True).removed == [str(others[0])]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents" / "inner", 1)
    write_documents(tmp_path / "other", 2, edition=3)
    (tmp_path / "documents" / "a link").symlink_to(tmp_path / "other")
    (tmp_path / "documents" / "back").symlink_to(tmp_path / "documents")
    (tmp_path / "documents" / "an inner").symlink_to(tmp_path / "documents" / "inner")
    result = open_library(tmp_path).add([tmp_path / "documents"])
    names = [str(Path(name).relative_to(tmp_path / "documents")) for name in result.added]
    assert (names, result.skipped) == (["inner/000.txt", "a link/000.txt", "a link/001.txt"], {})


def test_add_tells_its_steps(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents", 3)
    lines: list[str] = []
    open_library(tmp_path).add([tmp_path / "documents"], status=lines.append)
    assert lines == ["Comparing 3 files", "Encoding 3 documents", "Indexing words"]
