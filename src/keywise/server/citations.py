"""Citations: which part of an answer comes from which characters of which document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from keywise.documents.report import split_by_sources
from keywise.documents.shading import is_supported

if TYPE_CHECKING:
    from keywise.documents import Evidence
    from keywise.server.answering import Reply


@dataclass(frozen=True)
class Citation:
    """A part of an answer and a sentence that it comes from.

    Attributes
    ----------
    answer_start, answer_end
        Its span in the answer, in characters, the end exclusive.
    evidence
        The sentence.
    cited_text
        The characters of the document.
    document_index
        Number of the document among those asked, from 0.
    document_title
        Name of the document.
    document_id
        Its identifier; None for a document of a library.
    """

    answer_start: int
    answer_end: int
    evidence: Evidence
    cited_text: str
    document_index: int
    document_title: str
    document_id: str | None

    @property
    def pages(self) -> tuple[int, int]:
        """The first page of the sentence and the one after its last; zeros without pages."""
        pages = [box.page for box in self.evidence.boxes] or [self.evidence.page]
        return (min(pages), max(pages) + 1) if min(pages) else (0, 0)

    def make_address(self, base: str) -> str:
        """Return the address of the page that shows the sentence.

        Parameters
        ----------
        base
            Address of the server, without a slash at its end.
        """
        if self.document_id is None:
            return f"{base}/"
        span = {"document": self.document_id, "start": self.evidence.start, "end": self.evidence.end}
        return f"{base}/?{urlencode(span)}"

    def to_json(self) -> dict[str, Any]:
        """Return it as the extension `keywise` of the APIs has it."""
        item = self.evidence
        boxes = [
            {"page": box.page, "left": box.left, "bottom": box.bottom, "right": box.right, "top": box.top}
            for box in item.boxes
        ]
        return {
            "cited_text": self.cited_text,
            "document_index": self.document_index,
            "document_title": self.document_title,
            "file_id": self.document_id,
            "start_char_index": item.start,
            "end_char_index": item.end,
            "page": item.page or None,
            "boxes": boxes,
            "answer_start_index": self.answer_start,
            "answer_end_index": self.answer_end,
            "share": item.share,
            "rank": item.rank,
        }


def make_citations(reply: Reply) -> list[Citation]:
    """Return the citations of an answer, in the order of its words; none if probably no sentence answers.

    Parameters
    ----------
    reply
        The answer with its documents.
    """
    if not is_supported(reply.answer):
        return []
    evidence_by_rank = {item.rank: item for item in reply.answer.evidence}
    citations: list[Citation] = []
    position = 0
    for text, ranks in split_by_sources(reply.answer):
        start = position + len(text) - len(text.lstrip())
        position += len(text)
        citations += [_cite(reply, evidence_by_rank[rank], start, position) for rank in ranks]
    return citations


def make_extension(reply: Reply, *, unused: list[str]) -> dict[str, Any]:
    """Return the object `keywise` of a response.

    Parameters
    ----------
    reply
        The answer with its documents.
    unused
        Parts of the request that did not change the answer.
    """
    answer = reply.answer
    return {
        "citations": [citation.to_json() for citation in make_citations(reply)],
        "no_answer_share": answer.no_answer_share,
        "documents": [{"file_id": each.id, "title": each.title} for each in reply.documents],
        "windows": answer.windows,
        "read_windows": answer.read_windows,
        "unused": unused,
    }


def _cite(reply: Reply, item: Evidence, start: int, end: int) -> Citation:
    number = reply.find_document(item)
    document = reply.documents[number]
    return Citation(start, end, item, reply.quote(item), number, document.title, document.id)
