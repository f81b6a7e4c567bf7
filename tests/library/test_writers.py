"""Writers of a library that are killed, or write at once: whole documents, and none lost."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import keywise as kw
from keywise.library import commits
from keywise.library.opening import is_local
from tests.support.library_tools import WordEncoder, add_forever, add_once, document_text, write_documents


@pytest.fixture(scope="module")
def forkserver() -> Any:
    """Processes that begin quickly, in which Lance was imported but never used: it does not live through a fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "keywise.library.library"])
    return context


@contextmanager
def killed_writer(forkserver: Any, place: Path, folder: Path) -> Iterator[None]:
    """Add new editions of a folder's documents in another process, which is killed when this ends."""
    begun = forkserver.Event()
    process = forkserver.Process(target=add_forever, args=(str(place), str(folder), 12, begun))
    process.start()
    assert begun.wait(60)
    yield
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_killed_at_any_moment_it_holds_whole_documents(tmp_path: Path, forkserver: Any) -> None:
    folder, place = tmp_path / "documents", tmp_path / "library"
    write_documents(folder, 12)
    kw.Library.open(place, "a", encoder=WordEncoder()).add([folder])
    randomly = random.Random(0)
    versions = set()
    most_seconds = 0.15
    for _ in range(50):
        with killed_writer(forkserver, place, folder):
            time.sleep(most_seconds * randomly.random())
        library = kw.Library.open(place, encoder=WordEncoder())
        if library.version in versions:
            most_seconds *= 1.15  # a busy machine commits later
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
    assert len(kw.Library.open(place, "a", encoder=WordEncoder()).add([folder]).atomic_write) == 12


def test_killed_while_it_is_made_it_can_be_made(tmp_path: Path, forkserver: Any) -> None:
    randomly = random.Random(1)
    for attempt in range(10):
        place = tmp_path / f"library {attempt}"
        with killed_writer(forkserver, place, tmp_path / "documents"):
            time.sleep(0.04 * randomly.random())
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


def test_two_writers_that_delete_from_one_fragment(tmp_path: Path) -> None:
    paths = write_documents(tmp_path / "documents", 20)
    library = kw.Library.open(tmp_path / "library", "a", encoder=WordEncoder())
    library.add(paths)
    first, second = (kw.Library.open(library.path, "a", encoder=WordEncoder()) for _ in range(2))
    first.remove([paths[0]])
    second.remove([paths[1]])
    assert kw.Library.open(library.path, encoder=WordEncoder()).info().rows == 18 * 6


def test_commits_of_object_stores_need_no_folder_here() -> None:
    assert not is_local("s3://bucket/library")
    assert is_local("/home/library")
    with commits.alone("s3://bucket/library"):
        assert not Path("s3:").exists()
