"""Files and texts to sources: text with a name, whose sentences are counted in characters."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from keywise.documents.blocks import Block, Box, Quote
from keywise.documents.conversion import extract_blocks
from keywise.documents.extract.encodings import decode_text
from keywise.documents.extract.extracted import Extracted
from keywise.documents.extract.plain import find_blocks
from keywise.documents.sentences import has_words, make_quotes
from keywise.errors import DtypeError, FormatError, MissingFileError
from keywise.util.machine import measure_available_memory
from keywise.util.optional_imports import require_modules
from keywise.util.regular_files import open_regular


class Format(NamedTuple):
    """How the files of a suffix are read.

    Attributes
    ----------
    module
        The module of `keywise.documents.extract`.
    label
        What errors call the format.
    is_text
        Whether spans point into the file, decoded.
    packages
        Packages that it needs.

    Examples
    --------
    >>> FORMAT_BY_SUFFIX[".htm"].label
    'HTML'
    """

    module: str
    label: str
    is_text: bool = False
    packages: tuple[str, ...] = ()


PLAIN_TEXT: Final = Format("plain", "text", True)
_MARKDOWN: Final = Format("markdown", "Markdown", True, ("markdown_it",))
_HTML: Final = Format("html", "HTML", packages=("lxml", "charset_normalizer"))
_MAIL: Final = Format("mail", "mail", packages=("lxml", "charset_normalizer"))
_JSON: Final = Format("json_records", "JSON", packages=("charset_normalizer",))
FORMAT_BY_SUFFIX: Final = {
    ".md": _MARKDOWN,
    ".markdown": _MARKDOWN,
    ".csv": Format("tables", "CSV", True),
    ".tsv": Format("tables", "TSV", True),
    ".html": _HTML,
    ".htm": _HTML,
    ".xhtml": _HTML,
    ".pdf": Format("pdf", "PDF", packages=("pypdfium2",)),
    ".docx": Format("docx", "DOCX", packages=("docx", "lxml")),
    ".pptx": Format("pptx", "PPTX", packages=("pptx",)),
    ".xlsx": Format("xlsx", "XLSX", packages=("openpyxl",)),
    ".odt": Format("odt", "ODT", packages=("lxml",)),
    ".epub": Format("epub", "EPUB", packages=("lxml", "charset_normalizer")),
    ".rtf": Format("rtf", "RTF", packages=("striprtf",)),
    ".eml": _MAIL,
    ".mbox": _MAIL,
    ".json": _JSON,
    ".jsonl": _JSON,
}
TEXT_SUFFIXES: Final = (".txt",)
SUPPORTED_FORMATS: Final = (
    "keywise reads plain text, Markdown, CSV, TSV, JSON, HTML, PDF, DOCX, PPTX, XLSX, ODT, EPUB, RTF, EML and MBOX, by "
    "their suffix"
)

# Bytes that are not text decode to these. The escape character is left out: logs of terminals are full of it.
_UNREADABLE = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")
MAX_UNREADABLE_SHARE: Final = 0.05

MAX_FILE_BYTES: Final = 10**9
MEMORY_PER_BYTE: Final = 4
"""Least memory that a byte of a file takes: the file, its text, and the sentences."""

_OPEN_PIPES: Final = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
WIDE_MARKS: Final = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
BINARY_MARKS: Final = (b"%PDF-", b"PK\3\4", b"\xd0\xcf\x11\xe0")
_ADDRESS: Final = re.compile(r"(?:https?|ftp):/{1,2}[^/]", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A text with a name.

    Parameters
    ----------
    name
        What to call the text in evidence: a path as given, or a title.
    text
        The text that spans count in, in characters. For plain text, Markdown, CSV and TSV it is the file, decoded,
        with line ends untouched; for other formats it is the text of the blocks.
    blocks
        Headings, paragraphs, rows and other parts that no sentence crosses; None to find them in a plain text.
    encoding
        The encoding of a text file.
    warnings
        What its reader should know, such as pages without text.
    file_sha256
        Digest of the file that it was read from, in hexadecimal digits; "" if it is no file.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> source = Source("note", "It is dry. Rain comes.")
    >>> [source.text[start:end] for start, end in source.sentences]
    ['It is dry.', 'Rain comes.']
    """

    name: str
    text: str
    blocks: tuple[Block, ...] | None = field(default=None, repr=False, compare=False)
    encoding: str = field(default="utf-8", repr=False, compare=False)
    warnings: tuple[str, ...] = field(default=(), repr=False, compare=False)
    file_sha256: str = field(default="", repr=False, compare=False)

    @cached_property
    def sentences(self) -> tuple[tuple[int, int], ...]:
        """Character spans (start, end) of the sentences, in order and without overlap."""
        return tuple((quote.begin, quote.end) for quote in self.quotes)

    @cached_property
    def quotes(self) -> tuple[Quote, ...]:
        """The sentences as they are quoted: without marks, a table row with its header; each with its block."""
        blocks = find_blocks(self.text) if self.blocks is None else self.blocks
        return tuple(make_quotes(self.text, blocks))

    @cached_property
    def boxes(self) -> tuple[tuple[Box, ...], ...]:
        """Places of each sentence on the pages of a PDF; empty for other formats."""
        return tuple(quote.boxes for quote in self.quotes)

    def cut(self, start: int, end: int) -> Source:
        """Return the part of the source from a sentence's start to a sentence's end.

        Its sentences are those of the source.

        Parameters
        ----------
        start, end
            Characters of the text.

        Examples
        --------
        >>> part = Source("note", "One. Two. Three.").cut(5, 16)
        >>> part.text, part.sentences
        ('Two. Three.', ((0, 4), (5, 11)))
        """
        part = Source(self.name, self.text[start:end], (), self.encoding)
        quotes = [quote for quote in self.quotes if start <= quote.begin and quote.end <= end]
        blocks = {id(quote.block): quote.block.move(-start) for quote in quotes}
        part.__dict__["quotes"] = tuple(quote.move(-start, blocks[id(quote.block)]) for quote in quotes)
        return part


