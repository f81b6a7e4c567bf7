"""Pages of kept PDFs as pictures, and the places of sentences on them."""

from __future__ import annotations

import base64
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keywise.documents.conversion import render_pages
from keywise.documents.page_images import Mark, PageImage, mark_pages
from keywise.documents.shading import find_cited_ranks
from keywise.server.api_errors import ApiError

if TYPE_CHECKING:
    from keywise.documents import Answer, Source
    from keywise.server.document_store import DocumentStore

KEPT_PICTURES: Final = 128


class PagePictures:
    """Draws pages in the process with limits, and keeps the last ones in memory.

    Parameters
    ----------
    store
        The documents.
    """

    def __init__(self, store: DocumentStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._pictures: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def get(self, document_id: str, number: int) -> bytes:
        """Return a page as a PNG.

        Parameters
        ----------
        document_id
            Identifier of the document.
        number
            The page, from 1.

        Raises
        ------
        ApiError
            There is no such document or page.
        FormatError
            The page cannot be drawn.
        """
        document = self._store.get(document_id)
        if not 1 <= number <= len(document.page_sizes):
            raise ApiError(404, f"{document.name!r} has no page {number}.", "page", "page_not_found")
        with self._lock:
            picture = self._pictures.get((document_id, number))
        if picture is None:
            (page,) = render_pages(self._store.read_content(document_id), {number: []}, document.name)
            picture = base64.b64decode(page["png"])
            self._keep(document_id, number, picture)
        return picture

    def mark(self, document_id: str, source: Source, answer: Answer) -> dict[int, tuple[Mark, ...]]:
        """Return the places of the best sentences on the pages of a PDF, and keep these pages as pictures.

        Parameters
        ----------
        document_id
            Identifier of the document.
        source
            Its text.
        answer
            The answer; its evidence names the text.

        Raises
        ------
        FormatError
            A page cannot be drawn.
        """
        content = self._store.read_content(document_id)
        images = mark_pages(content, source, answer.evidence, find_cited_ranks(answer))
        for image in images:
            self._keep(document_id, image.number, base64.b64decode(image.address.partition(",")[2]))
        return {image.number: image.marks for image in images}

    def list_pages(self, document_id: str, marks: dict[int, tuple[Mark, ...]]) -> list[PageImage]:
        """Return all pages of a document, with addresses on this server; none unless it is a PDF.

        Parameters
        ----------
        document_id
            Identifier of the document.
        marks
            Places of sentences, by the number of the page.
        """
        page = PageImage(0, 0, 0, "", ())
        return [
            replace(
                page,
                number=number,
                width=width,
                height=height,
                address=f"/api/documents/{document_id}/pages/{number}",
                marks=marks.get(number, ()),
            )
            for number, (width, height) in enumerate(self._store.get(document_id).page_sizes, start=1)
        ]

    def _keep(self, document_id: str, number: int, picture: bytes) -> None:
        with self._lock:
            self._pictures[document_id, number] = picture
            self._pictures.move_to_end((document_id, number))
            while len(self._pictures) > KEPT_PICTURES:
                self._pictures.popitem(last=False)
