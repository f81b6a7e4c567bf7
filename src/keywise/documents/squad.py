"""Documents with questions and gold answers, from files in SQuAD's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keywise.errors import FormatError, MissingFileError
from keywise.util.checks import check_int

SEPARATOR: Final = "\n\n"


@dataclass(frozen=True)
class GoldQuestion:
    """A question with its gold answers.

    Attributes
    ----------
    text
        The question.
    answers
        Acceptable answers.
    positions
        For each answer the character of the document at which it begins.
    article
        Number of the article that the question was asked about.
    """

    text: str
    answers: tuple[str, ...]
    positions: tuple[int, ...]
    article: int

    def accepts(self, answer: str) -> bool:
        """Return whether an answer contains one of the gold answers, ignoring case."""
        return any(gold.casefold() in answer.casefold() for gold in self.answers)


@dataclass(frozen=True)
class GoldDocument:
    """A text with its questions."""

    text: str
    questions: tuple[GoldQuestion, ...]


def load_squad(data: Path, paragraphs: int) -> list[GoldDocument]:
    """Load a file in SQuAD's format as documents of consecutive paragraphs.

    Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (2016).

    Parameters
    ----------
    data
        The JSON file.
    paragraphs
        Paragraphs in each document, 1 or more; the last document may have fewer.

    Raises
    ------
    FormatError
        The file is missing, cannot be read, or has another format.
    OptionError
        `paragraphs` is below 1.
    """
    check_int("paragraphs", paragraphs, minimum=1)
    try:
        articles = json.loads(data.read_text(encoding="utf-8"))["data"]
        contexts = [(number, each) for number, article in enumerate(articles) for each in article["paragraphs"]]
        groups = [contexts[first : first + paragraphs] for first in range(0, len(contexts), paragraphs)]
        return [_join_paragraphs(group) for group in groups]
    except FileNotFoundError as error:
        raise MissingFileError("data", "must name an existing file", got=str(data)) from error
    except OSError as error:
        rule = "must name a file that can be read"
        raise FormatError("data", rule, got=str(data), remedy=str(error.strerror)) from error
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        rule = "must be a JSON file in SQuAD's format"
        raise FormatError("data", rule, got=str(data), remedy=f"it cannot be read as such: {error!r}") from error


def _join_paragraphs(paragraphs: Sequence[tuple[int, dict[str, Any]]]) -> GoldDocument:
    text = ""
    questions: list[GoldQuestion] = []
    for article, paragraph in paragraphs:
        if text:
            text += SEPARATOR
        start = len(text)
        text += _check_text(paragraph["context"])
        for item in paragraph["qas"]:
            answers = tuple(_check_text(answer["text"]) for answer in item["answers"])
            positions = tuple(start + answer["answer_start"] for answer in item["answers"])
            questions.append(GoldQuestion(_check_text(item["question"]), answers, positions, article))
    return GoldDocument(text, tuple(questions))


def _check_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text expected, got {value!r:.40}")
    value.encode()  # JSON can hold half a character, which no tokenizer reads
    return value
