"""PDF files: text, or `FormatError`, within the limits of the conversion."""

import zlib

from tests.fuzz.targets.conversions import convert
from tests.support.pdf import write_pdf


def make_seeds() -> list[bytes]:
    """Return one page in plain and one in compressed form."""
    content = b"BT /F1 12 Tf 72 720 Td (The lamp is lit.) Tj [(a)-278(b)] TJ ET"
    return [_write_page(content, b""), _write_page(zlib.compress(content), b"/Filter/FlateDecode")]


def execute(data: bytes) -> None:
    """Convert a file."""
    convert(data, ".pdf")


def _write_page(content: bytes, filters: bytes) -> bytes:
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d%s>>\nstream\n%s\nendstream" % (len(content), filters, content),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
    ]
    return write_pdf(objects)
