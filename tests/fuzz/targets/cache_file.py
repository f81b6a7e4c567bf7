"""Cache files: the content that was saved, or `FormatError`."""

import tempfile
from pathlib import Path

import numpy as np

import keywise as kw
from keywise.cache import file
from keywise.errors import FormatError
from tests.fuzz.targets.files import MemoryFile

FINGERPRINT = {"weights": "1f"}
_FILE = MemoryFile()


def make_seeds() -> list[bytes]:
    """Return caches of two element types."""
    random_numbers = np.random.default_rng(0)
    seeds = []
    for dtype in (None, "int8"):
        cache = kw.KVCache(2, dtype=dtype)
        for layer in range(2):
            cache.append(layer, *(random_numbers.standard_normal((1, 2, 3, 8)).astype(np.float32) for _ in "kv"))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cache"
            file.save(path, cache, fingerprint=FINGERPRINT, token_ids=[7, 8, 9], extra={"note": np.arange(3)})
            seeds.append(path.read_bytes())
    return seeds


def execute(data: bytes) -> None:
    """Open a file and read all of it."""
    try:
        opened = file.open(_FILE.replace(data), FINGERPRINT)
        opened.verify()
    except FormatError:
        return
    assert opened.header.tokens == 3, "a damaged file was accepted"
    assert opened.header.token_ids.tolist() in ([7, 8, 9], [[7, 8, 9]]), "a damaged file was accepted"
    opened.cache.attend(0, np.ones((1, 2, 1, 8), np.float32))
