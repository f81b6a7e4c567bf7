"""Office documents and books as packages: ZIP archives with XML files in them."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any, Final

from keywise.documents.extract.extracted import UnreadableFileError

if TYPE_CHECKING:
    from lxml.etree import _Element

_COMPOUND_FILE: Final = b"\xd0\xcf\x11\xe0"
MAX_PARTS: Final = 20_000
MAX_PART_BYTES: Final = 512 << 20
ENCRYPTED: Final = 0x1
_ENCRYPTION_PARTS: Final = ("META-INF/encryption.xml", "META-INF/rights.xml")


def check_package(content: bytes) -> None:
    """Raise unless a file can be a package that is not encrypted.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    UnreadableFileError
        It is encrypted, of an older format, or has too many parts.

    Examples
    --------
    >>> check_package(b"text")
    Traceback (most recent call last):
    keywise.documents.extract.extracted.UnreadableFileError: it may be cut off, or of another format
    """
    if content.startswith(_COMPOUND_FILE):
        raise UnreadableFileError("it is encrypted, or in the format of Office before 2007: save it without a password")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = archive.infolist()
    except zipfile.BadZipFile as error:
        raise UnreadableFileError("it may be cut off, or of another format") from error
    if any(part.flag_bits & ENCRYPTED for part in parts):
        raise UnreadableFileError("it is encrypted: save a copy without a password")
    if len(parts) > MAX_PARTS:
        raise UnreadableFileError(f"it has {len(parts):,} parts; keywise reads at most {MAX_PARTS:,}")
    if sum(part.file_size for part in parts) > MAX_PART_BYTES:
        raise UnreadableFileError(f"it is larger than {MAX_PART_BYTES >> 20} MiB when it is unpacked")


def read_xml(content: bytes) -> _Element:
    """Return the root of an XML file; entities are not resolved and nothing is fetched.

    Parameters
    ----------
    content
        The file.

    Examples
    --------
    >>> read_xml(b"<lamp>lit</lamp>").text
    'lit'
    """
    from lxml import etree  # noqa: PLC0415 - optional

    parser: Any = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, recover=True)
    root: _Element | None = etree.fromstring(content, parser)
    if root is None:
        raise UnreadableFileError("a part of it is empty")
    return root
