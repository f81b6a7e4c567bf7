"""An encoder that needs no model, generated documents, and writers for other processes."""

from __future__ import annotations

import itertools
import re
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keywise.errors import KeywiseError
from keywise.library import ingest
from keywise.library.library import Library

DIMENSION = 64
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gil", "Hana")
THINGS = ("lamp", "boat", "goat", "well", "mill", "bell", "gate", "oven")


class WordEncoder:
    """Returns keys of length 1: the normalised sum of a random direction per word."""

    def __init__(self, name: str = "words", seed: int = 0) -> None:
        self.name = name
        self.fingerprint = f"{name} {seed}"
        self._seed = seed

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._encode_one(text) for text in texts])

    def _encode_one(self, text: str) -> np.ndarray:
        words = [word.casefold() for word in re.findall(r"\w+", text)] or ["."]
        key = sum(
            np.random.default_rng([self._seed, zlib.crc32(word.encode())]).normal(size=DIMENSION) for word in words
        )
        return key / np.linalg.norm(key)


class SlowEncoder(WordEncoder):
    """Takes a few milliseconds, so that its process can be killed while it encodes."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        time.sleep(0.002)
        return super().encode(texts)


def write_documents(folder: Path, count: int, edition: int = 0) -> list[Path]:
    """Write documents of two paragraphs with three sentences each; every edition has another text."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.txt" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_text(make_document_text(number, edition), encoding="utf-8")
    return paths


def make_document_text(number: int, edition: int = 0) -> str:
    """Return the text of a generated document."""
    name = NAMES[number % 8]
    thing = THINGS[number // 8 % 8]
    return (
        f"{name} keeps the {thing} of house {number}. It is old. It was mended in {1900 + number + edition}.\n\n"
        f"Every {thing} has a keeper. House {number} has {name} and no other. Nobody else came there."
    )


def add_editions_until_killed(path: str, folder: str, group_sentences: int, started: Any) -> None:
    """Write new editions of documents and add them, until the process is killed."""
    ingest.GROUP_SENTENCES = group_sentences
    library = Library.open(path, "a", encoder=SlowEncoder())
    started.set()
    for edition in itertools.count(1):
        write_documents(Path(folder), 12, edition)
        library.add([folder])


def add_when_all_are_ready(path: str, folder: str, barrier: Any, results: Any) -> None:
    """Add a folder at the same time as other processes.

    The number of documents, or an error's message, is put into a queue.
    """
    library = Library.open(path, "a", encoder=WordEncoder())
    barrier.wait(60)
    try:
        result = library.add([folder])
        results.put(len(result.added) + len(result.updated))
    except KeywiseError as error:
        results.put(str(error))
