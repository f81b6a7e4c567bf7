"""Words of a PDF page with their places, and words to fragments of lines."""

from __future__ import annotations

import ctypes
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

# Gaps as shares of the font size: within a word, and within a fragment of a line.
WORD_GAP: Final = 0.25
FRAGMENT_GAP: Final = 0.9
BASELINE_TOLERANCE: Final = 0.4
RAISED_TOLERANCE: Final = 0.6
MAX_MARK_CHARACTERS: Final = 3
BOLD_WEIGHT: Final = 600
MAX_ANGLE: Final = 0.13
"""In quarters of a turn."""

SAMPLED_CHARACTERS: Final = 200
FONT_NAME_BYTES: Final = 128
# Smaller characters above the baseline are exponents and footnote marks.
RAISED_SIZE: Final = 0.85
_SUPERSCRIPTS: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# PDFium reports a hyphen at a line end as one of these.
_HYPHENS: Final = frozenset((0x02, 0xFFFE, 0xAD))
# Ligatures and the forms of Arabic letters by their place in a word.
_FORMS: Final = (range(0xFB00, 0xFB07), range(0xFB13, 0xFB18), range(0xFB1D, 0xFE00), range(0xFE70, 0xFEFD))
# Bullets of the fonts Symbol and Wingdings.
_SYMBOL_BULLETS: Final = frozenset((0xF0A7, 0xF0A8, 0xF0B7, 0xF0D8, 0xF0FC, 0xF06C, 0xF06E, 0xF076, 0xF09F))
_RIGHT_TO_LEFT: Final = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_FIXED_PITCH_FLAG: Final = 1
_FIXED_PITCH_NAME: Final = re.compile(
    r"mono|courier|consolas|typewriter|menlo|cmtt|lmtt|sftt|nimbusmon|cousine", re.IGNORECASE
)
MAX_MARK_GAP: Final = 5.0
_LIST_MARK: Final = re.compile(r"[-*•‣◦▪●–]|\(?(?:\d{1,2}|[a-zA-Z]|[ivx]{1,4})[.)]")
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
    is_fixed
        Whether all characters of its font have the same width.

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
    is_fixed: bool = False

    @property
    def is_right_to_left(self) -> bool:
        """Whether it is written from right to left."""
        return _RIGHT_TO_LEFT.search(self.text) is not None


@dataclass(slots=True)
class Fragment:
    """Words that follow each other on one line without a wide gap.

    Attributes
    ----------
    words
        In the order in which they are read.

    Examples
    --------
    >>> Fragment([Word("lamp", 10.0, 5.0, 30.0, 15.0, 7.0, 10.0)]).right
    30.0
    """

    words: list[Word] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Left edge."""
        return min(word.left for word in self.words)

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
    quarter_turns
        How often the page was turned by 90 degrees to the right, so that its lines run from left to right.

    Examples
    --------
    >>> PageWords([], 0, 0).words
    []
    """

    words: list[Word]
    characters: int
    unmapped: int
    quarter_turns: int = 0


def turn(left: float, bottom: float, right: float, top: float, quarter_turns: int) -> tuple[float, float, float, float]:
    """Return the edges of a box after turns by 90 degrees to the right around the page's corner.

    Parameters
    ----------
    left, bottom, right, top
        The edges.
    quarter_turns
        Number of turns.

    Examples
    --------
    >>> turn(1.0, 2.0, 4.0, 8.0, 1), turn(2.0, -4.0, 8.0, -1.0, 3)
    ((2.0, -4.0, 8.0, -1.0), (1.0, 2.0, 4.0, 8.0))
    """
    for _ in range(quarter_turns % 4):
        left, bottom, right, top = bottom, -right, top, -left
    return left, bottom, right, top


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
    turns = _find_quarter_turns(raw)
    for index in range(pdfium.FPDFText_CountChars(raw)):
        code = pdfium.FPDFText_GetUnicode(raw, index)
        text = _to_text(code)
        if not text or text.isspace():
            previous = None
            continue
        characters += len(text)
        if text != "•" and (
            code in _PRIVATE_USE or code == 0xFFFD or pdfium.FPDFText_HasUnicodeMapError(raw, index) == 1
        ):
            unmapped += 1
        if not pdfium.FPDFText_GetLooseCharBox(raw, index, box):
            continue
        pdfium.FPDFText_GetCharOrigin(raw, index, x, y)
        left, bottom, right, top, baseline = box.left, box.bottom, box.right, box.top, y.value
        if turns:
            left, bottom, right, top = turn(left, bottom, right, top, turns)
            baseline = turn(x.value, y.value, x.value, y.value, turns)[1]
        size = abs(top - bottom) or 1.0
        if not all(map(math.isfinite, (left, right, top, bottom, baseline))):
            continue
        if previous is not None and abs(previous.baseline - baseline) < BASELINE_TOLERANCE * previous.size:
            gap = left - previous.right
            if not -size < gap < WORD_GAP * size and previous.is_right_to_left:
                gap = previous.left - right
            if -size < gap < WORD_GAP * size:
                is_raised = (
                    size < RAISED_SIZE * (previous.top - previous.bottom) and baseline - previous.baseline > 0.1 * size
                )
                previous.text += text.translate(_SUPERSCRIPTS) if is_raised else text
                previous.left, previous.right = min(previous.left, left), max(previous.right, right)
                previous.bottom, previous.top = min(previous.bottom, bottom), max(previous.top, top)
                continue
        if _count_quarter_turns(raw, index) != turns:
            previous = None
            continue  # text along the margin
        is_bold = pdfium.FPDFText_GetFontWeight(raw, index) >= BOLD_WEIGHT
        font_size = pdfium.FPDFText_GetFontSize(raw, index)
        # The size of the font may be 1 where a matrix scales it.
        own_size = font_size if 0.4 < font_size / size < 1.6 else size / 1.2
        is_fixed = _has_fixed_pitch(raw, index)
        previous = Word(text, left, bottom, right, top, baseline, own_size, is_bold, is_fixed)
        words.append(previous)
    return PageWords(words, characters, unmapped, turns)


