"""Passages for a language model to read, chosen by a question's attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from keywise.documents import Evidence, Source
from keywise.documents.blocks import Block, BlockKind
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
    sentences
        Its sentences, with their places in `text`, as they were added to the library.
    """

    document: str
    start: int
    text: str
    weight: float
    sentences: tuple[Block, ...]

    @property
    def end(self) -> int:
        """Position after its last character."""
        return self.start + len(self.text)

    @property
    def source(self) -> Source:
        """The passage for `keywise.documents`; its name is unique in the library."""
        name = f"{self.document}, characters {self.start} to {self.end}"
        return Source(name, self.text, self.sentences)


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
    columns = ["sentence", "gap", "text", "source_text", "kind", "heading_path", "start", "end"]
    rows = _read_rows(library, in_paragraph, columns)
    rows.sort(key=lambda row: row["sentence"])
    begin = rows[0]["start"]
    texts = [row["text"] if row["source_text"] is None else row["source_text"] for row in rows]
    text = texts[0] + "".join(row["gap"] + text for row, text in zip(rows[1:], texts[1:], strict=True))
    return Passage(hit.document, begin, text, 0.0, tuple(_make_block(row).move(-begin) for row in rows))


def _make_block(row: dict[str, Any]) -> Block:
    """Return a sentence as a block, which is quoted as a whole."""
    path = tuple(row["heading_path"])
    return Block(BlockKind(row["kind"]), row["start"], row["end"], row["text"], heading_path=path)


def _read_rows(library: Library, where: str, columns: list[str]) -> list[dict[str, Any]]:
    with convert_lance_errors(library.path, "cannot be read"):
        rows: list[dict[str, Any]] = library.dataset.to_table(columns=columns, filter=where).to_pylist()
    return rows


def _cut_passage(passage: Passage, hit: SentenceHit, max_tokens: int, count_tokens: Callable[[str], int]) -> Passage:
    """Return the sentence of a hit with as many sentences around it as fit."""
    spans = [(passage.start + block.begin, passage.start + block.end) for block in passage.sentences]
    longest = _select_sentences(passage, hit.start, hit.end)
    for start, end in _grow_span(spans, hit):
        longer = _select_sentences(passage, start, end)
        if count_tokens(longer.text) > max_tokens:
            break
        longest = longer
    return longest


def _select_sentences(passage: Passage, start: int, end: int) -> Passage:
    """Return the part of a passage between two characters of its document."""
    first, last = start - passage.start, end - passage.start
    inside = tuple(block.move(-first) for block in passage.sentences if first <= block.begin and block.end <= last)
    return Passage(passage.document, start, passage.text[first:last], 0.0, inside)


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
