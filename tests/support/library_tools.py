"""What the tests of libraries share: an encoder that needs no model, and documents made by rule."""

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
    """Keys of texts are sums of a random direction per word, of length 1."""

    def __init__(self, name: str = "words", seed: int = 0) -> None:
        self.name, self.fingerprint, self._seed = name, f"{name} {seed}", seed

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._key(text) for text in texts])

    def _key(self, text: str) -> np.ndarray:
        words = [word.casefold() for word in re.findall(r"\w+", text)] or ["."]
        key = sum(
            np.random.default_rng([self._seed, zlib.crc32(word.encode())]).normal(size=DIMENSION) for word in words
        )
        return key / np.linalg.norm(key)


def write_documents(folder: Path, count: int, edition: int = 0) -> list[Path]:
    """Write documents of two paragraphs with three sentences each; another edition has another text."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.txt" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_text(document_text(number, edition), encoding="utf-8")
    return paths


def document_text(number: int, edition: int = 0) -> str:
    name, thing = NAMES[number % 8], THINGS[number // 8 % 8]
    return (
        f"{name} keeps the {thing} of house {number}. It is old. It was mended in {1900 + number + edition}.\n\n"
        f"Every {thing} has a keeper. House {number} has {name} and no other. Nobody else came there."
    )


class SlowEncoder(WordEncoder):
    """Takes its time, so that there is some to be killed in."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        time.sleep(0.002)
        return super().encode(texts)


def add_forever(path: str, folder: str, group_sentences: int, begun: Any) -> None:
    """Write new editions of documents and add them, until killed."""
    ingest.GROUP_SENTENCES = group_sentences
    library = Library.open(path, "a", encoder=SlowEncoder())
    begun.set()
    for edition in itertools.count(1):
        write_documents(Path(folder), 12, edition)
        library.add([folder])


def add_once(path: str, folder: str, barrier: Any, said: Any) -> None:
    """Add a folder at the same moment as others do, and say how many documents landed, or what went wrong."""
    library = Library.open(path, "a", encoder=WordEncoder())
    barrier.wait(60)
    try:
        done = library.add([folder])
        said.put(len(done.added) + len(done.atomic_write))
    except KeywiseError as error:
        said.put(str(error))
