"""Files in SQuAD's format: documents with questions, or an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keywise.documents.squad import load_squad
from keywise.errors import FormatError

ANSWER = {"text": "Ann", "answer_start": 4}
QUESTION = {"question": "Who?", "answers": [ANSWER]}


def write(path: Path, question: Any = QUESTION, context: Any = "The Ann.") -> Path:
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [question]}] * 3}]}))
    return path


def test_paragraphs_are_joined_and_answers_moved(tmp_path: Path) -> None:
    first, second = load_squad(write(tmp_path / "data.json"), 2)
    assert first.text == "The Ann.\n\nThe Ann."
    assert [question.positions for question in first.questions] == [(4,), (14,)]
    assert second.questions[0].accepts("ann!")


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '{"data": 7}', '{"data": [7]}', "[" * 100_000])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(FormatError, match="data must be a JSON file in SQuAD's format"):
        load_squad(tmp_path / "data.json", 1)


@pytest.mark.parametrize(
    ("question", "context"),
    [
        ({**QUESTION, "question": 7}, "The Ann."),
        ({**QUESTION, "question": None}, "The Ann."),
        ({**QUESTION, "question": "\ud800"}, "The Ann."),
        ({**QUESTION, "answers": [{**ANSWER, "text": ["Ann"]}]}, "The Ann."),
        ({**QUESTION, "answers": [{**ANSWER, "answer_start": "4"}]}, "The Ann."),
        ({**QUESTION, "answers": 7}, "The Ann."),
        (QUESTION, None),
        (QUESTION, "The \udc80."),
    ],
)
def test_other_types_are_refused(tmp_path: Path, question: Any, context: Any) -> None:
    with pytest.raises(FormatError, match="data must be a JSON file in SQuAD's format"):
        load_squad(write(tmp_path / "data.json", question, context), 1)
