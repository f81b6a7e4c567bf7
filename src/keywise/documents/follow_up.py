"""Questions that refer to the ones before: recognised, and put into their context."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from keywise.documents.document import Document
    from keywise.documents.evidence import Evidence
    from keywise.documents.ranking import Ranking

MAX_CONTEXT_TURNS: Final = 3
MAX_CONTEXT_CHARACTERS: Final = 200

_WORD = re.compile(r"[^\W_]+")
_LEADING = re.compile(
    r"\W*(?:and|but|or|so|then|also|what about|how about|und|aber|oder|also|dann|et|mais|ou|alors)\b",
    re.IGNORECASE,
)
# Here the pronoun refers to nothing.
_EXPLETIVE = re.compile(
    r"\b(?:is|are|was|were) there\b|\bgibt es\b|\bgab es\b|\by a[- ]t[- ]il\b|\best[- ]ce\b|\bil y a\b", re.IGNORECASE
)


def _split_words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PRONOUNS: Final = _split_words(
    "he she it they him them his her hers its their theirs this these those there er sie es ihn ihm ihr "
    "ihre ihren ihrem ihrer ihres sein seine seinen seinem seiner seines deren dessen dort dafür davon "
    "danach daran darin il elle ils elles lui leur leurs son sa ses celui celle"
)
_AUXILIARIES: Final = _split_words(
    "is are was were do does did has have had can could may might must shall should will would ist sind "
    "war waren hat haben hatte hatten kann können wird werden wurde wurden est sont était étaient a ont "
    "avait avaient peut fut furent"
)
_QUESTION_WORDS: Final = _split_words(
    "who whom whose what which when where why how much many long often far exactly since until by for to "
    "from at in on with about else of wer wen wem wessen was welche welcher welches welchen wann wo wohin "
    "woher warum wieso wie viel viele lange seit bis von zu mit für in an auf genau noch vorher qui que "
    "quoi quel quelle quels quelles quand où pourquoi comment combien depuis de à en dans pour avec t"
)
_DETERMINERS: Final = _split_words(
    "the a an my your our der die das dem den des ein eine einen einem einer eines le la les un une du"
)
_FUNCTION_WORDS: Final = _AUXILIARIES | _QUESTION_WORDS


@dataclass(frozen=True)
class Turn:
    """A question of a conversation and its answer.

    Attributes
    ----------
    question
        The question as it was asked.
    answer
        The text of its answer.

    Examples
    --------
    >>> Turn("Who was the keeper?", "Ann Low").answer
    'Ann Low'
    """

    question: str
    answer: str


def is_follow_up(question: str) -> bool:
    """Return whether a question refers to the one before.

    It begins with a word such as "and", has a pronoun without a noun before it, or consists of question words alone.
    The words are those of English, German and French.

    Parameters
    ----------
    question
        The question.

    Examples
    --------
    >>> [is_follow_up(text) for text in ("And the boathouse?", "When did he leave?", "Why?", "Who is the keeper?")]
    [True, True, True, False]
    """
    if _LEADING.match(question):
        return True
    if asks_for_detail(question):
        return True
    words = _WORD.findall(_EXPLETIVE.sub(" ", question).replace("-t-", " "))
    pronoun = next((number for number, word in enumerate(words) if word.lower() in _PRONOUNS), None)
    return pronoun is not None and not _has_antecedent(words[:pronoun])


def asks_for_detail(question: str) -> bool:
    """Return whether a follow-up has question words alone, so that the sentence told before may answer it too.

    Parameters
    ----------
    question
        The question.

    Examples
    --------
    >>> [asks_for_detail(text) for text in ("And since when?", "Why?", "And the boathouse?")]
    [True, True, False]
    """
    words = _WORD.findall(_LEADING.sub("", question))
    return all(word.lower() in _FUNCTION_WORDS for word in words)


def _has_antecedent(words: Sequence[str]) -> bool:
    """Return whether a pronoun after these words can refer to one of them."""
    lowered = [word.lower() for word in words]
    # The French verb "a" stands before its pronoun.
    if any(word in _DETERMINERS for word in lowered[:-1]) or any(word[:1].isupper() for word in words[1:]):
        return True
    # "How many rooms does it have?": what stands before the verb is asked for.
    is_subject = bool(lowered) and lowered[-1] in _AUXILIARIES
    return not is_subject and sum(word not in _FUNCTION_WORDS for word in lowered) > 1


def find_context(question: str, turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns that a question refers to, from the last question that stood alone on; none if it stands alone.

    Parameters
    ----------
    question
        The question.
    turns
        The conversation so far.

    Examples
    --------
    >>> turns = [Turn("How tall is the tower?", "31 metres"), Turn("Who kept it?", "Ann Low")]
    >>> [turn.answer for turn in find_context("And when did she leave?", turns)]
    ['31 metres', 'Ann Low']
    """
    if not is_follow_up(question):
        return []
    first = len(turns)
    while first > 0:
        first -= 1
        if not is_follow_up(turns[first].question):
            break
    return list(turns[first:][-MAX_CONTEXT_TURNS:])


