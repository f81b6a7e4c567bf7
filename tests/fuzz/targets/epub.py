"""EPUB files: text, or `FormatError`, within the limits of the conversion."""

import zipfile

from tests.fuzz.targets.packages import convert_part, pack

CHAPTER = (
    '<html xmlns="http://www.w3.org/1999/xhtml"><head><title>Lamps</title></head><body><h1>One</h1>'
    "<p>It is lit.</p></body></html>"
)
PACKAGE = "content.opf"
PARTS = {
    "mimetype": "application/epub+zip",
    "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    f'<rootfile full-path="{PACKAGE}" media-type="application/oebps-package+xml"/></rootfiles></container>',
    PACKAGE: '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
    '<item id="a" href="one.xhtml" media-type="application/xhtml+xml"/>'
    '<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/></manifest>'
    '<spine><itemref idref="a"/><itemref idref="n" linear="no"/></spine></package>',
    "one.xhtml": CHAPTER,
    "nav.xhtml": CHAPTER,
}


def make_seeds() -> list[bytes]:
    """Return the list of a book's chapters, and whole files."""
    return [PARTS[PACKAGE].encode(), pack(PARTS), pack(PARTS, zipfile.ZIP_DEFLATED)]


def execute(data: bytes) -> None:
    """Convert a file, or a file with this XML as the list of its chapters."""
    convert_part(data, ".epub", PARTS, PACKAGE)
