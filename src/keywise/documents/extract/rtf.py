"""Blocks of an RTF file, without hidden and deleted text."""

from __future__ import annotations

import re
from typing import Final

from keywise.documents.blocks import BlockBuilder
from keywise.documents.extract.extracted import Extracted, UnreadableFileError
from keywise.documents.extract.plain import add_plain_text
from keywise.documents.extract.tables import has_header

_HIDDEN_GROUP: Final = re.compile(r"\{[^{}\\]*(?:\\[a-z]+-?\d*\s?)*?\\(?:v|deleted)(?![a-z0-9])[^{}]*\}")
_HIDDEN_RUN: Final = re.compile(r"\\(?:v|deleted)(?![a-z0-9])[^{}]*?\\(?:v0|deleted0|plain)(?![a-z0-9])")


def extract(content: bytes) -> Extracted:
    r"""Return the text and blocks of an RTF file.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    UnreadableFileError
        It is no RTF file.

    Examples
    --------
    >>> extract(rb"{\rtf1\ansi It is {\v not }dry.\par It rains.}").text
    'It is dry.\n\nIt rains.'
    """
    from striprtf.striprtf import rtf_to_text  # noqa: PLC0415 - optional

    markup = content.decode("latin-1")
    if not markup.lstrip().startswith("{\\rtf"):
        raise UnreadableFileError("it does not begin as an RTF file does")
    markup = _HIDDEN_RUN.sub(" ", _HIDDEN_GROUP.sub("", markup))
    text = rtf_to_text(markup, encoding="cp1252", errors="replace")
    builder = BlockBuilder()
    paragraphs: list[str] = []
    rows: list[list[str]] = []
    for line in [*text.split("\n"), ""]:
        # The cells of a row end with a bar.
        if line.rstrip().endswith("|") and line.count("|") > 1:
            _add_paragraphs(builder, paragraphs)
            rows.append(line.rstrip().removesuffix("|").split("|"))
            continue
        if rows:
            builder.add_table(rows, has_header=max(map(len, rows)) > 2 and has_header(rows[:20]))
            rows = []
        paragraphs.append(line)
    _add_paragraphs(builder, paragraphs)
    return Extracted(builder.text, tuple(builder.blocks))


def _add_paragraphs(builder: BlockBuilder, paragraphs: list[str]) -> None:
    add_plain_text(builder, "\n\n".join(paragraphs))
    paragraphs.clear()
