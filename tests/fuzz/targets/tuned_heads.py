"""Files of tuned heads: the heads that were saved, or `FormatError`."""

import tempfile
from pathlib import Path

from keywise.documents.heads import Heads, guess_heads
from keywise.errors import FormatError
from tests.fuzz.targets.files import MemoryFile

_FILE = MemoryFile()


def make_seeds() -> list[bytes]:
    """Return the files of two models."""
    seeds = []
    with tempfile.TemporaryDirectory() as folder:
        for layers, heads in ((2, 2), (6, 4)):
            path = guess_heads(layers, heads).save(
                Path(folder) / "heads.json", model="tiny", weights="files: 1f", architecture="llama"
            )
            seeds.append(path.read_bytes())
    return seeds


def execute(data: bytes) -> None:
    """Load heads."""
    try:
        loaded = Heads.load(_FILE.replace(data))
    except FormatError:
        return
    assert loaded in (guess_heads(2, 2), guess_heads(6, 4)), "a damaged file was accepted"
