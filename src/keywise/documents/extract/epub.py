"""Blocks of an EPUB: its chapters in the order in which they are read."""

from __future__ import annotations

import io
import posixpath
import zipfile
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from keywise.documents.blocks import BlockBuilder
from keywise.documents.extract.encodings import decode_markup
from keywise.documents.extract.extracted import Extracted, UnreadableFileError
from keywise.documents.extract.html import add_html
from keywise.documents.extract.packages import check_package, read_xml

_CONTAINER: Final = "META-INF/container.xml"
_ENCRYPTION: Final = "META-INF/encryption.xml"
_CHAPTER_TYPES: Final = ("application/xhtml+xml", "text/html", "application/xml", "text/x-oeb1-document")
_CHAPTER_SUFFIXES: Final = (".xhtml", ".html", ".htm", ".xml")


def extract(content: bytes) -> Extracted:
    """Return the text and blocks of an EPUB.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    UnreadableFileError
        It is protected, or has no list of its chapters.
    """
    check_package(content)
    builder = BlockBuilder()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = set(archive.namelist())
        if _ENCRYPTION in names and _protects_chapters(archive.read(_ENCRYPTION)):
            raise UnreadableFileError("it is protected against copying")
        for name in _iterate_chapters(archive, names):
            builder.enter_section("", level=0)
            add_html(builder, decode_markup(archive.read(name)))
    return Extracted(builder.text, tuple(builder.blocks))


def _protects_chapters(encryption: bytes) -> bool:
    """Return whether chapters are encrypted; fonts often are."""
    paths = read_xml(encryption).xpath("//*[local-name()='CipherReference']/@URI")
    return any(str(path).lower().endswith(_CHAPTER_SUFFIXES) for path in paths)


def _iterate_chapters(archive: zipfile.ZipFile, names: set[str]) -> Iterator[str]:
    if _CONTAINER not in names:
        raise UnreadableFileError("it has no list of its chapters")
    packages = read_xml(archive.read(_CONTAINER)).xpath("//*[local-name()='rootfile']/@full-path")
    package_name = next((str(path) for path in packages if path in names), None)
    if package_name is None:
        raise UnreadableFileError("it has no list of its chapters")
    package = read_xml(archive.read(package_name))
    folder = posixpath.dirname(package_name)
    items = {str(item.get("id")): item for item in package.xpath("//*[local-name()='manifest']/*[local-name()='item']")}
    for reference in package.xpath("//*[local-name()='spine']/*[local-name()='itemref']"):
        item = items.get(str(reference.get("idref")))
        if item is None or reference.get("linear") == "no" or "nav" in item.get("properties", "").split():
            continue
        name = posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        if name in names and item.get("media-type", _CHAPTER_TYPES[0]) in _CHAPTER_TYPES:
            yield name
