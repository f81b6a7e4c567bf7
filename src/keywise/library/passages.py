"""Passages for a language model to read, chosen by a question's attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from keywise.documents import Evidence, Source
from keywise.documents.extract.plain import make_blocks
from keywise.errors import OptionError
from keywise.library.lance_errors import convert_lance_errors
from keywise.library.sql import quote_literal

if TYPE_CHECKING:
    from keywise.library.library import Library
    from keywise.library.results import SentenceHit

CONSIDERED_SENTENCES: Final = 64


@dataclass(frozen=True)
class Passage:
    """A paragraph of a document, or some of its sentences.

    Attributes
    ----------
    document
        Name of the document.
    start
        Position of its first character in the document's text.
    text
        The text.
    weight
        Sum of the weights of its sentences among the heaviest that were searched.
    spans
        Spans of its sentences in `text`, as they were added to the library.
    """

    document: str
    start: int
    text: str
    weight: float
    spans: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        """Position after its last character."""
        return self.start + len(self.text)

    @property
    def source(self) -> Source:
        """The passage for `keywise.documents`; its name is unique in the library."""
        name = f"{self.document}, characters {self.start} to {self.end}"
        return Source(name, self.text, make_blocks(self.text, self.spans))


def choose_passages(
    library: Library,
    question: str,
    *,
    max_tokens: int,
    count_tokens: Callable[[str], int],
    where: str | None = None,
) -> list[Passage]:
    """Choose the paragraphs that a question attends to most.

    They are those around the heaviest sentences, up to a number of tokens. A last paragraph that does not fit is cut to
    the sentences around its heaviest one.

    Parameters
    ----------
    library
        A library of documents.
    question
        A question in natural language.
    max_tokens
        Most tokens of all passages together.
    count_tokens
        Returns the number of tokens of a text.
    where
        Lance's SQL; only sentences for which it holds are considered.

    Returns
    -------
    list of Passage
        Heaviest first.

    Raises
    ------
    OptionError
        The library is empty, `where` holds for no sentence, or no sentence fits.
    """
    hits = library.search(question, top=CONSIDERED_SENTENCES, where=where)
    if not hits:
        raise OptionError("where", "must hold for at least one sentence", got=where)
    passages: list[Passage] = []
    remaining_tokens = max_tokens
    for hit in hits:
        if any(_contains(passage, hit) for passage in passages):
            continue
        passage = _read_paragraph(library, hit)
        fits = count_tokens(passage.text) <= remaining_tokens
        if not fits:
            passage = _cut_passage(passage, hit, remaining_tokens, count_tokens)
        remaining_tokens -= count_tokens(passage.text)
        if remaining_tokens >= 0:
            passages.append(passage)
        if remaining_tokens <= 0 or not fits:
            break
    if not passages:
        raise OptionError(
            "passage_tokens", "must be enough for the first sentence", got=max_tokens, remedy="pass a larger number"
        )
    return [replace(passage, weight=sum(hit.weight for hit in hits if _contains(passage, hit))) for passage in passages]


def locate_evidence(evidence: Sequence[Evidence], passages: Sequence[Passage]) -> list[Evidence]:
    """Return evidence from passages with the documents as sources, and its spans in them.

    Parameters
    ----------
    evidence
        Sentences whose sources are passages.
    passages
        The passages.

    Returns
    -------
    list of Evidence
        In the same order.
    """
    by_name = {passage.source.name: passage for passage in passages}
    located: list[Evidence] = []
    for item in evidence:
        passage = by_name[item.source]
        start = passage.start + item.start
        end = passage.start + item.end
        located.append(replace(item, source=passage.document, start=start, end=end))
    return located


def _contains(passage: Passage, hit: SentenceHit) -> bool:
    return passage.document == hit.document and passage.start <= hit.start and hit.end <= passage.end


def _read_paragraph(library: Library, hit: SentenceHit) -> Passage:
    in_document = f"document = {quote_literal(hit.document)}"
    (row,) = _read_rows(library, f"{in_document} AND start = {hit.start}", ["paragraph"])
    in_paragraph = f"{in_document} AND paragraph = {row['paragraph']}"
    rows = _read_rows(library, in_paragraph, ["sentence", "gap", "text", "start"])
    rows.sort(key=lambda row: row["sentence"])
    text = rows[0]["text"] + "".join(row["gap"] + row["text"] for row in rows[1:])
    begin = rows[0]["start"]
    spans = tuple((row["start"] - begin, row["start"] - begin + len(row["text"])) for row in rows)
    return Passage(hit.document, begin, text, 0.0, spans)


def _read_rows(library: Library, where: str, columns: list[str]) -> list[dict[str, Any]]:
    with convert_lance_errors(library.path, "cannot be read"):
        rows: list[dict[str, Any]] = library.dataset.to_table(columns=columns, filter=where).to_pylist()
    return rows


def _cut_passage(passage: Passage, hit: SentenceHit, max_tokens: int, count_tokens: Callable[[str], int]) -> Passage:
    """Return the sentence of a hit with as many sentences around it as fit."""
    spans = [(passage.start + start, passage.start + end) for start, end in passage.source.sentences]
    longest = Passage(passage.document, hit.start, hit.text, 0.0, ((0, len(hit.text)),))
    for start, end in _grow_span(spans, hit):
        text = passage.text[start - passage.start : end - passage.start]
        if count_tokens(text) > max_tokens:
            break
        inside = tuple((first - start, last - start) for first, last in spans if start <= first and last <= end)
        longest = Passage(passage.document, start, text, 0.0, inside)
    return longest


def _grow_span(spans: Sequence[tuple[int, int]], hit: SentenceHit) -> Iterator[tuple[int, int]]:
    """Yield spans around a sentence, each longer by the next or the previous sentence."""
    start, end = hit.start, hit.end
    spans_after = [span for span in spans if span[0] >= end]
    spans_before = [span for span in spans if span[1] <= start]
    while spans_after or spans_before:
        if spans_after:
            end = spans_after.pop(0)[1]
            yield start, end
        if spans_before:
            start = spans_before.pop()[0]
            yield start, end
