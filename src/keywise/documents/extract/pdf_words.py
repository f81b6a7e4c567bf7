"""Words of a PDF page with their places, and words to fragments of lines."""

from __future__ import annotations

import ctypes
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

# Gaps as shares of the font size: within a word, and within a fragment of a line.
WORD_GAP: Final = 0.25
FRAGMENT_GAP: Final = 0.9
BASELINE_TOLERANCE: Final = 0.4
BOLD_WEIGHT: Final = 600
MAX_ANGLE: Final = 0.2
# Smaller characters above the baseline are exponents and footnote marks.
RAISED_SIZE: Final = 0.85
_SUPERSCRIPTS: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# PDFium reports a hyphen at a line end as one of these.
_HYPHENS: Final = frozenset((0x02, 0xFFFE, 0xAD))
_LIGATURES: Final = range(0xFB00, 0xFB07)
_PRIVATE_USE: Final = range(0xE000, 0xF900)


@dataclass(slots=True)
class Word:
    """A word of a page, in points.

    Attributes
    ----------
    text
        Its characters.
    left, bottom, right, top
        Edges of its box.
    baseline
        Height of its baseline.
    size
        Size of its font.
    is_bold
        Whether its font is bold.

    Examples
    --------
    >>> Word("lamp", 10.0, 5.0, 30.0, 15.0, 7.0, 10.0).is_bold
    False
    """

    text: str
    left: float
    bottom: float
    right: float
    top: float
    baseline: float
    size: float
    is_bold: bool = False


