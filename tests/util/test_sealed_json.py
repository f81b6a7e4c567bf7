"""Sealed JSON files: other formats and versions, damage, and what is no file."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from keywise.errors import FormatError, MissingFileError
from keywise.util.sealed_json import SealedJson

NOTES = SealedJson("keywise.notes", 2, "a file of notes", "delete it", 1 << 12)


def test_entries_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = NOTES.write(tmp_path / "notes.json", {"text": "dry", "numbers": [1, 2.5, None]})
    entries = NOTES.read(path)
    assert (entries["text"], entries["numbers"]) == ("dry", [1, 2.5, None])
    assert path.stat().st_mode & 0o077 == 0


def test_another_format_is_refused_even_if_it_is_intact(tmp_path: Path) -> None:
    other = replace(NOTES, format="keywise.heads")
    with pytest.raises(FormatError, match=r"must be a file of notes.*its format is 'keywise\.heads'; delete it"):
        NOTES.read(other.write(tmp_path / "heads.json", {"text": "dry"}))


@pytest.mark.parametrize(("version", "build"), [(1, "an earlier"), (3, "another")])
def test_another_version_is_refused(tmp_path: Path, version: int, build: str) -> None:
    path = replace(NOTES, version=version).write(tmp_path / "notes.json", {"text": "dry"})
    with pytest.raises(FormatError, match=f"was made by {build} build; delete it"):
        NOTES.read(path)


def test_changed_entries_are_refused_under_their_old_digest(tmp_path: Path) -> None:
    path = NOTES.write(tmp_path / "notes.json", {"text": "dry"})
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "text": "wet"}, indent=1) + "\n")
    with pytest.raises(FormatError, match="it is damaged; delete it"):
        NOTES.read(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(FormatError, match="must name a file of notes"):
            NOTES.read(tmp_path / name)
    with pytest.raises(MissingFileError):
        NOTES.read(tmp_path / "gone")


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = NOTES.write(tmp_path / "notes.json", {"text": "x" * (1 << 12)})
    with pytest.raises(FormatError, match="must be a file of notes"):
        NOTES.read(path)
