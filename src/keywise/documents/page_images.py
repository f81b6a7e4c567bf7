"""Pages of PDF files as pictures, with the places of sentences on them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keywise.documents.conversion import render_pages
from keywise.documents.files import read_bytes
from keywise.documents.shading import MIN_RELATIVE_SHARE

if TYPE_CHECKING:
    from keywise.documents.evidence import Evidence
    from keywise.documents.files import Source

PICTURED_SENTENCES: Final = 5
"""Pages that hold one of so many best sentences are shown."""


@dataclass(frozen=True)
class Mark:
    """A box on a page, in percent of the picture's width and height from its upper left corner.

    Attributes
    ----------
    rank
        Rank of the sentence that it marks.
    left, top, width, height
        Its place.
    """

    rank: int
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class PageImage:
    """A page of a PDF as a picture.

    Attributes
    ----------
    number
        The page, from 1.
    width, height
        Size of the picture in pixels.
    address
        A ``data:`` address with the picture, a PNG.
    marks
        Places of sentences.
    """

    number: int
    width: int
    height: int
    address: str
    marks: tuple[Mark, ...]


def picture_pages(source: Source, evidence: Sequence[Evidence], cited: Collection[int] = ()) -> list[PageImage]:
    """Return the pages of a PDF that hold one of the best sentences; none for another file.

    The file is read again. If it changed since `source` was read, no page is shown, because the places may be others.

    Parameters
    ----------
    source
        The file, as `keywise.documents.read_file` read it.
    evidence
        Ranked sentences of all files, best first.
    cited
        Ranks of sentences that are marked however far down they are ranked.

    Raises
    ------
    FormatError
        The file cannot be read any more.
    """
    if Path(source.name).suffix.lower() != ".pdf" or not source.file_sha256:
        return []
    boxes = _select_boxes(source.name, evidence, cited)
    if not boxes:
        return []
    content = read_bytes(source.name)
    if hashlib.sha256(content).hexdigest() != source.file_sha256:
        return []
    return _render_boxes(content, source.name, boxes)


def mark_pages(
    content: bytes, source: Source, evidence: Sequence[Evidence], cited: Collection[int] = ()
) -> list[PageImage]:
    """Return the pages of a PDF that hold one of the best sentences, as `picture_pages` does.

    Parameters
    ----------
    content
        The file that `source` was read from.
    source
        The document.
    evidence
        Ranked sentences of all documents, best first.
    cited
        Ranks of sentences that are marked however far down they are ranked.

    Raises
    ------
    FormatError
        The file cannot be read.
    """
    boxes = _select_boxes(source.name, evidence, cited)
    return _render_boxes(content, source.name, boxes) if boxes else []


_Boxes = dict[int, list[tuple[int, float, float, float, float]]]


def _select_boxes(name: str, evidence: Sequence[Evidence], cited: Collection[int]) -> _Boxes:
    """Return the boxes of the best sentences by page, each with the rank of its sentence."""
    least_share = MIN_RELATIVE_SHARE * max((item.share for item in evidence), default=0.0)
    best = [item for item in evidence[:PICTURED_SENTENCES] if 0 < item.share >= least_share]
    shown = [*best, *(item for item in evidence if item.rank in cited and item not in best)]
    boxes: _Boxes = {}
    for item in shown:
        for box in item.boxes if item.source == name else ():
            boxes.setdefault(box.page, []).append((item.rank, box.left, box.bottom, box.right, box.top))
    return boxes


def _render_boxes(content: bytes, name: str, boxes: _Boxes) -> list[PageImage]:
    places = {page: [place[1:] for place in placed] for page, placed in sorted(boxes.items())}
    images = []
    for page in render_pages(content, places, name):
        number = page["page"]
        marks = tuple(
            Mark(placed[0], *(round(100 * value, 3) for value in box))
            for placed, box in zip(boxes[number], page["boxes"], strict=True)
        )
        address = f"data:image/png;base64,{page['png']}"
        images.append(PageImage(number, page["width"], page["height"], address, marks))
    return images