@dataclass(slots=True)
class Fragment:
    """Words that follow each other on one line without a wide gap.

    Attributes
    ----------
    words
        From left to right.

    Examples
    --------
    >>> Fragment([Word("lamp", 10.0, 5.0, 30.0, 15.0, 7.0, 10.0)]).right
    30.0
    """

    words: list[Word] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Left edge."""
        return self.words[0].left

    @property
    def right(self) -> float:
        """Right edge."""
        return max(word.right for word in self.words)

    @property
    def size(self) -> float:
        """Size of its largest font."""
        return max(word.size for word in self.words)

    @property
    def baseline(self) -> float:
        """Baseline of its largest word."""
        return max(self.words, key=lambda word: (round(word.size, 1), word.right - word.left)).baseline

    @property
    def text(self) -> str:
        """Its words, with spaces."""
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True, slots=True)
class PageWords:
    """The words of a page, in the order of its content, and what tells whether they can be trusted.

    Attributes
    ----------
    words
        The words.
    characters
        Number of characters that are no blanks.
    unmapped
        Number of those that have no Unicode value.

    Examples
    --------
    >>> PageWords([], 0, 0).words
    []
    """

    words: list[Word]
    characters: int
    unmapped: int


def read_words(text_page: Any) -> PageWords:
    """Return the words of a page.

    Parameters
    ----------
    text_page
        A ``pypdfium2.PdfTextPage``.
    """
    import pypdfium2.raw as pdfium  # noqa: PLC0415 - optional

    raw = text_page.raw
    words: list[Word] = []
    characters = unmapped = 0
    previous: Word | None = None
    box = pdfium.FS_RECTF()
    x, y = ctypes.c_double(), ctypes.c_double()
    for index in range(pdfium.FPDFText_CountChars(raw)):
        code = pdfium.FPDFText_GetUnicode(raw, index)
        text = _to_text(code)
        if not text or text.isspace():
            previous = None
            continue
        characters += len(text)
        if code in _PRIVATE_USE or code == 0xFFFD or pdfium.FPDFText_HasUnicodeMapError(raw, index) == 1:
            unmapped += 1
        if not pdfium.FPDFText_GetLooseCharBox(raw, index, box):
            continue
        pdfium.FPDFText_GetCharOrigin(raw, index, x, y)
        size = abs(box.top - box.bottom) or 1.0
        if not all(map(math.isfinite, (box.left, box.right, box.top, box.bottom, y.value))):
            continue
        same_line = previous is not None and abs(previous.baseline - y.value) < BASELINE_TOLERANCE * previous.size
        if previous is not None and same_line and -size < box.left - previous.right < WORD_GAP * size:
            is_raised = (
                size < RAISED_SIZE * (previous.top - previous.bottom) and y.value - previous.baseline > 0.1 * size
            )
            previous.text += text.translate(_SUPERSCRIPTS) if is_raised else text
            previous.right = max(previous.right, box.right)
            previous.bottom = min(previous.bottom, box.bottom)
            previous.top = max(previous.top, box.top)
            continue
        angle = pdfium.FPDFText_GetCharAngle(raw, index)
        if MAX_ANGLE < angle < 2 * math.pi - MAX_ANGLE:
            previous = None
            continue  # text along the margin
        is_bold = pdfium.FPDFText_GetFontWeight(raw, index) >= BOLD_WEIGHT
        font_size = pdfium.FPDFText_GetFontSize(raw, index)
        # The size of the font may be 1 where a matrix scales it.
        own_size = font_size if 0.4 < font_size / size < 1.6 else size / 1.2
        previous = Word(text, box.left, box.bottom, box.right, box.top, y.value, own_size, is_bold)
        words.append(previous)
    return PageWords(words, characters, unmapped)


def _to_text(code: int) -> str:
    if code in _HYPHENS:
        return "-"
    if code in _LIGATURES:
        return unicodedata.normalize("NFKC", chr(code))
    if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
        return "\ufffd"
    # Controls separate words, as blanks do.
    return " " if code < 0x20 or 0x7F <= code < 0xA0 else chr(code)


def make_fragments(words: Sequence[Word]) -> list[Fragment]:
    """Return words in the order of the page's content as fragments of lines.

    Parameters
    ----------
    words
        The words.

    Examples
    --------
    >>> places = (("a", 0.0), ("b", 12.0), ("c", 60.0))
    >>> words = [Word(text, left, 0.0, left + 9, 9.0, 2.0, 9.0) for text, left in places]
    >>> [fragment.text for fragment in make_fragments(words)]
    ['a b', 'c']
    """
    fragments: list[Fragment] = []
    for word in words:
        fragment = fragments[-1] if fragments else None
        last = fragment.words[-1] if fragment else None
        if fragment is not None and last is not None and _follows(last, word, fragment):
            fragment.words.append(word)
        else:
            fragments.append(Fragment([word]))
    return fragments


def _follows(last: Word, word: Word, fragment: Fragment) -> bool:
    size = max(last.size, word.size)
    baseline = fragment.words[0].baseline
    level = min(abs(last.baseline - word.baseline), abs(baseline - word.baseline)) < BASELINE_TOLERANCE * size
    return level and -0.5 * size < word.left - last.right < FRAGMENT_GAP * size


def group_lines(fragments: Sequence[Fragment]) -> list[list[Fragment]]:
    """Return fragments by line, from top to bottom, each line from left to right.

    Parameters
    ----------
    fragments
        The fragments of a column.

    Examples
    --------
    >>> high = Fragment([Word("high", 0.0, 50.0, 9.0, 59.0, 52.0, 9.0)])
    >>> low = Fragment([Word("low", 0.0, 0.0, 9.0, 9.0, 2.0, 9.0)])
    >>> group_lines([low, high]) == [[high], [low]]
    True
    """
    lines: list[list[Fragment]] = []
    for fragment in sorted(fragments, key=lambda each: (-each.baseline, each.left)):
        # A line that reaches over another is one of its own: a superscript belongs to the line below it.
        line = lines[-1] if lines else None
        if line and any(_is_level(each, fragment) for each in line):
            line.append(fragment)
        else:
            lines.append([fragment])
    return [sorted(line, key=lambda each: each.left) for line in lines]


def _is_level(first: Fragment, second: Fragment) -> bool:
    return abs(first.baseline - second.baseline) < BASELINE_TOLERANCE * max(first.size, second.size)


def iterate_words(line: Sequence[Fragment]) -> Iterator[Word]:
    """Yield the words of a line.

    Parameters
    ----------
    line
        Its fragments, from left to right.

    Examples
    --------
    >>> list(iterate_words([]))
    []
    """
    for fragment in line:
        yield from fragment.words
