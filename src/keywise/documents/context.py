"""What a sentence stands under: its headings, and the line that announces it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

import numpy as np
import regex
from numpy.typing import NDArray

from keywise.documents.blocks import BlockKind

if TYPE_CHECKING:
    from keywise.documents.blocks import Quote
    from keywise.documents.files import Source

# The innermost headings say what a section is about.
CONTEXT_HEADINGS: Final = 2

_ENDS_WITH_QUESTION_MARK = regex.compile(r"[?\uff1f\u061f\u037e][\s\"'\u2019\u201d\u00bb)*_]*$")
_ENDS_WITH_COLON = regex.compile(r"[:\uff1a]\s*$")
# "§ 4 Deposit." opens a paragraph; so few words are its title.
_SECTION_TITLE = regex.compile(r"§\s*\d+\w?\.?(?:\s+\S+){0,4}")


def find_leads(quotes: Sequence[Quote]) -> NDArray[np.bool_]:
    """Return which sentences announce what follows and answer nothing: headings, questions, lines that end in a colon.

    Parameters
    ----------
    quotes
        The sentences, in order.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> find_leads(Source("note", "Who kept the lamp? Ann did.").quotes).tolist()
    [True, False]
    """
    return np.array([_is_lead(quote) for quote in quotes], dtype=np.bool_)


def find_contexts(sources: Sequence[Source]) -> list[str]:
    """Return the text that tells what each sentence is about: headings, and the line that announces it; often empty.

    Of several sources, the name of each is a heading: a title, or the name of a file without its ending.

    Parameters
    ----------
    sources
        The texts; their sentences are numbered in order.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> find_contexts([Source("note", "Who kept the lamp? Ann did. She had goats.")])
    ['', 'Who kept the lamp?', 'Who kept the lamp?']
    """
    contexts: list[str] = []
    for source in sources:
        quotes = source.quotes
        leads = find_leads(quotes)
        title = [PurePath(source.name).stem] if len(sources) > 1 else []
        for number, quote in enumerate(quotes):
            headings = " ".join([*title, *quote.block.heading_path[-CONTEXT_HEADINGS:]])
            lead = _find_announcement(quotes, leads, number)
            contexts.append(" ".join(part for part in (headings and f"{headings}:", lead) if part))
    return contexts


def number_tables(sources: Sequence[Source]) -> NDArray[np.intp]:
    """Return the table of each sentence, -1 for one that is no row: int array [sentences].

    Parameters
    ----------
    sources
        The texts; their sentences are numbered in order.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> number_tables([Source("note", "It is dry.")]).tolist()
    [-1]
    """
    tables: list[int] = []
    table = -1
    for source in sources:
        in_table = False
        for quote in source.quotes:
            is_row = quote.block.kind == BlockKind.TABLE_ROW
            table += is_row and not in_table
            tables.append(table if is_row else -1)
            in_table = is_row
    return np.array(tables, dtype=np.intp)


def _is_lead(quote: Quote) -> bool:
    return (
        quote.block.kind == BlockKind.HEADING
        or _ENDS_WITH_QUESTION_MARK.search(quote.text) is not None
        or _ENDS_WITH_COLON.search(quote.text) is not None
        or _SECTION_TITLE.fullmatch(quote.text) is not None
    )


def _find_announcement(quotes: Sequence[Quote], leads: NDArray[np.bool_], number: int) -> str:
    """Return the question, or the line that ends in a colon, one or two sentences before another."""
    if number >= 1 and leads[number - 1] and not leads[number]:
        lead = quotes[number - 1]
    elif number >= 2 and leads[number - 2] and quotes[number - 1].block is quotes[number].block:
        lead = quotes[number - 2]
    else:
        return ""
    # Headings are in the heading path.
    return "" if lead.block.kind == BlockKind.HEADING else lead.text
