"""Files to text with character offsets, and text to sentences. Knows nothing of models."""

import codecs
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from keywise.errors import FormatError
from keywise.util.optional_imports import require_modules

CONVERTED_SUFFIXES: Final = {
    ".pdf": "PdfConverter",
    ".docx": "DocxConverter",
    ".html": "HtmlConverter",
    ".htm": "HtmlConverter",
    ".xhtml": "HtmlConverter",
}
SUPPORTED: Final = "plain text and Markdown in UTF-8, HTML, PDF and DOCX"

# A run without any end mark (a table turned to text, a log) is cut here, so that a sentence stays something to look at.
LONGEST_SENTENCE_CHARACTERS: Final = 1000

# Bytes that are no text decode to these; the escape character is left out because terminals' logs are full of it.
_UNREADABLE = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")
MOST_UNREADABLE: Final = 0.05
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_SKIPPED = re.compile(r"[\s\ufeff]*")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_ENDS_BLOCK = re.compile(r"\s*(?:#{1,6}\s|\||(?:=+|-+)\s*\Z)")
_STARTS_BLOCK = re.compile(r"\s*(?:#{1,6}\s|[-*+]\s|\d{1,9}[.)]\s|>|\||```|~~~)")
_MARK = re.compile(r"\s*(?:#{1,6}|[-*+]|\d{1,9}[.)]|>)\s+")
_TABLE_ROW = re.compile(r"\s*\|")


@dataclass(frozen=True)
class Source:
    """A text with its name and its sentences.

    Attributes
    ----------
    name
        What to call it: the path as given, or a title.
    text
        The text that offsets count in, in characters: for text files ``Path(name).read_bytes().decode("utf-8")``, line
        ends untouched; for HTML, PDF and DOCX the text that the file was converted to.

    Examples
    --------
    >>> source = Source("note", "It is dry. Rain comes.")
    >>> [source.text[start:end] for start, end in source.sentences]
    ['It is dry.', 'Rain comes.']
    """

    name: str
    text: str

    @cached_property
    def sentences(self) -> tuple[tuple[int, int], ...]:
        """Character spans (start, end) of the sentences, in order, without overlap."""
        return tuple(split_sentences(self.text))


def read_file(path: str | os.PathLike[str]) -> Source:
    """Read a document from a file.

    Parameters
    ----------
    path
        A text or Markdown file in UTF-8, or an HTML, PDF or DOCX file, known by its suffix.

    Raises
    ------
    FormatError
        If the file is missing, a folder, empty, binary, not UTF-8, damaged, or has no text in it.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "note.md")
    ...     _ = path.write_text("The lamp is lit.", encoding="utf-8")
    ...     read_file(path).text
    'The lamp is lit.'
    """
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    try:
        content = Path(name).read_bytes()
    except FileNotFoundError:
        raise FormatError(f"{name!r}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise FormatError(f"{name!r} is a folder; name the files in it") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{name!r} cannot be opened: {error}") from error
    if not content:
        raise FormatError(f"{name!r} is empty; name a file with text in it")
    text = _converted(content, suffix, name) if suffix in CONVERTED_SUFFIXES else _decoded(content, name)
    if len(_UNREADABLE.findall(text)) > MOST_UNREADABLE * len(text):
        raise FormatError(f"{name!r} is a binary file or its text is damaged; keywise reads {SUPPORTED}")
    if not has_words(text):
        scanned = suffix == ".pdf"
        remedy = "it may be scanned: recognise its text first (OCR)" if scanned else "name a file with text in it"
        raise FormatError(f"{name!r} has no text in it; {remedy}")
    return Source(name, text)


def split_sentences(text: str) -> Iterator[tuple[int, int]]:
    r"""Give the character span (start, end) of every sentence; together they hold all letters and digits.

    Headings, list items and table rows stand alone. Runs without an end mark are cut at 1000 characters.

    Examples
    --------
    >>> text = "# Rain\nIt rained. Dr. Low left."
    >>> [text[start:end] for start, end in split_sentences(text)]
    ['# Rain', 'It rained.', 'Dr. Low left.']
    """
    from sentencex import get_sentence_boundaries  # noqa: PLC0415 - optional

    for block_start, block_end in _blocks(text):
        if _TABLE_ROW.match(text, block_start):
            yield from _pieces(text, block_start, block_end)
            continue
        mark = _MARK.match(text, block_start, block_end)
        body_start = mark.end() if mark else block_start
        start = block_start  # a heading or list item keeps its mark
        for boundary in get_sentence_boundaries("en", text[body_start:block_end]):
            end = body_start + boundary["end_index"]
            yield from _pieces(text, start, end)
            start = end
        yield from _pieces(text, start, block_end)


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Give runs of lines that a sentence may not leave: paragraphs, headings, list items, table rows."""
    start = None
    for match in _LINE.finditer(text):
        line = match.group()
        blank = not line.strip()
        if start is not None and (blank or _STARTS_BLOCK.match(line)):
            yield start, match.start()
            start = None
        if start is None and not blank:
            start = match.start()
        if start is not None and _ENDS_BLOCK.match(line):
            yield start, match.end()
            start = None
    if start is not None:
        yield start, len(text)


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Trim a span and cut it where it is longer than a sentence should be."""
    while True:
        skipped = _SKIPPED.match(text, start, end)
        start = skipped.end() if skipped else start
        if start >= end:
            return
        cut = end
        if end - start > LONGEST_SENTENCE_CHARACTERS:
            limit = start + LONGEST_SENTENCE_CHARACTERS
            space = max(text.rfind(mark, start, limit) for mark in " \n\t")
            cut = space if space > start else limit
        piece = text[start:cut].rstrip()
        if has_words(piece):  # rules and fences are no sentences
            yield start, start + len(piece)
        start = cut


def has_words(text: str) -> bool:
    """Tell whether a text has any letter or digit."""
    return any(character.isalnum() for character in text)


def _decoded(content: bytes, name: str) -> str:
    if content.startswith(_UTF16_MARKS):
        raise FormatError(f"{name!r} is text in UTF-16; save it as UTF-8")
    if b"\0" in content or content.startswith((b"%PDF-", b"PK\3\4")):
        raise FormatError(f"{name!r} is a binary file; keywise reads {SUPPORTED}, told apart by suffix")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{name!r} is not UTF-8 (byte {error.start} is {content[error.start]:#04x}); "
            f"save it as UTF-8; keywise reads {SUPPORTED}"
        ) from None


def _converted(content: bytes, suffix: str, name: str) -> str:
    if CONVERTED_SUFFIXES[suffix] == "HtmlConverter" and b"\0" in content and not content.startswith(_UTF16_MARKS):
        raise FormatError(f"{name!r} is a binary file, not HTML; keywise reads {SUPPORTED}, told apart by suffix")
    require_modules("app", "markitdown")
    import markitdown.converters  # noqa: PLC0415 - optional and slow

    # Only the one converter that the suffix asks for: none of them opens the network, runs programs or loads plug-ins.
    converter = markitdown.MarkItDown(enable_builtins=False, enable_plugins=False)
    converter.register_converter(getattr(markitdown.converters, CONVERTED_SUFFIXES[suffix])())
    kind = ".html" if suffix == ".xhtml" else suffix
    try:
        text: str = converter.convert_stream(
            io.BytesIO(content), stream_info=markitdown.StreamInfo(extension=kind)
        ).markdown
    except markitdown.MarkItDownException as error:
        raise FormatError(
            f"{name!r} is not a {kind[1:].upper()} that can be read; is it whole, and without a password?"
        ) from error
    return text
