"""Text to sentences, as character spans."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

# Text without end marks (a table turned to text, a log) is cut here, so that evidence stays short enough to read.
MAX_SENTENCE_CHARACTERS: Final = 1000

_BLANK = re.compile(r"[\s\ufeff]*")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_BLOCK_END = re.compile(r"\s*(?:#{1,6}\s|\||(?:=+|-+)\s*\Z)")
_BLOCK_START = re.compile(r"\s*(?:#{1,6}\s|[-*+]\s|\d{1,9}[.)]\s|>|\||```|~~~)")
_LINE_MARK = re.compile(r"\s*(?:#{1,6}|[-*+]|\d{1,9}[.)]|>)\s+")
_TABLE_ROW = re.compile(r"\s*\|")


def split_sentences(text: str) -> Iterator[tuple[int, int]]:
    r"""Yield the character span of every sentence.

    Together the spans contain all letters and digits. Headings, list items and table rows are sentences of their own.
    Text without an end mark is cut after 1000 characters.

    Parameters
    ----------
    text
        Plain text or Markdown.

    Yields
    ------
    tuple of (int, int)
        First character and the character after the last, in order and without overlap.

    Examples
    --------
    >>> text = "# Rain\nIt rained. Dr. Low left."
    >>> [text[start:end] for start, end in split_sentences(text)]
    ['# Rain', 'It rained.', 'Dr. Low left.']
    """
    from sentencex import get_sentence_boundaries  # noqa: PLC0415 - optional

    for block_start, block_end in _split_blocks(text):
        if _TABLE_ROW.match(text, block_start):
            yield from _trim_and_cut(text, block_start, block_end)
            continue
        mark = _LINE_MARK.match(text, block_start, block_end)
        body_start = mark.end() if mark else block_start
        start = block_start  # the mark of a heading or list item belongs to its first sentence
        for boundary in get_sentence_boundaries("en", text[body_start:block_end]):
            end = body_start + boundary["end_index"]
            yield from _trim_and_cut(text, start, end)
            start = end
        yield from _trim_and_cut(text, start, block_end)


def has_words(text: str) -> bool:
    """Return whether a text has any letter or digit."""
    return any(character.isalnum() for character in text)


def _split_blocks(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of paragraphs, headings, list items and table rows; no sentence crosses them."""
    start = None
    for match in _LINE.finditer(text):
        line = match.group()
        blank = not line.strip()
        if start is not None and (blank or _BLOCK_START.match(line)):
            yield start, match.start()
            start = None
        if start is None and not blank:
            start = match.start()
        if start is not None and _BLOCK_END.match(line):
            yield start, match.end()
            start = None
    if start is not None:
        yield start, len(text)


def _trim_and_cut(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield a span without outer blanks, cut where it is too long."""
    while True:
        blank = _BLANK.match(text, start, end)
        start = blank.end() if blank else start
        if start >= end:
            return
        cut = end
        if end - start > MAX_SENTENCE_CHARACTERS:
            limit = start + MAX_SENTENCE_CHARACTERS
            last_space = max(text.rfind(space, start, limit) for space in " \n\t")
            cut = last_space if last_space > start else limit
        sentence = text[start:cut].rstrip()
        if has_words(sentence):  # rules and code fences are not sentences
            yield start, start + len(sentence)
        start = cut
