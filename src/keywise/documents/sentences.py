"""Blocks to sentences, by the rules of their language."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from keywise.documents.blocks import PROSE_KINDS, Block, BlockKind, Quote
from keywise.documents.languages import detect_language
from keywise.util.foreign_errors import translate_errors

# Text without end marks (a table turned to text, a log) is cut here, so that evidence stays short enough to read.
MAX_SENTENCE_CHARACTERS: Final = 1000
# A list item or message that is longer is read as prose.
MAX_ITEM_CHARACTERS: Final = 300
MAX_CODE_CHARACTERS: Final = 400
# sentencex takes time in the square of a text's length: it reads a text in parts of this length.
PART_CHARACTERS: Final = 2000

_SPACE: Final = re.compile(r"\s")
_END_MARK: Final = re.compile(r"[.!?…。！？।॥؟۔።။។]+[\"'”’»)\]]*\s+|[。！？]+[」』”’）]*")
_ABBREVIATION: Final = re.compile(
    r"\b(?:incl|excl|inkl|exkl|zzgl|approx|ca|vs|bzw|ggf|evtl|Messrs|Mme|Mlle|Nos?|Nrn?|Art|Figs?|Secs?|Eqs?|Abs|Abb|Tel"
    r"|Bd|Hrsg|St|Prof|Dres|Dipl|Ing|Rev|Hon|Capt|Col|Gen|Lt|Sgt)\.\s*\Z"
)
_NUMBERED: Final = re.compile(r"\b(?:nos?|nr|pp?|ch|vol|cl|para|art)\.\s*\Z", re.IGNORECASE)
_SECTION_MARK: Final = re.compile(r"(?:§+\s*)?[(\[]?(?:\d{1,3}(?:\.\d{1,3})*|[a-zA-Z]|[ivxlcIVXLC]{1,6})[.)\]]\s*")
_STARTS_LOWER: Final = re.compile(r"[\"'“‘«(]*[a-zà-öø-ÿа-яё]")
_GERMAN_ORDINAL: Final = re.compile(
    r"\b(?:am|im|vom|zum|zur|beim|der|die|das|des|dem|den|ein|eine|einem|einen|einer|bis|ab|seit|und|oder|jede[mnrs]?)"
    r"\s\d{1,2}\.\s*\Z",
    re.IGNORECASE,
)
_GERMAN_MONTH: Final = re.compile(
    r"(?:Januar|Jänner|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember)\b"
)
_DAY: Final = re.compile(r"(?:^|\s)\d{1,2}\.\s*\Z")
_QUOTATIVE: Final = re.compile(r"と|って|[^。！？，“”]{0,6}[说說问問道答喊叫]")
# Scripts that end sentences by a space; in shorter parts the space separates phrases.
_SPACED_LANGUAGES: Final = ("th", "lo")
_SPACED_CHARACTERS: Final = 60


def split_sentences(text: str) -> Iterator[tuple[int, int]]:
    r"""Yield the character span of every sentence of a plain text or Markdown.

    Together the spans contain all letters and digits. Headings, list items, table rows and messages of a chat are
    sentences of their own. Text without an end mark is cut after 1000 characters.

    Parameters
    ----------
    text
        The text.

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
    from keywise.documents.extract.plain import find_blocks  # noqa: PLC0415 - imports this module

    for quote in make_quotes(text, find_blocks(text)):
        yield quote.begin, quote.end


def make_quotes(text: str, blocks: Sequence[Block]) -> Iterator[Quote]:
    """Yield the sentences of blocks.

    Parameters
    ----------
    text
        The text of the source.
    blocks
        Its blocks, in order and without overlap.

    Examples
    --------
    >>> text = "It is **dry.** Rain comes."
    >>> block = Block(BlockKind.PARAGRAPH, 0, 26, "It is dry. Rain comes.", runs=((0, 0), (6, 8), (10, 14)))
    >>> [(quote.text, text[quote.begin : quote.end]) for quote in make_quotes(text, [block])]
    [('It is dry.', 'It is **dry.**'), ('Rain comes.', 'Rain comes.')]
    """
    language = detect_language(text)
    for block in blocks:
        if not has_words(block.text):
            continue
        if is_one_sentence(block):
            begin, end = _trim(text, block.begin, block.end)
            yield Quote(begin, end, block.text.strip(), block)
        else:
            yield from _split_block(text, block, block.language or detect_language(block.text, language))


def is_one_sentence(block: Block) -> bool:
    """Return whether a block is quoted as a whole.

    Parameters
    ----------
    block
        The block.

    Examples
    --------
    >>> is_one_sentence(Block(BlockKind.LIST_ITEM, 0, 9, "One. Two.", runs=((0, 0),)))
    True
    """
    if not block.runs:
        return True
    if block.kind in PROSE_KINDS:
        return False
    limits = {BlockKind.LIST_ITEM: MAX_ITEM_CHARACTERS, BlockKind.CODE: MAX_CODE_CHARACTERS}
    return len(block.text) <= limits.get(block.kind, MAX_SENTENCE_CHARACTERS)


