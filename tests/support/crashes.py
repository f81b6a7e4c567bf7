"""Writers that are killed at random moments: nothing committed is lost, and the next writer sweeps what they left.

`python -m tests.support.crashes --kills 300` kills writers of libraries, of cache files and of converted models.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import keywise as kw
from keywise.cache import file
from keywise.library import ingest
from keywise.library.transactions import sweep_abandoned
from keywise.models import gguf
from keywise.util.atomic_write import UNFINISHED_PREFIX
from tests.support.library_tools import WordEncoder, make_document_text, write_documents

DOCUMENTS = 12
GROUP_SENTENCES = 12
"""A commit every two documents."""
CACHE_TOKENS = 2000
CONVERTING_MODULES = (
    *("keywise.models.loading", "tests.support.gguf_models", "transformers.modeling_gguf_pytorch_utils"),
    *("transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto"),
)
"""What conversions import, which takes seconds."""
SWEPT_EVERY = 10
OLD_SECONDS = 8 * 86400.0


@dataclass
class Crashes:
    """What a series of kills did.

    Attributes
    ----------
    kills
        Writers that were killed.
    commits
        Writers that had committed something before they were killed.
    leftovers
        Files that killed writers left and the next writer removed.
    """

    kills: int = 0
    commits: int = 0
    leftovers: int = 0


def make_context() -> Any:
    """Return a context whose processes start fast: they have imported Lance, which must not be used before a fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["keywise.library.library", "keywise.cache.file", *CONVERTING_MODULES])
    return context


def add_editions(path: str, folder: str, first_edition: int, started: Any, committed: Any) -> None:
    """Add editions of documents until the process is killed, and report each one that was added."""
    started.set()
    ingest.GROUP_SENTENCES = GROUP_SENTENCES
    library = kw.Library.open(path, "a", encoder=WordEncoder())
    for edition in itertools.count(first_edition):
        write_documents(Path(folder), DOCUMENTS, edition)
        library.add([folder])
        committed.value = edition


def read_editions(path: Path) -> list[int]:
    """Return the edition of every document of a library; fail unless each is whole."""
    library = kw.Library.open(path, encoder=WordEncoder())
    library.search("Ben")  # verifies every file
    rows = library.dataset.to_table(columns=["document", "sentence", "text", "gap"]).to_pylist()
    texts: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: (row["document"], row["sentence"])):
        texts[row["document"]] = texts.get(row["document"], "") + row["gap"] + row["text"]
    editions = []
    for number, text in enumerate(texts.values()):
        edition = int(text.partition("mended in ")[2].partition(".")[0]) - 1900 - number
        assert text == make_document_text(number, edition), text
        editions.append(edition)
    return editions


def save_editions(path: str, _folder: str, first_edition: int, started: Any, committed: Any) -> None:
    """Save caches until the process is killed, and report each one that was saved."""
    started.set()
    for edition in itertools.count(first_edition):
        file.save(path, make_cache(edition), fingerprint={}, token_ids=np.full(CACHE_TOKENS, edition))
        committed.value = edition


def make_cache(edition: int) -> kw.KVCache:
    """Return a cache whose every number is that of its edition."""
    cache = kw.KVCache(layers=2)
    for layer in range(2):
        cache.append(layer, *(np.full((1, 2, CACHE_TOKENS, 32), edition, np.float32) for _ in "kv"))
    return cache


def read_cache(path: Path) -> list[int]:
    """Return the edition of a cache file; fail unless all of it is of one edition."""
    opened = file.open(path, {})
    opened.verify()
    (edition,) = set(opened.header.token_ids.ravel().tolist())
    for layer in range(2):
        for side in opened.cache.chunks(layer)[0]:
            assert (side.data == edition).all()
    return [edition]


def convert_editions(path: str, folder: str, first_edition: int, started: Any, committed: Any) -> None:
    """Convert GGUF files until the process is killed, and report each one that was converted."""
    from tests.support.gguf_models import write_gguf

    Path(folder).mkdir(exist_ok=True)
    temporary = Path(path).with_name("temporary")
    temporary.mkdir(exist_ok=True)
    tempfile.tempdir = str(temporary)
    for module in CONVERTING_MODULES:
        importlib.import_module(module)
    started.set()
    for edition in itertools.count(first_edition):
        gguf_file = Path(folder) / f"{edition}.gguf"
        gguf.convert_gguf(write_gguf(gguf_file, seed=edition), path, lambda _line: None)
        committed.value = edition


def read_conversions(path: Path) -> list[int]:
    """Return the newest edition of the converted models; fail unless all older ones are there, and all are whole."""
    editions = []
    for folder in (path / gguf.MODELS).iterdir():
        if folder.name.startswith(gguf.UNFINISHED_PREFIX):
            continue
        gguf_file = path.parent / "documents" / f"{folder.name.partition('-')[0]}.gguf"
        content = gguf_file.read_bytes()
        origin = {"source_bytes": len(content), "source_sha256": hashlib.sha256(content).hexdigest()}
        assert gguf._read_complete(folder, origin) is not None, f"{folder} is there in part"
        editions.append(int(gguf_file.stem))
    assert sorted(editions) == list(range(1, len(editions) + 1)), "a converted model is lost"
    return [len(editions)]


