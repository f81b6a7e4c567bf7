"""Lines of a text file, and lines joined to running text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_LINE: Final = re.compile(r"[^\r\n\u2028\u2029\x0b\x0c\x85]*")
_WORD: Final = re.compile(r"\S+")
_PLAIN_WORD: Final = re.compile(r"[^\W\d_]+(?!-\s*\n)")
_COMPOUND: Final = re.compile(r"[^\W\d_]+-[^\W\d_]+")
_UNSPACED_LETTER: Final = re.compile("[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff60]")
_EMPHASIS: Final = re.compile(r"(?<![\w*/])(_{1,3}|\*{1,3})(?=[^\s_*])([^_*]{1,400}?)(?<=[^\s_*])(\1)(?![\w*/])")
_BROKEN_WORD: Final = re.compile(r"[^\W\d_]{2,}[-\u00ad\u2010]\Z")
# Longer rows of dashes are rules.
_DASH_END: Final = re.compile(r"(?:(?<!-)-{2,3}|[—/])\Z")
_DASH_START: Final = re.compile("—")
# Second parts of compounds that are hardly ever the end of a word.
_SECOND_WORDS: Final = "based related specific dependent driven effects level scale term year known called"
_SECOND_PARTS: Final = frozenset(_SECOND_WORDS.split())
# "pre- and post-war": the hyphen stands for the rest of the word.
_CONJUNCTION_WORDS: Final = "and or und oder bis sowie et ou y o e och eller of en ja tai i a oraz"
_CONJUNCTIONS: Final = frozenset(_CONJUNCTION_WORDS.split())


@dataclass(frozen=True, slots=True)
class Line:
    """A line, or the part of it that is behind marks.

    Attributes
    ----------
    begin
        Its first character in the text that it is from.
    text
        Its characters, without the line end and without blanks at its end.

    Examples
    --------
    >>> Line(4, "  two").indent
    2
    """

    begin: int
    text: str

    @property
    def end(self) -> int:
        """The character after the last."""
        return self.begin + len(self.text)

    @property
    def indent(self) -> int:
        """Number of blanks that it begins with."""
        return len(self.text) - len(self.text.lstrip())

    @property
    def is_blank(self) -> bool:
        """Whether it has only blanks."""
        return not self.text or self.text.isspace()

    def skip(self, characters: int) -> Line:
        """Return the line behind so many characters."""
        return Line(self.begin + characters, self.text[characters:])


def split_lines(text: str) -> list[Line]:
    r"""Return the lines of a text; a byte order mark is no part of the first.

    Parameters
    ----------
    text
        The text.

    Examples
    --------
    >>> split_lines("One. \r\ntwo")
    [Line(begin=0, text='One.'), Line(begin=7, text='two')]
    """
    lines = []
    position = 1 if text.startswith("\ufeff") else 0
    while position < len(text):
        match = _LINE.match(text, position)
        end = match.end() if match else position
        lines.append(Line(position, text[position:end].rstrip()))
        position = end + (2 if text.startswith("\r\n", end) else 1)
    return lines


def find_vocabulary(text: str) -> frozenset[str]:
    """Return the words of a text in lower case, among them those with a hyphen inside a line.

    Examples
    --------
    >>> sorted(find_vocabulary("A well-known lamp."))
    ['a', 'known', 'lamp', 'well', 'well-known']
    """
    lowered = text.lower()
    return frozenset(_PLAIN_WORD.findall(lowered)) | frozenset(_COMPOUND.findall(lowered))


def join_lines(lines: Sequence[Line], vocabulary: frozenset[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    r"""Return lines as running text, and its runs as `keywise.documents.blocks.Block.runs` has them.

    Runs of blanks become one space, and marks of emphasis such as ``_so_`` go. A word that is broken at a line end is
    joined, without its hyphen unless the word stands elsewhere with it, or its parts are words of the text and the
    whole is none.

    Parameters
    ----------
    lines
        The lines of a paragraph.
    vocabulary
        From `find_vocabulary`.

    Examples
    --------
    >>> join_lines([Line(0, "The har-"), Line(9, "bour  is")], frozenset())
    ('The harbour is', ((0, 0), (7, 9), (12, 15)))
    """
    parts: list[str] = []
    runs: list[tuple[int, int]] = []
    length = 0
    for line in lines:
        for number, word in enumerate(_WORD.finditer(line.text)):
            begin = line.begin + word.start()
            if parts:
                hyphen, separator = _choose_separator(parts[-1], word.group(), vocabulary) if number == 0 else (0, " ")
                if hyphen:
                    parts[-1] = parts[-1][:-1]
                    length -= 1
                if separator:
                    parts.append(separator)
                    length += 1
            if not runs or begin - length != runs[-1][1] - runs[-1][0]:
                runs.append((length, begin))
            parts.append(word.group())
            length += len(word.group())
    text = "".join(parts)
    marks = [span for match in _EMPHASIS.finditer(text) for span in (match.span(1), match.span(3))]
    return _delete_spans(text, runs, marks) if marks else (text, tuple(runs))


def _delete_spans(
    text: str, runs: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return a text and its runs without the characters of some spans, which ascend."""
    kept: list[tuple[int, int]] = []
    begin = 0
    for first, last in [*spans, (len(text), len(text))]:
        if begin < first:
            kept.append((begin, first))
        begin = last
    new_runs: list[tuple[int, int]] = []
    length = run = 0
    for first, last in kept:
        while run + 1 < len(runs) and runs[run + 1][0] <= first:
            run += 1
        new_runs.append((length, runs[run][1] + first - runs[run][0]))
        while run + 1 < len(runs) and runs[run + 1][0] < last:
            run += 1
            new_runs.append((length + runs[run][0] - first, runs[run][1]))
        length += last - first
    return "".join(text[first:last] for first, last in kept), tuple(new_runs)


