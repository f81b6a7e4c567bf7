"""Files and texts to sources: text with a name, whose sentences are counted in characters."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Final

from keywise.documents.conversion import convert_to_text
from keywise.documents.sentences import has_words, split_sentences
from keywise.errors import DtypeError, FormatError, MissingFileError
from keywise.util.machine import measure_available_memory
from keywise.util.optional_imports import require_modules
from keywise.util.regular_files import open_regular

CONVERTER_BY_SUFFIX: Final = {
    ".pdf": "PdfConverter",
    ".docx": "DocxConverter",
    ".html": "HtmlConverter",
    ".htm": "HtmlConverter",
    ".xhtml": "HtmlConverter",
}
TEXT_SUFFIXES: Final = (".txt", ".md", ".markdown")
SUPPORTED_FORMATS: Final = "keywise reads plain text and Markdown in UTF-8, HTML, PDF and DOCX, by their suffix"

# Bytes that are not text decode to these. The escape character is left out: logs of terminals are full of it.
_UNREADABLE = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")
MAX_UNREADABLE_SHARE: Final = 0.05

MAX_FILE_BYTES: Final = 10**9
MEMORY_PER_BYTE: Final = 4
"""Least memory that a byte of a file takes: the file, its text, and the sentences."""

_OPEN_PIPES: Final = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Source:
    """A text with a name.

    Parameters
    ----------
    name
        What to call the text in evidence: a path as given, or a title.
    text
        The text that spans count in, in characters. For text files it is ``Path(name).read_bytes().decode("utf-8")``
        with line ends untouched; for HTML, PDF and DOCX it is the text that the file was converted to.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> source = Source("note", "It is dry. Rain comes.")
    >>> [source.text[start:end] for start, end in source.sentences]
    ['It is dry.', 'Rain comes.']
    """

    name: str
    text: str

    @cached_property
    def sentences(self) -> tuple[tuple[int, int], ...]:
        """Character spans (start, end) of the sentences, in order and without overlap."""
        return tuple(split_sentences(self.text))


Readable = str | os.PathLike[str] | Source
"""What a `Reader` reads: a text, the path of a file, or a source."""


def read_file(path: str | os.PathLike[str]) -> Source:
    """Read a text, Markdown, HTML, PDF or DOCX file.

    Parameters
    ----------
    path
        The file. Its suffix decides how it is converted; other suffixes are text in UTF-8.

    Returns
    -------
    Source
        The file's text, named by the path as given.

    Raises
    ------
    MissingFileError
        The file does not exist. It is a `FormatError` and a `FileNotFoundError`.
    FormatError
        The path is a folder, a pipe or a device, or the file is empty, binary, damaged, not UTF-8, too large for the
        memory, or has no words; or its conversion needs more memory or time than a file of its size should.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from keywise.documents import read_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "note.md"
    ...     _ = path.write_text("The lamp is lit.", encoding="utf-8")
    ...     read_file(path).text
    'The lamp is lit.'
    """
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    content = _read_bytes(name)
    text = _convert(content, suffix, name) if suffix in CONVERTER_BY_SUFFIX else _decode(content, name)
    if len(_UNREADABLE.findall(text)) > MAX_UNREADABLE_SHARE * len(text):
        raise FormatError("path", "must not be a binary or damaged file", got=name, remedy=SUPPORTED_FORMATS)
    if not has_words(text):
        if suffix == ".pdf":
            remedy = "a scanned PDF needs text recognition (OCR) first"
        else:
            remedy = "it has no letters or digits"
        raise FormatError("path", "must be a file with text in it", got=name, remedy=remedy)
    return Source(name, text)


def collect_sources(source: Readable | Sequence[Readable]) -> list[Source]:
    """Return the sources of texts and files, in order.

    Parameters
    ----------
    source
        One text, path or source, or a sequence of them; see `keywise.documents.Reader.read`.

    Raises
    ------
    DtypeError
        An item is neither a text, a path nor a source.
    FormatError
        There is nothing to read, a file cannot be read, a text is empty or looks like a path, or two sources have one
        name.

    Examples
    --------
    >>> [item.name for item in collect_sources(["It rains.", Source("note", "It is dry.")])]
    ['text 1', 'note']
    """
    items = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    if not items:
        raise FormatError("source", "must name at least one path or text", got=[])
    sources: list[Source] = []
    for number, item in enumerate(items, start=1):
        sources.append(_as_source(item, "text" if len(items) == 1 else f"text {number}"))
    names = [each.name for each in sources]
    for name in names:
        if names.count(name) > 1:
            remedy = "evidence could not tell the two apart"
            raise FormatError("source", "must not name the same text twice", got=name, remedy=remedy)
    return sources


def _as_source(item: Readable, name: str) -> Source:
    if isinstance(item, os.PathLike):
        return read_file(item)
    if not isinstance(item, str | Source):
        raise DtypeError("source", "must be a pathlib.Path, a str or a Source", got=item)
    text = item if isinstance(item, str) else item.text
    if not has_words(text):
        raise FormatError("source", "must have words in it", got=item, remedy="use a pathlib.Path for a file")
    if isinstance(item, Source):
        return item
    if _looks_like_path(item):
        remedy = f"a str is read as text: use pathlib.Path({item!r}) for the file"
        raise FormatError("source", "must be a text, not the path of a file", got=item, remedy=remedy)
    return Source(name, item)


def _looks_like_path(text: str) -> bool:
    if "\n" in text:
        return False
    suffix = os.path.splitext(text)[1].lower()
    has_path_form = os.sep in text or suffix in {*CONVERTER_BY_SUFFIX, *TEXT_SUFFIXES}
    return (has_path_form and len(text.split()) == 1) or os.path.exists(text)


def check_size(name: str, size_bytes: int) -> None:
    """Raise an error if a file is too large to be read as a document.

    Parameters
    ----------
    name
        The file, for the message.
    size_bytes
        Its length.

    Raises
    ------
    FormatError
        The file is larger than the limit, or its text would not fit in memory.

    Examples
    --------
    >>> check_size("note.txt", 4096)
    """
    limit = min(MAX_FILE_BYTES, measure_available_memory() // MEMORY_PER_BYTE)
    if size_bytes > limit:
        raise FormatError(
            "path",
            f"must have at most {limit:,} bytes on this machine, got {size_bytes:,} in {name!r}",
            remedy="split it",
        )


def _read_bytes(name: str) -> bytes:
    try:
        with _open_document(name) as file:
            check_size(name, os.fstat(file.fileno()).st_size)
            content = file.read(MAX_FILE_BYTES + 1)  # a pipe has no length
            check_size(name, len(content))
    except FileNotFoundError:
        raise MissingFileError("path", "must name an existing file", got=name, remedy="there is no such file") from None
    except IsADirectoryError:
        raise FormatError("path", "must name a file", got=name, remedy="it is a folder: name the files in it") from None
    except MemoryError as error:
        raise FormatError("path", "must name a file that fits in memory", got=name, remedy="split it") from error
    except OSError as error:
        remedy = str(error.strerror)
        raise FormatError("path", "must name a file that can be opened", got=name, remedy=remedy) from error
    if not content:
        raise FormatError("path", "must be a file with text in it", got=name, remedy="the file is empty")
    return content


def _open_document(name: str) -> IO[bytes]:
    """Open a regular file, or a pipe that the caller's shell has opened."""
    if name.startswith(_OPEN_PIPES) and stat.S_ISFIFO(os.stat(name).st_mode):
        return open(name, "rb")
    return open_regular(name)