def list_conversion_leftovers(path: Path) -> list[Path]:
    """Return the folders of conversions that did not end."""
    unfinished = (path / gguf.MODELS).glob(f"{gguf.UNFINISHED_PREFIX}*")
    return [*unfinished, *path.with_name("temporary").glob("keywise-*")]


def list_cache_leftovers(path: Path) -> list[Path]:
    """Return the unfinished files beside a cache file."""
    return list(path.parent.glob(f"{UNFINISHED_PREFIX}*"))


def list_library_leftovers(path: Path) -> list[Path]:
    """Return the data files of a library that no version names."""
    dataset = kw.Library.open(path).dataset
    named = {
        data_file.path
        for version in dataset.versions()
        for fragment in dataset.checkout_version(version["version"]).get_fragments()
        for data_file in fragment.metadata.files
    }
    return [data_file for data_file in (path / "data").iterdir() if data_file.name not in named]


def kill_writers(
    folder: Path,
    kills: int,
    write: Callable[[str, str, int, Any, Any], None],
    list_stored: Callable[[Path], list[int]],
    list_leftovers: Callable[[Path], list[Path]],
    sweep: Callable[[Path], Any],
    *,
    max_seconds: float,
    context: Any,
    swept_every: int = SWEPT_EVERY,
    seed: int = 0,
) -> Crashes:
    """Kill writers at random moments, and check after each that nothing committed is lost.

    Raises
    ------
    AssertionError
        An edition that a writer reported is missing, something is there in part, or leftovers were not swept.
    """
    generator = random.Random(seed)
    path = folder / "target"
    committed = context.Value("i", 0)
    crashes = Crashes()
    next_edition = 1
    while crashes.kills < kills:
        before = committed.value
        started = context.Event()
        arguments = (str(path), str(folder / "documents"), next_edition, started, committed)
        process = context.Process(target=write, args=arguments)
        process.start()
        started.wait(60)
        while not committed.value and process.is_alive():  # the first writer creates the file
            time.sleep(0.005)
        time.sleep(max_seconds * generator.random())
        assert process.is_alive(), "a writer failed after the one before it was killed"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        crashes.kills += 1
        crashes.commits += committed.value != before
        # As many writers as possible shall be killed between two commits, and some before their first one.
        max_seconds *= 0.95 if committed.value > before + 1 else 1.05
        editions = list_stored(path)
        # A writer is killed in the middle of its next edition, so some documents may have it already.
        newest = max(committed.value + 1, next_edition)
        assert editions
        assert committed.value <= min(editions), (editions, committed.value)
        assert max(editions) <= newest, (editions, newest)
        next_edition = max(editions) + 1
        if crashes.kills % swept_every == 0 or crashes.kills == kills:
            crashes.leftovers += sweep_leftovers(path, list_leftovers, sweep)
    return crashes


def sweep_leftovers(path: Path, list_leftovers: Callable[[Path], list[Path]], sweep: Callable[[Path], Any]) -> int:
    """Make leftovers old, let the next writer sweep them, and return how many there were."""
    leftovers = list_leftovers(path)
    for leftover in leftovers:
        os.utime(leftover, (time.time() - OLD_SECONDS,) * 2)
    sweep(path)
    remaining = list_leftovers(path)
    assert not remaining, f"not swept: {remaining}"
    return len(leftovers)


def kill_library_writers(folder: Path, kills: int, context: Any, *, max_seconds: float = 0.3) -> Crashes:
    """Kill processes that add documents to a library."""

    def sweep(path: Path) -> None:
        sweep_abandoned(str(path))

    return kill_writers(
        folder,
        kills,
        add_editions,
        read_editions,
        list_library_leftovers,
        sweep,
        max_seconds=max_seconds,
        context=context,
    )


def kill_cache_writers(folder: Path, kills: int, context: Any, *, max_seconds: float = 0.03) -> Crashes:
    """Kill processes that save cache files."""

    def sweep(path: Path) -> None:
        file.save(path.with_name("other"), make_cache(0), fingerprint={}, token_ids=np.zeros(CACHE_TOKENS, np.int64))

    return kill_writers(
        folder, kills, save_editions, read_cache, list_cache_leftovers, sweep, max_seconds=max_seconds, context=context
    )


def kill_conversions(folder: Path, kills: int, context: Any, *, max_seconds: float = 0.3) -> Crashes:
    """Kill processes that convert GGUF files."""
    return kill_writers(
        folder,
        kills,
        convert_editions,
        read_conversions,
        list_conversion_leftovers,
        gguf.remove_abandoned_conversions,
        max_seconds=max_seconds,
        context=context,
        swept_every=1,
    )


WRITERS: dict[str, Callable[..., Crashes]] = {
    "library": kill_library_writers,
    "cache": kill_cache_writers,
    "conversions": kill_conversions,
}


def main() -> None:
    """Kill writers and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each kind of writer")
    parser.add_argument("--writers", nargs="*", choices=WRITERS, default=list(WRITERS))
    arguments = parser.parse_args()
    context = make_context()
    for name in arguments.writers:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            crashes = WRITERS[name](Path(folder), arguments.kills, context)
        print(f"{name}: {crashes}, nothing lost, {time.perf_counter() - start:.0f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
