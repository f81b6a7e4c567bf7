"""Libraries whose files were changed, cut or removed are refused, and nothing of them is used."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keywise as kw
from keywise.errors import FormatError
from keywise.library import checksums
from keywise.library.checksums import CHECKSUM_FOLDER
from keywise.library.library import Library
from tests.support.damaged_stores import damage_libraries, make_library, read_library, verify_library
from tests.support.library_tools import WordEncoder, write_documents

ROWS = 20_000


@pytest.fixture
def keys(tmp_path: Path) -> Library:
    """Return a library of one large file."""
    library = kw.Library.open(tmp_path / "library", "a", dtype="float32")
    numbers = np.random.default_rng(0).normal(size=(ROWS, 32)).astype(np.float32)
    library.add_keys(numbers, number=np.arange(ROWS))
    return kw.Library.open(tmp_path / "library")


def find_data_file(library: Library) -> Path:
    (path,) = Path(library.path, "data").iterdir()
    return path


def overwrite(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


@pytest.mark.parametrize("place", [0, 100, ROWS * 64 + 3, ROWS * 128 + 5, -1, -60])
def test_one_changed_bit_of_the_data_is_refused_at_the_next_use(keys: Library, place: int) -> None:
    query = np.ones(32)
    before = keys.attend(query, temperature=5.0)
    path = find_data_file(keys)
    place %= path.stat().st_size
    overwrite(path, place, bytes([path.read_bytes()[place] ^ 4]))
    fresh = kw.Library.open(keys.path)
    for use in (
        lambda: keys.attend(query),
        lambda: before.matches,
        lambda: fresh.attend(query),
        lambda: fresh.attend(query, values="number", where="number < 5"),
        lambda: kw.Library.open(keys.path, "a").index(),
        lambda: kw.Library.open(keys.path, "a").compact(),
    ):
        with pytest.raises(FormatError, match=r"'.*\.lance' is damaged: the checksum of bytes \d+ to \d+ differs"):
            use()


@pytest.mark.parametrize("length", [0, 4096, ROWS * 128])
def test_data_that_are_truncated_while_they_are_used_are_refused(keys: Library, length: int) -> None:
    keys.attend(np.ones(32))
    os.truncate(find_data_file(keys), length)
    with pytest.raises(FormatError, match=r"\.lance' is damaged: it has \d+ bytes instead of"):
        keys.attend(np.ones(32))


def test_file_is_verified_again_only_after_a_change(keys: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 0.05)
    time.sleep(0.1)
    keys.attend(np.ones(32))
    compared: list[str] = []
    monkeypatch.setattr(checksums, "_compare", lambda _handle, _bytes, _record, path: compared.append(path))
    keys.attend(np.ones(32))
    kw.Library.open(keys.path).attend(np.ones(32))
    assert [path for path in compared if path.endswith(".lance")] == []
    os.utime(find_data_file(keys))
    keys.attend(np.ones(32))
    assert [path for path in compared if path.endswith(".lance")] == [str(find_data_file(keys))]


def test_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "library"
    library = make_library(path)
    manifests = sorted((path / "_versions").glob("*.manifest"))
    latest = manifests[0]  # Lance lists the latest version first
    content = latest.read_bytes()
    latest.unlink()
    with pytest.raises(FormatError, match=f"the manifest of version {library.version} is missing"):
        kw.Library.open(path)
    assert kw.Library.open(path, version=library.version - 1, encoder=WordEncoder()).search("Ben")
    latest.write_bytes(content)
    read_library(path)
    for folder in ("data", "_deletions", "_indices"):
        first = next(each for each in sorted((path / folder).rglob("*")) if each.is_file())
        moved = tmp_path / "moved"
        shutil.move(first, moved)
        if folder != "_indices":
            with pytest.raises(FormatError, match=r"cannot be read \(No such file"):
                read_library(path)
        shutil.move(moved, first)
    read_library(path)


def test_all_manifests_removed_is_no_new_library(keys: Library) -> None:
    for manifest in Path(keys.path, "_versions").iterdir():
        manifest.unlink()
    for mode in ("r", "a"):
        with pytest.raises(FormatError, match="the manifest of version 2 is missing"):
            kw.Library.open(keys.path, mode)


def test_damaged_version_hint_is_no_older_library(keys: Library) -> None:
    hint = Path(keys.path, "_versions", "latest_version_hint.json")
    for content in (b"", b"{", b'{"version":1}', b"[" * 10_000, b"\xff" * 100):
        hint.write_bytes(content)
        assert kw.Library.open(keys.path).version == 2


def test_library_without_records_is_read_and_recorded_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "library"
    make_library(path)
    expected = read_library(path)
    shutil.rmtree(path / CHECKSUM_FOLDER)
    assert read_library(path) == expected
    other = write_documents(tmp_path / "more", 3)
    library = kw.Library.open(path, "a", encoder=WordEncoder())
    library.add(other)
    names = checksums.list_dataset_files(library.path, library.dataset)
    assert {name.split("/")[0] for name in names} == {"data", "_deletions", "_indices"}
    for name in names:
        assert checksums.read_record(library.path, name) is not None, name


def test_changes_by_lance_itself_are_accepted(keys: Library) -> None:
    keys.dataset.delete("number = 3")
    library = kw.Library.open(keys.path)
    assert library.info().rows == ROWS - 1
    assert (library.attend(np.ones(32), values="number").rows != 3).all()


def test_damaged_copies_are_refused(tmp_path: Path) -> None:
    ends = damage_libraries(tmp_path, 500)
    assert ends["refused"] > 350, ends


def test_damaged_copies_are_refused_by_every_use(tmp_path: Path) -> None:
    ends = damage_libraries(tmp_path, 40, seed=1, through_lance=True)
    assert ends["refused"] > 25, ends


def test_checks_need_no_reading_of_unchanged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 0.05)
    path = tmp_path / "library"
    library = make_library(path)
    names = checksums.list_dataset_files(str(path), library.dataset)
    time.sleep(0.1)
    verify_library(path, names)
    monkeypatch.setattr(checksums, "open_regular", lambda _path: pytest.fail("read again"))
    verify_library(path, names)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[" * 5000, b"\xff", b'{"bytes": -1, "crc32": "", "record_crc32": 0}']
)
def test_damaged_record_is_refused(keys: Library, content: bytes) -> None:
    record: Any = Path(keys.path, CHECKSUM_FOLDER, "data", f"{find_data_file(keys).name}.json")
    record.write_bytes(content)
    with pytest.raises(FormatError, match="json' is damaged"):
        keys.attend(np.ones(32))