def _decode(content: bytes, name: str) -> str:
    if content.startswith(_UTF16_MARKS):
        raise FormatError("path", "must be in UTF-8", got=name, remedy="it is in UTF-16: save it as UTF-8")
    if b"\0" in content or content.startswith((b"%PDF-", b"PK\3\4")):
        raise FormatError("path", "must not be a binary file", got=name, remedy=SUPPORTED_FORMATS)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        remedy = f"byte {error.start} is {content[error.start]:#04x}: save it as UTF-8; {SUPPORTED_FORMATS}"
        raise FormatError("path", "must be in UTF-8", got=name, remedy=remedy) from None


def _convert(content: bytes, suffix: str, name: str) -> str:
    is_html = CONVERTER_BY_SUFFIX[suffix] == "HtmlConverter"
    if is_html and b"\0" in content and not content.startswith(_UTF16_MARKS):
        raise FormatError("path", "must be HTML, not a binary file", got=name, remedy=SUPPORTED_FORMATS)
    require_modules("app", "markitdown")
    extension = ".html" if suffix == ".xhtml" else suffix
    # A PDF's fonts can map letters to null characters, which end a text in databases and terminals.
    return convert_to_text(content, CONVERTER_BY_SUFFIX[suffix], extension, name).replace("\0", "\ufffd")
