"""Documents longer than a model's context: read in windows that overlap, their evidence merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from keywise.documents.ablation import Ablation
from keywise.documents.answer import Answer
from keywise.documents.evidence import Evidence
from keywise.documents.files import Source
from keywise.errors import DtypeError

if TYPE_CHECKING:
    from keywise.documents.document import Document

OVERLAP_SENTENCES: Final = 3
# Shares that sum to 1 but for this leave nothing for "none of these".
_ROUNDING: Final = 1e-12


@dataclass(frozen=True)
class Chunk:
    """A run of whole sentences of a source, and the character of the source at which it begins."""

    source: Source
    start: int


def windows(sources: Sequence[Source], tokens_of: Callable[[str], int], most_tokens: int) -> list[list[Chunk]]:
    """Cut sources into runs of sentences that a model can read, each going on from the last few of the one before.

    Parameters
    ----------
    sources
        The texts, in order.
    tokens_of
        Gives the number of tokens of a text.
    most_tokens
        What a window may take. A longer sentence is a window of its own, for the model to refuse.

    Examples
    --------
    >>> note = Source("note", "One two. Three. Four five six. Seven.")
    >>> cut = windows([note], lambda text: len(text.split()), 6)
    >>> [[piece.source.text for piece in window] for window in cut]
    [['One two. Three.'], ['Three. Four five six.'], ['Four five six. Seven.']]
    """
    every = [(number, start, end) for number, source in enumerate(sources) for start, end in source.sentences]
    # A sentence's tokens and what stands before the next one.
    sizes = [tokens_of(sources[number].text[start:end]) + 1 for number, start, end in every]
    found: list[list[Chunk]] = []
    first = 0
    while first < len(every):
        last, total = first, 0
        while last < len(every) and (last == first or total + sizes[last] <= most_tokens):
            total += sizes[last]
            last += 1
        found.append(_pieces(sources, every[first:last]))
        if last == len(every):
            break
        first = max(last - OVERLAP_SENTENCES, first + 1)
    return found


class WindowedDocument:
    """Texts longer than the model's context, read in windows that overlap. Made by `Reader.read`; see `Document`.

    Attributes
    ----------
    sources
        The texts, in the order in which they were read.
    tokens
        Length of all windows in tokens; where they overlap, sentences count twice.
    """

    def __init__(self, sources: Sequence[Source], read: Iterable[tuple[Document, Sequence[Chunk]]]) -> None:
        self.sources = tuple(sources)
        self._windows = [(document, {piece.source.name: piece.start for piece in pieces}) for document, pieces in read]
        self.tokens = sum(document.tokens for document, _ in self._windows)

    @property
    def reused_tokens(self) -> int:
        """How many of them were taken from disk instead of being read."""
        return sum(document.reused_tokens for document, _ in self._windows)

    def evidence(self, question: str) -> list[Evidence]:
        """Rank the sentences of all windows; see `Document.evidence`.

        "None of these" is the same outcome in every window: against it their sentences can be compared. Without tuned
        heads a window's sentences count by the most mass that it gives to one of them.
        """
        return self._merged(question)[0]

    def ask(self, question: str, **options: Any) -> Answer:
        """Answer from the window that holds the first sentence of all, with the evidence of all; see `Document.ask`."""
        evidence, best = self._merged(question)
        document, starts = self._windows[best]
        answer = document.ask(question, **options)
        rank_of = {(item.source, item.start): item.rank for item in evidence}
        ranks = {item.rank: rank_of[item.source, item.start + starts[item.source]] for item in answer.evidence}
        return replace(
            answer,
            evidence=evidence,
            document_tokens=self.tokens,
            reused_tokens=self.reused_tokens,
            no_answer_share=max(1.0 - sum(item.share for item in evidence), 0.0),
            words=[replace(word, sources=tuple(ranks[rank] for rank in word.sources)) for word in answer.words],
            windows=len(self._windows),
        )

    def ask_many(self, questions: Iterable[str], **options: Any) -> list[Answer]:
        """Answer several questions, one after the other; see `Document.ask_many`."""
        if isinstance(questions, str):
            raise DtypeError(f"questions={questions!r} is one text; give a list of questions, or use ask()")
        return [self.ask(question, **options) for question in questions]

    def ablate(self, answer: Answer, *, top: int = 3) -> list[Ablation]:
        """Tell how much less likely an answer becomes without each of its first sentences; see `Document.prove`."""
        document, _ = self._windows[0]
        return document.ablate(answer, top=top, sources=self.sources)

    def _merged(self, question: str) -> tuple[list[Evidence], int]:
        """Give all sentences ranked, and the number of the window that holds the first."""
        odds: dict[tuple[str, int], tuple[float, int, Evidence]] = {}
        none = 0.0
        for number, (document, starts) in enumerate(self._windows):
            found = document.evidence(question)
            none_of_window = 1.0 - sum(item.share for item in found)
            tuned = none_of_window > _ROUNDING
            scale = 1.0 / none_of_window if tuned else max(0.0, *(item.mass for item in found))
            none = 1.0 if tuned else none
            for item in found:
                start = item.start + starts[item.source]
                placed = replace(item, start=start, end=start + len(item.text), attention=item.attention * scale)
                key = item.source, start
                # What overlaps counts once, as the window saw it that says most of it.
                odds[key] = max(odds.get(key, (-1.0, number, placed)), (item.share * scale, number, placed), key=_odds)
        any_of_these = sum(odd for odd, _, _ in odds.values())
        total = none + any_of_these or 1.0
        # By attention alone none of these is as likely.
        by_attention = total * sum(item.attention for _, _, item in odds.values()) / (any_of_these or 1.0) or 1.0
        order = {source.name: place for place, source in enumerate(self.sources)}
        ranked = sorted(odds.values(), key=lambda each: (-each[0], order[each[2].source], each[2].start))
        evidence = [
            replace(item, share=odd / total, attention=item.attention / by_attention, rank=rank)
            for rank, (odd, _, item) in enumerate(ranked, start=1)
        ]
        return evidence, ranked[0][1]


def _odds(each: tuple[float, int, Evidence]) -> float:
    return each[0]


def _pieces(sources: Sequence[Source], sentences: Sequence[tuple[int, int, int]]) -> list[Chunk]:
    pieces = []
    for number in dict.fromkeys(number for number, _, _ in sentences):
        start = min(begin for of, begin, _ in sentences if of == number)
        end = max(stop for of, _, stop in sentences if of == number)
        pieces.append(Chunk(Source(sources[number].name, sources[number].text[start:end]), start))
    return pieces