def _find_quarter_turns(raw: Any) -> int:
    """Return how often the page has to be turned to the right, so that most of its lines run from left to right."""
    import pypdfium2.raw as pdfium  # noqa: PLC0415 - optional

    count = pdfium.FPDFText_CountChars(raw)
    sample = range(0, count, max(count // SAMPLED_CHARACTERS, 1))
    turns = Counter(_count_quarter_turns(raw, index) for index in sample)
    most = turns.most_common(1)
    return most[0][0] if most and most[0][0] > 0 and 2 * most[0][1] > len(sample) else 0


def _count_quarter_turns(raw: Any, index: int) -> int:
    """Return how often a character has to be turned to the right to stand upright, -1 for other angles."""
    import pypdfium2.raw as pdfium  # noqa: PLC0415 - optional

    # PDFium counts angles clockwise.
    turns = -pdfium.FPDFText_GetCharAngle(raw, index) / (math.pi / 2)
    return round(turns) % 4 if abs(turns - round(turns)) < MAX_ANGLE else -1


def _has_fixed_pitch(raw: Any, index: int) -> bool:
    import pypdfium2.raw as pdfium  # noqa: PLC0415 - optional

    buffer = ctypes.create_string_buffer(FONT_NAME_BYTES)
    flags = ctypes.c_int()
    length = pdfium.FPDFText_GetFontInfo(raw, index, buffer, FONT_NAME_BYTES, flags)
    if not length:
        return False
    return (
        bool(flags.value & _FIXED_PITCH_FLAG)
        or _FIXED_PITCH_NAME.search(buffer.value.decode("utf-8", "replace")) is not None
    )


def _to_text(code: int) -> str:
    if 0x20 <= code < 0x7F:
        return chr(code)
    if code in _HYPHENS:
        return "-"
    if code in _SYMBOL_BULLETS:
        return "•"
    if any(code in forms for forms in _FORMS):
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
    gap = word.left - last.right
    if (last.is_right_to_left or word.is_right_to_left) and gap < -0.5 * size:
        gap = last.left - word.right
    # The mark of a list item stands apart from its text.
    is_mark = len(fragment.words) == 1 and _LIST_MARK.fullmatch(last.text) is not None
    return level and -0.5 * size < gap < (MAX_MARK_GAP if is_mark else FRAGMENT_GAP) * size


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
    return [_sort_line(line) for line in lines]


def _sort_line(line: Sequence[Fragment]) -> list[Fragment]:
    """Return the fragments of a line in the order in which they are read."""
    words = [word for fragment in line for word in fragment.words]
    if 2 * sum(word.is_right_to_left for word in words) > len(words):
        return sorted(line, key=lambda each: -each.right)
    return sorted(line, key=lambda each: each.left)


def _is_level(first: Fragment, second: Fragment) -> bool:
    large, small = (first, second) if first.size >= second.size else (second, first)
    # A footnote mark or an exponent belongs to the line that it stands above.
    is_mark = small.size < RAISED_SIZE * large.size and len(small.text) <= MAX_MARK_CHARACTERS
    tolerance = RAISED_TOLERANCE if is_mark and small.baseline > large.baseline else BASELINE_TOLERANCE
    return abs(first.baseline - second.baseline) < tolerance * large.size


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
