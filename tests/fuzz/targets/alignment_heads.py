"""Files of alignment heads: the heads that were saved, or `FormatError`."""

import tempfile
from pathlib import Path

from keywise.alignment import AlignmentHead, AlignmentHeads
from keywise.alignment.heads import FORWARD, LinkRule
from keywise.errors import FormatError
from tests.fuzz.targets.files import MemoryFile

_FILE = MemoryFile()
_SAVED = (
    AlignmentHeads((AlignmentHead(3, 5),)),
    AlignmentHeads(
        (AlignmentHead(1, 2, "output"),),
        (AlignmentHead(0, 1),),
        {FORWARD: LinkRule(0.5, 0.1, (1.5, -2.0), 0.25)},
        "pairs",
    ),
)


def make_seeds() -> list[bytes]:
    """Return the files of two models."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "heads.json"
        return [heads.save(path, model="tiny", weights="files: 1f").read_bytes() for heads in _SAVED]


def execute(data: bytes) -> None:
    """Load heads."""
    try:
        loaded = AlignmentHeads.load(_FILE.replace(data))
    except FormatError:
        return
    assert loaded in _SAVED, "a damaged file was accepted"