def split_prose(text: str, language: str) -> list[tuple[int, int]]:
    """Return the spans of the sentences of running text, without the blanks between them.

    Parameters
    ----------
    text
        The text, on one line.
    language
        Code of its language.

    Examples
    --------
    >>> text = "Es beginnt am 1. Februar. Kleintiere sind erlaubt."
    >>> [text[start:end] for start, end in split_prose(text, "de")]
    ['Es beginnt am 1. Februar.', 'Kleintiere sind erlaubt.']
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for end in [*_join_wrong_ends(text, _find_ends(text, language), language), len(text)]:
        spans += _cut(text, start, end)
        start = end
    return spans


def has_words(text: str) -> bool:
    """Return whether a text has any letter or digit.

    Examples
    --------
    >>> has_words("--- *** ---"), has_words("- 5")
    (False, True)
    """
    return any(character.isalnum() for character in text)


def _split_block(text: str, block: Block, language: str) -> Iterator[Quote]:
    if block.kind == BlockKind.CODE:
        spans = [(match.start(), match.end()) for match in re.finditer(r"[^\n]+", block.text)]
        spans = [part for start, end in spans for part in _cut(block.text, start, end)]
    else:
        spans = split_prose(block.text, language)
    spans = [(start, end) for start, end in spans if has_words(block.text[start:end])]
    located = [block.locate(start, end) for start, end in spans]
    begin = block.begin
    for number, (start, end) in enumerate(spans):
        finish = block.end
        next_begin = block.end
        if number + 1 < len(spans):
            finish, next_begin = _divide_gap(text, located[number][1], located[number + 1][0])
        first, last = _trim(text, begin, finish)
        yield Quote(first, last, block.text[start:end], block, start)
        begin = next_begin


def _divide_gap(text: str, start: int, end: int) -> tuple[int, int]:
    """Return where a sentence ends and the next begins; the marks between belong to the nearer one."""
    gap = text[start:end]
    blanks = [match.start() for match in _SPACE.finditer(gap)]
    if not blanks:
        return end, end
    left = blanks[-1] if has_words(gap) else blanks[0]
    return start + left, start + blanks[-1] + 1


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without outer blanks and byte order marks."""
    while start < end and (text[start].isspace() or text[start] == "\ufeff"):
        start += 1
    while start < end and (text[end - 1].isspace() or text[end - 1] == "\ufeff"):
        end -= 1
    return start, end


def _find_ends(text: str, language: str) -> Iterator[int]:
    """Yield where sentences end, blanks after them included."""
    if language in _SPACED_LANGUAGES:
        yield from _find_spaced_ends(text)
        return
    # One space each, of one character: sentencex panics at a no-break space before a full stop.
    text = _SPACE.sub(" ", text)
    start = 0
    while start < len(text):
        part = text[start : start + PART_CHARACTERS]
        ends = _find_ends_of_part(part, language)
        is_last = start + PART_CHARACTERS >= len(text)
        # The last sentence of a part may go on in the next.
        sure = ends if is_last else [end for end in ends if end < len(part)]
        yield from (start + end for end in sure)
        if is_last:
            return
        start += sure[-1] if sure else _find_last_space(part)


def _find_last_space(part: str) -> int:
    return part.rfind(" ") + 1 or len(part)


def _find_ends_of_part(part: str, language: str) -> list[int]:
    from sentencex import get_sentence_boundaries  # noqa: PLC0415 - optional

    try:
        with translate_errors(ValueError):
            return [boundary["end_index"] for boundary in get_sentence_boundaries(language, part)]
    except ValueError:  # a panic of sentencex
        return [match.end() for match in _END_MARK.finditer(part)]


def _find_spaced_ends(text: str) -> Iterator[int]:
    start = 0
    for blank in re.finditer(r"\s+", text):
        follows_number = text[blank.start() - 1 : blank.start()].isdigit()
        precedes_number = text[blank.end() : blank.end() + 1].isdigit()
        if blank.start() - start >= _SPACED_CHARACTERS and not (follows_number or precedes_number):
            yield blank.end()
            start = blank.end()


def _join_wrong_ends(text: str, ends: Iterator[int], language: str) -> Iterator[int]:
    """Yield the ends of sentences but those behind section marks and ordinal numbers, and within a sentence."""
    start = 0
    for end in ends:
        sentence, rest = text[start:end], text[end : end + 20]
        stripped = sentence.rstrip()
        wrong = (
            _SECTION_MARK.fullmatch(sentence.lstrip()) is not None
            or not has_words(sentence)
            or (stripped.endswith(".") and _is_abbreviation(stripped[-20:], rest))
            or (stripped.endswith(".") and not stripped.endswith("...") and _STARTS_LOWER.match(rest) is not None)
            or (stripped.endswith(("」", "』", "”")) and _QUOTATIVE.match(rest) is not None)
            or (language == "de" and _is_german_ordinal(sentence, rest))
        )
        if not wrong and end < len(text):
            yield end
            start = end


def _is_abbreviation(end: str, rest: str) -> bool:
    if rest[:1].isdigit() and _NUMBERED.search(end):
        return True
    return _ABBREVIATION.search(end) is not None


def _is_german_ordinal(sentence: str, rest: str) -> bool:
    if _DAY.search(sentence) and _GERMAN_MONTH.match(rest):
        return True
    return _GERMAN_ORDINAL.search(sentence[-40:]) is not None


def _cut(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield a span without outer blanks, cut where it is too long."""
    while True:
        start, end = _trim(text, start, end)
        if start >= end:
            return
        cut = end
        if end - start > MAX_SENTENCE_CHARACTERS:
            limit = start + MAX_SENTENCE_CHARACTERS
            last_space = max(text.rfind(space, start, limit) for space in " \n\t")
            cut = last_space if last_space > start else limit
        yield start, _trim(text, start, cut)[1]
        start = cut
