"""PDF files from their objects."""

from __future__ import annotations

from collections.abc import Sequence

FONTS = {"bold": b"/F2", "fixed": b"/F3", "hebrew": b"/F4"}
HEBREW = (
    b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /H def 1 begincodespacerange <00> <ff> "
    b"endcodespacerange 2 beginbfrange <20> <20> <0020> <61> <7a> <05d0> endbfrange endcmap end end"
)
"""A map of the codes of a to z to the letters of Hebrew."""


def write_pdf(objects: Sequence[bytes]) -> bytes:
    """Return a PDF file of objects that are numbered from 1; the first is its catalog."""
    file = b"%PDF-1.4\n"
    positions = []
    for number, body in enumerate(objects, start=1):
        positions.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    file += b"".join(b"%010d 00000 n \n" % position for position in positions)
    return file + b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)


def write_pages(*pages: Sequence[tuple[object, ...]]) -> bytes:
    """Return a PDF of pages of text: (left, baseline, words), then size (10), ``"bold"``, ``"fixed"`` or ``"turned"``.

    Turned text runs upwards. ``"hebrew"`` shows the letters a to z as those of Hebrew, the first as alef.
    """
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica-Bold/Encoding/WinAnsiEncoding>>",
        b"<</Type/Font/Subtype/Type1/BaseFont/Courier/Encoding/WinAnsiEncoding>>",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding/ToUnicode 7 0 R>>",
        b"<</Length %d>>\nstream\n%s\nendstream" % (len(HEBREW), HEBREW),
    ]
    kids = []
    for page in pages:
        content = b""
        for left, baseline, words, *style in page:
            size = next((each for each in style if not isinstance(each, str)), 10)
            font = next((name for mark, name in FONTS.items() if mark in style), b"/F1")
            matrix = b"0 1 -1 0" if "turned" in style else b"1 0 0 1"
            escaped = str(words).replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)").encode("cp1252")
            content += b"BT %s %d Tf %s %d %d Tm (%s) Tj ET\n" % (font, size, matrix, left, baseline, escaped)
        resources = b"<</Font<</F1 3 0 R/F2 4 0 R/F3 5 0 R/F4 6 0 R>>>>"
        kids.append(len(objects) + 1)
        number = len(objects) + 2
        media = b"/MediaBox[0 0 595 842]"
        objects.append(b"<</Type/Page/Parent 2 0 R%s/Contents %d 0 R/Resources %s>>" % (media, number, resources))
        objects.append(b"<</Length %d>>\nstream\n%s\nendstream" % (len(content), content))
    references = b" ".join(b"%d 0 R" % kid for kid in kids)
    objects[1] = b"<</Type/Pages/Kids[%s]/Count %d>>" % (references, len(kids))
    return write_pdf(objects)
