"""Documents with questions whose answers are known, from files in SQuAD's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keywise.errors import FormatError, OptionError

SEPARATOR: Final = "\n\n"


@dataclass(frozen=True)
class Question:
    """A question, its gold answers, the character of the document at which each begins, and its article's number."""

    text: str
    answers: tuple[str, ...]
    positions: tuple[int, ...]
    article: int

    def right(self, answer: str) -> bool:
        """Tell whether an answer holds one of the gold answers, whatever its capitals."""
        return any(gold.casefold() in answer.casefold() for gold in self.answers)


@dataclass(frozen=True)
class Labelled:
    """A document and its questions."""

    text: str
    questions: tuple[Question, ...]


def labelled_documents(data: Path, paragraphs: int) -> list[Labelled]:
    """Cut the paragraphs of a file in SQuAD's format into documents of so many consecutive ones.

    Parameters
    ----------
    data
        The file.
    paragraphs
        Paragraphs in each document; the last may have fewer.

    Raises
    ------
    FormatError
        If the file cannot be read, or has another format.
    OptionError
        If `paragraphs` is below 1.
    """
    if paragraphs < 1:
        raise OptionError(f"paragraphs={paragraphs} is below 1; give the number of paragraphs in a document")
    try:
        articles = json.loads(data.read_text(encoding="utf-8"))["data"]
        every = [(number, paragraph) for number, article in enumerate(articles) for paragraph in article["paragraphs"]]
        return [_document(every[first : first + paragraphs]) for first in range(0, len(every), paragraphs)]
    except OSError as error:
        raise FormatError(f"data={str(data)!r} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FormatError(f"data={str(data)!r} is not in SQuAD's format ({error!r}); give such a JSON file") from error


def _document(paragraphs: Sequence[tuple[int, dict[str, Any]]]) -> Labelled:
    text, asked = "", list[Question]()
    for article, paragraph in paragraphs:
        start = len(text) + (len(SEPARATOR) if text else 0)
        text = SEPARATOR.join([text, paragraph["context"]]) if text else paragraph["context"]
        for item in paragraph["qas"]:
            golds = item["answers"]
            positions = tuple(start + gold["answer_start"] for gold in golds)
            asked.append(Question(item["question"], tuple(gold["text"] for gold in golds), positions, article))
    return Labelled(text, tuple(asked))
