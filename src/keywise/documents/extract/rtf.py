"""Blocks of an RTF file, without hidden and deleted text."""

from __future__ import annotations

import re
from typing import Final

from keywise.documents.blocks import BlockBuilder, BlockKind
from keywise.documents.extract.extracted import Extracted, UnreadableFileError
from keywise.documents.extract.plain import add_plain_text
from keywise.documents.extract.tables import names_columns

# Characters that mark what a paragraph is in the text that striprtf returns.
_HEADING, _ITEM, _NOTE = "\x01", "\x02", "\x03"
_OWN_MARK: Final = re.compile("\x01(?:\\d\x01)?|[\x02\x03]")
_HEADING_LINE: Final = re.compile("\x01(\\d)\x01")
_LIST_TEXT: Final = re.compile(r"\{\s*(?:\\\*)?\\(?:listtext|pntext)(?![a-z])")
_BULLET: Final = re.compile(r"\s*[-*·•‣◦▪●–\u00a7o\uf0a7\uf0b7\uf0d8]\s+")
_BRACE: Final = re.compile(r"\\[^a-z]|[{}]")
_FOOTNOTE: Final = re.compile(r"\{\s*(?:\\\*)?\\footnote(?![a-z])")
_PARAGRAPH_END: Final = re.compile(r"\\par(?![a-z])")
_STYLE_SHEET: Final = re.compile(r"\{\s*\\stylesheet(?![a-z])")
_HEADING_STYLE: Final = re.compile(
    r"\{\s*\\s(\d{1,5})(?![\da-z])[^{};]{0,2000}?(?:heading|\u00fcberschrift|titre|t\u00edtulo)\s*(\d)[^{}]{0,100};",
    re.IGNORECASE,
)
_PARAGRAPH_LEVEL: Final = re.compile(r"\\(?:s(\d{1,5})|outlinelevel(\d))(?![\da-z])")
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
    markup = _HIDDEN_RUN.sub(" ", _HIDDEN_GROUP.sub("", _OWN_MARK.sub(" ", markup)))
    markup = _mark_headings(_move_footnotes(markup))
    markup = _LIST_TEXT.sub(rf"{{{_ITEM} ", markup)
    text = rtf_to_text(markup, encoding="cp1252", errors="replace")
    builder = BlockBuilder()
    reader = _ParagraphReader(builder, has_titles=_OWN_MARK.search(text) is None)
    for line in text.split("\n"):
        reader.read(line)
    reader.finish()
    return Extracted(builder.text, tuple(builder.blocks))


class _ParagraphReader:
    """Appends paragraphs with our marks, and the rows of tables, to a document."""

    def __init__(self, builder: BlockBuilder, *, has_titles: bool) -> None:
        self._builder = builder
        self._has_titles = has_titles
        self._paragraphs: list[str] = []
        self._rows: list[list[str]] = []

    def read(self, line: str) -> None:
        plain = _OWN_MARK.sub("", line)
        # The cells of a row end with a bar.
        if plain.rstrip().endswith("|") and plain.count("|") > 1:
            self._flush_paragraphs()
            self._rows.append(plain.rstrip().removesuffix("|").split("|"))
            return
        self._flush_rows()
        heading = _HEADING_LINE.search(line)
        if not plain.strip():
            return
        if heading or _ITEM in line or _NOTE in line:
            self._flush_paragraphs()
        if heading:
            self._builder.add_heading(plain, level=int(heading[1]) + 1)
        elif _NOTE in line:
            self._builder.add(BlockKind.FOOTNOTE, plain)
        elif _ITEM in line:
            self._builder.add(BlockKind.LIST_ITEM, _BULLET.sub("", plain))
        else:
            self._paragraphs.append(plain)

    def finish(self) -> None:
        self._flush_rows()
        self._flush_paragraphs()

    def _flush_rows(self) -> None:
        if self._rows:
            self._builder.add_table(self._rows, has_header=names_columns(self._rows))
            self._rows = []

    def _flush_paragraphs(self) -> None:
        add_plain_text(self._builder, "\n\n".join(self._paragraphs), has_titles=self._has_titles)
        self._paragraphs.clear()


def _find_group_end(markup: str, begin: int) -> int:
    """Return the place behind the group that begins at a brace."""
    depth = 0
    for brace in _BRACE.finditer(markup, begin):
        if brace.group() in "{}":
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                return brace.end()
    return len(markup)


def _move_footnotes(markup: str) -> str:
    """Put footnotes, each marked, behind the text."""
    parts: list[str] = []
    notes: list[str] = []
    begin = 0
    for match in _FOOTNOTE.finditer(markup):
        if match.start() < begin:
            continue  # a note in a note
        end = _find_group_end(markup, match.start())
        parts.append(markup[begin : match.start()])
        notes.append(f"\\par\\pard{{{_NOTE} {_PARAGRAPH_END.sub(' ', markup[match.end() : end - 1])}}}")
        begin = end
    if not notes:
        return markup
    body = "".join([*parts, markup[begin:]]).rstrip(" \r\n\0").removesuffix("}")
    return f"{body}{''.join(notes)}\\par}}"


def _mark_headings(markup: str) -> str:
    """Put a mark with its level into every paragraph that is a heading by its style or outline level."""
    sheet = _STYLE_SHEET.search(markup)
    begin = end = 0
    levels: dict[str, int] = {}
    if sheet:
        begin, end = sheet.start(), _find_group_end(markup, sheet.start())
        for style in _HEADING_STYLE.finditer(markup[begin:end]):
            levels[style[1]] = min(int(style[2]), 9) - 1

    def mark(match: re.Match[str]) -> str:
        level = int(match[2]) if match[2] else levels.get(match[1])
        return match.group() if level is None or level > 8 else f"{match.group()} {_HEADING}{level}{_HEADING}"

    return markup[:end] + _PARAGRAPH_LEVEL.sub(mark, markup[end:])
