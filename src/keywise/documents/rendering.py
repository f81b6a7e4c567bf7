"""The text of a source as a model reads it: its sentences without marks, table rows with their header."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from keywise.documents.blocks import BlockKind

if TYPE_CHECKING:
    from keywise.documents.blocks import Quote
    from keywise.documents.files import Source

_BLANK_LINE: Final = re.compile(r"\n[^\S\n]*\r?\n")


def render_sentences(source: Source) -> tuple[str, list[tuple[int, int]]]:
    r"""Return the text of a source's sentences, and the span of each in it.

    Sentences of a block follow each other, blocks begin a line, and a blank line stays.

    Parameters
    ----------
    source
        The source.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> render_sentences(Source("note", "It is  dry.   Rain comes.\n\n---\n\nIt is wet."))
    ('It is dry. Rain comes.\n\nIt is wet.', [(0, 10), (11, 22), (24, 34)])
    """
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0
    previous: Quote | None = None
    for quote in source.quotes:
        separator = "" if previous is None else separate_sentences(source, previous, quote)
        begin = length + len(separator)
        length = begin + len(quote.text)
        parts += separator, quote.text
        spans.append((begin, length))
        previous = quote
    return "".join(parts), spans


def separate_sentences(source: Source, first: Quote, second: Quote) -> str:
    """Return what stands between two consecutive sentences.

    Parameters
    ----------
    source
        Their source.
    first, second
        The sentences.
    """
    gap = source.text[first.end : second.begin]
    if first.block is second.block:
        if second.block.kind == BlockKind.CODE:
            return "\n"
        return " " if gap else ""
    return "\n\n" if _BLANK_LINE.search(gap) else "\n"