def resolve_follow_up(question: str, turns: Sequence[Turn]) -> str:
    """Return a question with the answers that it refers to in front of it.

    The questions before are left out, because a ranking would answer them again; but question words alone ask for a
    detail of the last question, which stands in front of them.

    Parameters
    ----------
    question
        The question.
    turns
        The conversation so far.

    Returns
    -------
    str
        The question itself if it stands alone.

    Examples
    --------
    >>> resolve_follow_up("And what was her job?", [Turn("Who was the keeper?", "Ann Low")])
    'Ann Low. And what was her job?'
    >>> resolve_follow_up("And since when?", [Turn("Who was the keeper?", "Ann Low")])
    'Who was the keeper? And since when?'
    """
    context = find_context(question, turns)
    last_question = ""
    if context and asks_for_detail(question):
        last_question = _shorten(context.pop().question)
    answers = [_shorten(turn.answer).rstrip(" .") for turn in context]
    return " ".join([*(f"{answer}." for answer in answers if answer), *filter(None, [last_question]), question])


def _shorten(text: str) -> str:
    return " ".join(text.split())[:MAX_CONTEXT_CHARACTERS]


def select_told(document: Document, question: str, told: Collection[Evidence]) -> Collection[Evidence]:
    """Return the sentences that answer a follow-up no more, because earlier answers of its context told them.

    None of them do if the question asks for a detail, or if one of them answers it by itself too.

    Parameters
    ----------
    document
        What is asked.
    question
        The follow-up.
    told
        The sentences that told the answers that it refers to.
    """
    if not told or asks_for_detail(question):
        return []
    best = document.evidence(question)[0]
    is_told = any((item.source, item.start) == (best.source, best.start) for item in told)
    return [] if is_told else told


def put_last(ranking: Ranking, told: Collection[Evidence]) -> Ranking:
    """Return a ranking with some sentences last and without a share, which the others take over.

    In a conversation a sentence that was told answers no follow-up, though it resembles the question's context most.

    Parameters
    ----------
    ranking
        The ranked sentences.
    told
        The sentences, by their places in the sources.
    """
    evidence = _reorder(ranking.evidence, {(item.source, item.start) for item in told})
    rank_by_place = {(item.source, item.start): item.rank for item in evidence}
    new_ranks = np.array([0, *(rank_by_place[item.source, item.start] for item in ranking.evidence)])
    return replace(ranking, evidence=evidence, ranks=new_ranks[ranking.ranks])


def _reorder(evidence: Sequence[Evidence], told: Collection[tuple[str, int]]) -> list[Evidence]:
    others = [item for item in evidence if (item.source, item.start) not in told]
    if not others:
        return list(evidence)
    removed = [item for item in evidence if (item.source, item.start) in told]
    scale = sum(item.share for item in evidence) / (sum(item.share for item in others) or 1.0)
    attention_scale = sum(item.attention for item in evidence) / (sum(item.attention for item in others) or 1.0)
    moved = [replace(item, share=item.share * scale, attention=item.attention * attention_scale) for item in others]
    moved += [replace(item, share=0.0, attention=0.0) for item in removed]
    return [replace(item, rank=rank) for rank, item in enumerate(moved, start=1)]
