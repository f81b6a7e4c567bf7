"""Files in SQuAD's format: documents with questions and gold answers, or `FormatError`."""

import json
from pathlib import Path

import numpy as np

from keywise.documents.squad import load_squad
from keywise.errors import FormatError
from tests.fuzz.targets.choices import Bytes, edit_json
from tests.fuzz.targets.files import MemoryFile

_FILE = MemoryFile()
_EDITED = b"\xff"
"""First byte of inputs that edit the file; it begins no text in UTF-8."""
_QUESTION = {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 4}]}
_CONTENT = {
    "version": "1.1",
    "data": [{"title": "a", "paragraphs": [{"context": "The Ann.", "qas": [_QUESTION]}, {"context": "", "qas": []}]}],
}


def make_seeds() -> list[bytes]:
    """Return a file and edits of it."""
    random_numbers = np.random.default_rng(0)
    return [json.dumps(_CONTENT).encode(), *(_EDITED + random_numbers.bytes(12) for _ in range(20))]


def execute(data: bytes) -> None:
    """Load a file."""
    if data.startswith(_EDITED):
        data = json.dumps(edit_json(_CONTENT, Bytes(data[1:]))).encode()
    try:
        documents = load_squad(Path(_FILE.replace(data)), 2)
    except FormatError:
        return
    for document in documents:
        document.text.encode()
        for question in document.questions:
            "\n".join([question.text, *question.answers]).encode()
            assert len(question.positions) == len(question.answers)
            assert not question.answers or question.accepts("".join(question.answers))
            assert all(isinstance(position, int | float) for position in question.positions)
