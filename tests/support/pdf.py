"""PDF files from their objects."""

from __future__ import annotations

from collections.abc import Sequence


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