Readable = str | os.PathLike[str] | Source
"""What a `Reader` reads: a text, the path of a file, or a source."""


def read_file(path: str | os.PathLike[str]) -> Source:
    """Read a document: text, Markdown, CSV, JSON, HTML, PDF, an office document, a book or mails.

    Parameters
    ----------
    path
        The file. Its suffix decides how it is read; other suffixes are plain text.

    Returns
    -------
    Source
        The file's text, named by the path as given.

    Raises
    ------
    MissingFileError
        The file does not exist. It is a `FormatError` and a `FileNotFoundError`.
    FormatError
        The path is an address, a folder, a pipe or a device, or the file is empty, binary, damaged, encrypted, too
        large for the memory, or has no words; or it needs more memory or time than a file of its size should.

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
    if _ADDRESS.match(name):
        remedy = "keywise fetches nothing from the network: save the page and name its file"
        raise FormatError("path", "must name a file, not an address", got=name, remedy=remedy)
    return read_content(read_bytes(name), name)


def read_content(content: bytes, name: str, *, isolated: bool = False) -> Source:
    """Read a document from its bytes.

    Parameters
    ----------
    content
        The file.
    name
        What to call it; the suffix decides how it is read, as for `read_file`.
    isolated
        Whether sentences, and the blocks of plain text, are found in the process with limits of time and memory too:
        for untrusted files.

    Returns
    -------
    Source
        The file's text.

    Raises
    ------
    FormatError
        As for `read_file`.

    Examples
    --------
    >>> from keywise.documents.files import read_content
    >>> read_content(b"The lamp is lit.", "note.txt").sentences
    ((0, 16),)
    """
    file_format = FORMAT_BY_SUFFIX.get(Path(name).suffix.lower())
    if not content:
        raise FormatError("path", "must be a file with text in it", got=name, remedy="the file is empty")
    if file_format is None and not isolated:
        source = _decode_source(content, name)
    else:
        source = _extract(content, file_format or PLAIN_TEXT, name, split=isolated)
        source = replace_source(source, file_sha256=hashlib.sha256(content).hexdigest())
    _check_text(source, file_format)
    return source


def read_stream(stream: IO[bytes], name: str) -> Source:
    """Read a text from an open file, such as standard input.

    Parameters
    ----------
    stream
        The file, which is read to its end.
    name
        What to call the text in evidence.

    Returns
    -------
    Source
        The text.

    Raises
    ------
    FormatError
        It is empty, binary, has no words, or is too large for the memory.

    Examples
    --------
    >>> import io
    >>> from keywise.documents.files import read_stream
    >>> read_stream(io.BytesIO(b"The lamp is lit."), "standard input").text
    'The lamp is lit.'
    """
    limit_bytes = find_size_limit()
    content = stream.read(limit_bytes + 1)
    check_size(name, len(content))
    if not content:
        raise FormatError("path", "must have text in it", got=name, remedy="it is empty")
    source = _decode_source(content, name)
    _check_text(source, None)
    return source


def _decode_source(content: bytes, name: str) -> Source:
    text, encoding = _decode(content, name)
    return Source(name, text, None, encoding, _describe_encoding(encoding))


def _check_text(source: Source, file_format: Format | None) -> None:
    """Raise unless a file has words in it, and few characters that no text has."""
    name = source.name
    if len(_UNREADABLE.findall(source.text)) > MAX_UNREADABLE_SHARE * len(source.text):
        raise FormatError("path", "must not be a binary or damaged file", got=name, remedy=SUPPORTED_FORMATS)
    if not has_words(source.text) or source.blocks == ():
        remedy = "it has no letters or digits"
        if file_format and file_format.label == "PDF":
            remedy = "a scanned PDF needs text recognition (OCR) first, such as `ocrmypdf scan.pdf text.pdf`"
        raise FormatError("path", "must be a file with text in it", got=name, remedy=remedy)


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
    has_path_form = os.sep in text or suffix in {*FORMAT_BY_SUFFIX, *TEXT_SUFFIXES}
    return (has_path_form and len(text.split()) == 1) or os.path.exists(text)


def find_size_limit() -> int:
    """Return the most bytes of a file that is read as a document on this machine.

    Examples
    --------
    >>> 0 < find_size_limit() <= MAX_FILE_BYTES
    True
    """
    return min(MAX_FILE_BYTES, measure_available_memory() // MEMORY_PER_BYTE)


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
    limit = find_size_limit()
    if size_bytes > limit:
        raise FormatError(
            "path",
            f"must have at most {limit:,} bytes on this machine, got {size_bytes:,} in {name!r}",
            remedy="split it",
        )


def read_bytes(name: str) -> bytes:
    """Return the content of a regular file, or of a pipe that the caller's shell has opened.

    Parameters
    ----------
    name
        The file.

    Raises
    ------
    MissingFileError
        The file does not exist.
    FormatError
        It is a folder, a pipe or a device, empty, or too large for the memory.
    """
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


def _decode(content: bytes, name: str) -> tuple[str, str]:
    """Return the text of a file and its encoding."""
    is_wide = content.startswith(WIDE_MARKS)
    if content.startswith(BINARY_MARKS) or (b"\0" in content and not is_wide):
        raise FormatError("path", "must not be a binary file", got=name, remedy=SUPPORTED_FORMATS)
    require_modules("app", "charset_normalizer", "sentencex")
    try:
        return decode_text(content)
    except (UnicodeError, LookupError) as error:
        remedy = f"its encoding is unknown: save it as UTF-8; {SUPPORTED_FORMATS}"
        raise FormatError("path", "must be a text file", got=name, remedy=remedy) from error


def replace_source(source: Source, **changes: Any) -> Source:
    """Return a source with other values of some fields, and with the sentences that were found in it.

    Parameters
    ----------
    source
        A source.
    **changes
        Fields of `Source` other than its text and blocks.

    Examples
    --------
    >>> replace_source(Source("note", "It rains."), name="weather").name
    'weather'
    """
    changed = replace(source, **changes)
    if "quotes" in source.__dict__:
        changed.__dict__["quotes"] = source.quotes
    return changed


def _extract(content: bytes, file_format: Format, name: str, *, split: bool) -> Source:
    require_modules("app", "sentencex", *file_format.packages)
    text, encoding = "", "utf-8"
    if file_format.is_text:
        text, encoding = _decode(content, name)
        content = text.encode("utf-8", "surrogatepass")
    elif file_format.module == "html" and b"\0" in content and not content.startswith(WIDE_MARKS):
        raise FormatError("path", "must be HTML, not a binary file", got=name, remedy=SUPPORTED_FORMATS)
    extracted: Extracted = extract_blocks(content, file_format.module, file_format.label, name, split=split)
    warnings = (*_describe_encoding(encoding), *extracted.warnings)
    source = Source(name, text or extracted.text, extracted.blocks, encoding, warnings)
    if extracted.quotes is not None:
        source.__dict__["quotes"] = extracted.quotes
    return source


def _describe_encoding(encoding: str) -> tuple[str, ...]:
    """Return a warning if a file's encoding is a guess."""
    if encoding.startswith("utf-"):
        return ()
    return (f"read in the encoding {encoding}, by its characters: save it as UTF-8 if that is wrong",)
