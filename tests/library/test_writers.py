"""Writers of a library that are killed, or that write at the same time."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keywise as kw
from keywise.errors import FormatError
from keywise.library.dataset import is_local
from keywise.library.transactions import lock_writers
from tests.support.crashes import kill_library_writers
from tests.support.library_tools import (
    WordEncoder,
    add_editions_until_killed,
    add_when_all_are_ready,
    make_document_text,
    write_documents,
)


@pytest.fixture(scope="module")
def forkserver() -> Any:
    """Return a context whose processes start fast: they have imported Lance, which must not be used before a fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "keywise.library.library"])
    return context


@contextmanager
def killed_writer(forkserver: Any, path: Path, folder: Path) -> Iterator[None]:
    """Add new editions of a folder's documents in another process, which is killed at the end of the block."""
    started = forkserver.Event()
    process = forkserver.Process(target=add_editions_until_killed, args=(str(path), str(folder), 12, started))
    process.start()
    assert started.wait(60)
    yield
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_library_holds_complete_documents_when_writer_is_killed(tmp_path: Path, forkserver: Any) -> None:
    folder = tmp_path / "documents"
    path = tmp_path / "library"
    write_documents(folder, 12)
    kw.Library.open(path, "a", encoder=WordEncoder()).add([folder])
    generator = random.Random(0)
    versions = set()
    max_seconds = 0.15
    for _ in range(50):
        with killed_writer(forkserver, path, folder):
            time.sleep(max_seconds * generator.random())
        library = kw.Library.open(path, encoder=WordEncoder())
        if library.version in versions:
            max_seconds *= 1.15  # a busy machine commits later
        versions.add(library.version)
        rows = library.dataset.to_table(columns=["document", "sentence", "text", "gap", "hash"]).to_pylist()
        assert len(rows) == 12 * 6
        texts: dict[str, str] = {}
        for row in sorted(rows, key=lambda row: (row["document"], row["sentence"])):
            texts[row["document"]] = texts.get(row["document"], "") + row["gap"] + row["text"]
        for number, text in enumerate(texts.values()):
            edition = int(text.partition("mended in ")[2][:4]) - 1900 - number
            assert text == make_document_text(number, edition)
        assert library.search("Ben keeps the lamp of house 1")[0].text == "Ben keeps the lamp of house 1."
    assert len(versions) > 10, "the processes were killed before they committed anything"
    write_documents(folder, 12, edition=500)
    assert len(kw.Library.open(path, "a", encoder=WordEncoder()).add([folder]).updated) == 12


def test_library_can_be_created_after_its_creator_was_killed(tmp_path: Path, forkserver: Any) -> None:
    generator = random.Random(1)
    for attempt in range(10):
        path = tmp_path / f"library {attempt}"
        with killed_writer(forkserver, path, tmp_path / "documents"):
            time.sleep(0.04 * generator.random())
        write_documents(tmp_path / "documents", 12)
        library = kw.Library.open(path, "a", encoder=WordEncoder())
        library.add([tmp_path / "documents"])
        assert library.info().rows == 12 * 6


@pytest.mark.parametrize("same_folder", [True, False])
def test_documents_of_two_simultaneous_writers_are_added(tmp_path: Path, forkserver: Any, same_folder: bool) -> None:
    folders = [tmp_path / "one", tmp_path / ("one" if same_folder else "two")]
    for folder in folders:
        write_documents(folder, 10)
    for attempt in range(4):
        path = tmp_path / f"library {attempt}"
        barrier = forkserver.Barrier(2)
        results = forkserver.Queue()
        processes = [
            forkserver.Process(target=add_when_all_are_ready, args=(str(path), str(folder), barrier, results))
            for folder in folders
        ]
        for process in processes:
            process.start()
        added_counts = [results.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
        assert added_counts == [10, 10], added_counts
        library = kw.Library.open(path, encoder=WordEncoder())
        assert library.info().rows == (60 if same_folder else 120)
        assert len(library.documents()) == (10 if same_folder else 20)


def test_two_writers_remove_rows_of_one_fragment(tmp_path: Path) -> None:
    paths = write_documents(tmp_path / "documents", 20)
    library = kw.Library.open(tmp_path / "library", "a", encoder=WordEncoder())
    library.add(paths)
    first, second = (kw.Library.open(library.path, "a", encoder=WordEncoder()) for _ in range(2))
    first.remove([paths[0]])
    second.remove([paths[1]])
    assert kw.Library.open(library.path, encoder=WordEncoder()).info().rows == 18 * 6


def test_lock_of_an_object_store_creates_no_local_folder() -> None:
    assert not is_local("s3://bucket/library")
    assert is_local("/home/library")
    with lock_writers("s3://bucket/library"):
        assert not Path("s3:").exists()


def test_nothing_committed_is_lost_when_writers_are_killed(tmp_path: Path, forkserver: Any) -> None:
    crashes = kill_library_writers(tmp_path, 20, forkserver)
    assert crashes.kills == 20
    assert crashes.commits


def test_old_files_of_killed_writers_are_removed_and_younger_ones_stay(tmp_path: Path) -> None:
    paths = write_documents(tmp_path / "documents", 4)
    library = kw.Library.open(tmp_path / "library", "a", encoder=WordEncoder())
    library.add(paths[:2])
    named = next(Path(library.path, "data").iterdir())
    left = [named.with_name(f"{name}.lance") for name in ("old", "young")]
    for path in left:
        shutil.copy(named, path)
    os.utime(left[0], (0, 0))
    unnamed = [Path(library.path, "_indices", name, "part_0_docs.lance") for name in ("old", "young")]
    for path in unnamed:
        path.parent.mkdir(parents=True)
        shutil.copy(named, path)
    os.utime(unnamed[0], (0, 0))
    # A writer that was killed after its commit has recorded no checksums.
    os.unlink(Path(library.path, "_checksums", "data", f"{named.name}.json"))
    os.utime(named, (0, 0))
    library.add(paths[2:])
    names = {path.name for path in Path(library.path, "data").iterdir()}
    assert named.name in names
    assert "young.lance" in names
    assert "old.lance" not in names
    assert [path.exists() for path in unnamed] == [False, True]
    assert kw.Library.open(library.path, encoder=WordEncoder()).info().documents == 4


def test_full_disk_is_an_error_that_names_the_library(tmp_path: Path) -> None:
    library = kw.Library.open(tmp_path / "library", "a", dtype="float32")
    library.add_keys(np.eye(8))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(FormatError, match=r"library' cannot be written.*[Ff]ile too large"):
            library.add_keys(np.ones((100_000, 8)))
        with pytest.raises(FormatError, match=r"new' cannot be written.*[Ff]ile too large"):
            kw.Library.open(tmp_path / "new", "a").add_keys(np.ones((100_000, 8)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kw.Library.open(library.path).attend(np.ones(8)).rows.size
    library.add_keys(np.eye(8))
    assert kw.Library.open(library.path).info().rows == 16


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FormatError, match=r"cannot be written.*Not a directory"):
        kw.Library.open(tmp_path / "file" / "library", "a").add_keys(np.eye(2))
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "_keywise.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(FormatError, match=r"cannot be written.*symbolic link"):
        kw.Library.open(tmp_path / "library", "a").add_keys(np.eye(2))
    assert not (tmp_path / "victim").exists()
