"""PDF files: text, or `FormatError`, within the limits of the conversion."""

import zlib

from tests.fuzz.targets.conversions import convert


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
    file = b"%PDF-1.4\n"
    places = []
    for number, body in enumerate(objects, start=1):
        places.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    file += b"".join(b"%010d 00000 n \n" % place for place in places)
    return file + b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
