"""Pages of a PDF as PNG pictures of a bounded size."""

from __future__ import annotations

import base64
import ctypes
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

PICTURE_WIDTH: Final = 900
MAX_PICTURE_HEIGHT: Final = 1800
COLOURS: Final = 32
"""Text and its smooth edges need no more; such a picture is a quarter of the size."""

Corners = Sequence[float]


def render(content: bytes, places: Mapping[int, Sequence[Corners]]) -> list[dict[str, Any]]:
    """Return pictures of pages, and where boxes are on them.

    Parameters
    ----------
    content
        The file.
    places
        For each page, from 1, boxes as left, bottom, right and top in the points of the page.

    Returns
    -------
    list of dict
        For each page ``page``, ``width`` and ``height`` in pixels, ``png`` in base64 and ``boxes``: left, top, width
        and height as fractions of the picture.
    """
    import pypdfium2  # noqa: PLC0415 - optional

    document = pypdfium2.PdfDocument(content)
    pictures = []
    for number, corners in places.items():
        page = document[number - 1]
        bitmap = page.render(scale=_find_scale(*page.get_size()))
        image = bitmap.to_pil().convert("RGB").quantize(COLOURS)
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        pictures.append(
            {
                "page": number,
                "width": image.width,
                "height": image.height,
                "png": base64.b64encode(file.getvalue()).decode(),
                "boxes": [_locate(page, image.width, image.height, each) for each in corners],
            }
        )
        page.close()
    return pictures


def measure(content: bytes) -> list[tuple[int, int]]:
    """Return the width and height of the pictures that `render` makes of all pages, in pixels.

    Parameters
    ----------
    content
        The file.
    """
    import pypdfium2  # noqa: PLC0415 - optional

    document = pypdfium2.PdfDocument(content)
    sizes = []
    for number in range(len(document)):
        width, height = document.get_page_size(number)
        scale = _find_scale(width, height)
        sizes.append((math.ceil(width * scale), math.ceil(height * scale)))
    return sizes


def _find_scale(width: float, height: float) -> float:
    return min(PICTURE_WIDTH / width, MAX_PICTURE_HEIGHT / height)


def _locate(page: Any, width: int, height: int, corners: Corners) -> tuple[float, float, float, float]:
    """Return a box on the picture of a page, which may be cropped or rotated."""
    import pypdfium2.raw as pdfium  # noqa: PLC0415 - optional

    left, bottom, right, top = corners
    horizontal, vertical = [], []
    for x, y in ((left, bottom), (right, top)):
        column, row = ctypes.c_int(), ctypes.c_int()
        pdfium.FPDF_PageToDevice(page.raw, 0, 0, width, height, 0, x, y, column, row)
        horizontal.append(min(max(column.value / width, 0.0), 1.0))
        vertical.append(min(max(row.value / height, 0.0), 1.0))
    return (
        min(horizontal),
        min(vertical),
        max(horizontal) - min(horizontal),
        max(vertical) - min(vertical),
    )
