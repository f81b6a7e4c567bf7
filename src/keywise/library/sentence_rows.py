"""The sentences of a document as the rows of a library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keywise.documents import Source
from keywise.documents.blocks import BlockKind, Quote
from keywise.library.schema import HEADING_PATH, SENTENCE_COLUMNS, TEXT

MAX_HEADING_CHARACTERS: Final = 200
"""Most characters of headings that are encoded with a sentence."""

_BLANK_LINE: Final = re.compile(r"\n[^\S\n]*\r?\n|\r[^\S\r\n]*\r")


@dataclass(frozen=True)
class SentenceRows:
    """Sentences of a document as `SENTENCE_COLUMNS` hold them."""

    document: str
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.columns[TEXT])

    @property
    def encoded_texts(self) -> list[str]:
        """The texts whose keys are stored: each sentence after its headings."""
        return [
            add_headings(text, path) for text, path in zip(self.columns[TEXT], self.columns[HEADING_PATH], strict=True)
        ]


def add_headings(text: str, heading_path: Sequence[str]) -> str:
    """Return a sentence after the headings that it stands under, the inner ones if they are long.

    Parameters
    ----------
    text
        The sentence.
    heading_path
        The headings, outermost first.

    Examples
    --------
    >>> add_headings("It is EUR 45.", ["Contract", "Fees"])
    'Contract > Fees: It is EUR 45.'
    """
    if not heading_path:
        return text
    headings = " > ".join(heading_path)
    # An encoder reads the first 256 tokens or so.
    if len(headings) > MAX_HEADING_CHARACTERS:
        headings = headings[-MAX_HEADING_CHARACTERS:]
        headings = headings.partition(" ")[2] or headings
    return f"{headings}: {text}"


def make_rows(source: Source, document: str, digest: str) -> SentenceRows:
    r"""Return the sentences of a source as rows.

    A heading belongs to the sentences under it, which name it, and the header of a table to its rows: neither is a row
    of its own, nor is a table of contents. The text between two rows is the `gap` of the second one. Blank lines and
    headings end paragraphs.

    Parameters
    ----------
    source
        The text.
    document
        Name of the document.
    digest
        SHA-256 of its file.

    Examples
    --------
    >>> rows = make_rows(Source("note", "# Lamps\n\nOne is *lit*."), "note", "")
    >>> rows.columns["text"], rows.columns["source_text"], rows.columns["gap"], rows.columns["heading_path"]
    (['One is lit.'], ['One is *lit*.'], ['# Lamps\n\n'], [['Lamps']])
    """
    columns: dict[str, list[Any]] = {column.name: [] for column in SENTENCE_COLUMNS}
    previous_end = 0
    paragraph = 0
    for index, quote in enumerate(_select_content(source.quotes)):
        gap = source.text[previous_end : quote.begin]
        path = list(quote.block.heading_path)
        if index and (_BLANK_LINE.search(gap) or path != columns[HEADING_PATH][-1]):
            paragraph += 1
        source_text = source.text[quote.begin : quote.end]
        row = {
            TEXT: quote.text,
            "source_text": None if source_text == quote.text else source_text,
            "gap": gap,
            "kind": str(quote.block.kind),
            HEADING_PATH: path,
            "document": document,
            "sentence": index,
            "paragraph": paragraph,
            "start": quote.begin,
            "end": quote.end,
            "hash": digest,
        }
        for name, values in columns.items():
            values.append(row[name])
        previous_end = quote.end
    return SentenceRows(document, columns)


def _select_content(quotes: Sequence[Quote]) -> list[Quote]:
    """Return the quotes that say something themselves; all of them if none does."""
    announcing = {BlockKind.HEADING, BlockKind.TABLE_HEADER, BlockKind.CONTENTS_LINE}
    content = [quote for quote in quotes if quote.block.kind not in announcing]
    named = {heading for quote in content for heading in quote.block.heading_path}
    # A heading that nothing stands under says all that there is.
    kept = [quote for quote in quotes if quote.block.kind not in announcing or _is_bare_heading(quote, named)]
    return kept if content else list(quotes)


def _is_bare_heading(quote: Quote, named: set[str]) -> bool:
    return quote.block.kind == BlockKind.HEADING and " ".join(quote.text.split()) not in named