def join_words(left: str, right: str, vocabulary: frozenset[str]) -> tuple[int, str]:
    """Return how many characters the last word of a line loses, and what separates it from the next line's first.

    Parameters
    ----------
    left, right
        The two words.
    vocabulary
        From `find_vocabulary`.

    Examples
    --------
    >>> join_words("har-", "bour", frozenset()), join_words("lamp", "is", frozenset())
    ((1, ''), (0, ' '))
    """
    return _choose_separator(left, right, vocabulary)


def _choose_separator(left: str, right: str, vocabulary: frozenset[str]) -> tuple[int, str]:
    if left.endswith("\u00ad"):
        return 1, ""
    if _BROKEN_WORD.search(left):
        return _join_broken(left, right, vocabulary)
    is_joined = bool(
        (left.endswith("–") and left[-2:-1].isdigit() and right[:1].isdigit())
        or _DASH_END.search(left)
        or _DASH_START.match(right)
        or (_UNSPACED_LETTER.match(left[-1]) and _UNSPACED_LETTER.match(right[0]))
    )
    return 0, "" if is_joined else " "


def _join_broken(left: str, right: str, vocabulary: frozenset[str]) -> tuple[int, str]:
    first = re.split(r"[^\w-]", right, maxsplit=1)[0].lower()
    if first in _CONJUNCTIONS:
        return 0, " "
    stem = re.split(r"[^\w-]", left)[-1][:-1].split("-")[-1].lower()
    first = first.split("-")[0]
    is_compound = (
        f"{stem}-{first}" in vocabulary
        or first in _SECOND_PARTS
        or (f"{stem}{first}" not in vocabulary and min(len(stem), len(first)) > 2 and {stem, first} <= vocabulary)
    )
    return (0 if is_compound or not right[:1].islower() else 1), ""


def iterate_paragraphs(lines: Sequence[Line]) -> Iterator[list[Line]]:
    r"""Yield the lines between blank lines.

    Parameters
    ----------
    lines
        The lines of a text.

    Examples
    --------
    >>> [len(lines) for lines in iterate_paragraphs(split_lines("a\nb\n\nc"))]
    [2, 1]
    """
    paragraph: list[Line] = []
    for line in lines:
        if line.is_blank:
            if paragraph:
                yield paragraph
            paragraph = []
        else:
            paragraph.append(line)
    if paragraph:
        yield paragraph
