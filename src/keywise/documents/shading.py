"""Which sentences of a document an answer marks: those that it cites, and those that may answer too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keywise.documents.answer import Answer
    from keywise.documents.evidence import Evidence

LIKELY_NO_ANSWER_SHARE: Final = 0.5
MIN_RELATIVE_SHARE: Final = 0.02
"""A sentence with less of the best sentence's share is not marked."""


@dataclass(frozen=True)
class Shading:
    """The marks of an answer in its documents.

    Attributes
    ----------
    evidence
        Evidence by the name of its source and its first character.
    cited
        Ranks of the sentences that the answer's words come from.
    marked
        Ranks of all sentences that are marked.

    Examples
    --------
    >>> Shading({}, frozenset(), frozenset()).describe_tone(1) is None
    True
    """

    evidence: dict[tuple[str, int], Evidence]
    cited: frozenset[int]
    marked: frozenset[int]

    def describe_tone(self, rank: int) -> str | None:
        """Return ``"cited"``, ``"context"``, or None for a sentence that is not marked."""
        if rank not in self.marked:
            return None
        return "cited" if rank in self.cited else "context"


NO_SHADING: Final = Shading({}, frozenset(), frozenset())


def is_supported(answer: Answer) -> bool:
    """Return whether a sentence probably answers; an answer that none supports marks nothing and cites nothing.

    Parameters
    ----------
    answer
        From `keywise.documents.Document.ask`.

    Examples
    --------
    >>> from keywise.documents import Answer
    >>> is_supported(Answer("Ann.", [], "Who?", "m", True, 9, 2, no_answer_share=0.9))
    False
    """
    return answer.no_answer_share <= LIKELY_NO_ANSWER_SHARE


def find_cited_ranks(answer: Answer) -> list[int]:
    """Return the ranks that an answer's words come from, in the order of the words; none without support.

    Parameters
    ----------
    answer
        From `keywise.documents.Document.ask`.

    Examples
    --------
    >>> from keywise.documents import Answer, AnswerWord
    >>> words = [AnswerWord(0, 3, (2, 1)), AnswerWord(4, 7, (1,))]
    >>> find_cited_ranks(Answer("Ann Low", [], "Who?", "m", True, 9, 2, words=words))
    [2, 1]
    """
    if not is_supported(answer):
        return []
    return list(dict.fromkeys(rank for word in answer.words for rank in word.sources))


def make_shading(answer: Answer) -> Shading:
    """Return the marks of an answer.

    Parameters
    ----------
    answer
        From `keywise.documents.Document.ask`.

    Examples
    --------
    >>> from keywise.documents import Answer, AnswerWord, Evidence
    >>> rain = Evidence("It rains.", 0, 9, "note", 1.0, 1.0, 1.0, 1.0, 0.4, 1.0, 1.0, None, None, 1)
    >>> shading = make_shading(Answer("rains", [rain], "What?", "m", True, 9, 2, words=[AnswerWord(0, 5, (1,))]))
    >>> shading.describe_tone(1), sorted(shading.marked)
    ('cited', [1])
    """
    evidence = {(item.source, item.start): item for item in answer.evidence}
    cited = frozenset(find_cited_ranks(answer))
    largest_share = max((item.share for item in answer.evidence), default=0.0)
    likely = [item for item in answer.evidence if item.share > 0 and item.share >= MIN_RELATIVE_SHARE * largest_share]
    marked = cited.union(item.rank for item in likely) if is_supported(answer) else cited
    return Shading(evidence, cited, marked)
