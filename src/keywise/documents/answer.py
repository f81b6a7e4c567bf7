"""Answers: quoted from the best sentences, or written by the model from the whole document."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.blocks import BlockKind
from keywise.documents.generation import Sampling, StopTexts, make_token_chooser
from keywise.documents.model import EvidenceModel, record_sentence_mass
from keywise.documents.scoring import Continuation, SentenceMass, average_sentence_mass, forward_question
from keywise.documents.spans import find_best_span
from keywise.documents.units import find_marker_end, find_units

if TYPE_CHECKING:
    from keywise.documents.evidence import Evidence
    from keywise.documents.files import Source
    from keywise.documents.prefill import PrefilledContext
    from keywise.documents.prompt import QuestionTokens

# A sentence is the source of a word if it has this share of the word's attention; a word has at most two sources.
MIN_SOURCE_SHARE: Final = 0.3
MAX_WORD_SOURCES: Final = 2

# Spans that the model quotes with less than this are not trusted: the sentence is the answer. Natural logarithm.
MIN_LOG_PROBABILITY: Final = -4.0
# A row is short, and a wrong cell of it looks like a right one.
MIN_ROW_LOG_PROBABILITY: Final = -0.5

# A sentence of so few words may say yes or no; the one after it says what.
MAX_INCOMPLETE_UNITS: Final = 2

_WORD = re.compile(r"\S+")
# The letter or Roman number of a part in a sentence: "(a) ...; or (b) ...".
_PART_MARK = re.compile(r"\((?:[a-z]|[ivx]{2,4})\)")
# Questions that begin with a verb in English, German and French, or are marked in Hindi and Chinese.
_YES_NO = re.compile(
    r"^\W*(?:(?:is|are|am|was|were|do|does|did|can|could|may|might|must|shall|should|will|would|has|have|had"
    r"|ist|sind|war|waren|hat|haben|hatte|hatten|kann|können|darf|dürfen|muss|müssen|soll|sollen|wird|werden|gibt"
    r"|est-ce|peut-on|faut-il|doit-on|y a-t-il)\b|क्या\s|.*吗\s*[?\uff1f]?\s*$)",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"\b(?:or|oder|ou)\b|还是|या", re.IGNORECASE)
# What incomplete UTF-8 decodes to.
_REPLACEMENT_CHARACTER: Final = "\ufffd"


@dataclass(frozen=True)
class AnswerWord:
    """A word of an answer and its sources.

    Attributes
    ----------
    start, end
        Its span in the answer's text, in characters.
    sources
        Ranks of the sentences that it comes from, the most likely first. For a quoted answer this is the sentence that
        contains it, for a written one the sentences that the model attended to. Empty if no sentence stands out.

    Examples
    --------
    >>> from keywise.documents import AnswerWord
    >>> word = AnswerWord(4, 7, sources=(1,))
    >>> "Ann Low"[word.start : word.end]
    'Low'
    """

    start: int
    end: int
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """A model's answer to a question, and the sentences ranked as evidence.

    Attributes
    ----------
    text
        The answer.
    evidence
        All sentences, best first.
    question
        The question.
    model
        The model's name.
    complete
        Whether the answer ended by itself; False if `max_tokens` cut it.
    document_tokens, answer_tokens
        Lengths in tokens.
    reused_tokens
        Number of the document's tokens that were loaded from the store instead of computed.
    no_answer_share
        Probability that no sentence answers; with the shares of all sentences it sums to 1.
    sentences
        Number of sentences that the answer was quoted from; 0 if it was written from the whole document.
    words
        The answer's words with their sources.
    tuned_on
        The data that the heads were tuned on; None if they are a guess from the model's depth.
    windows
        Number of windows that the document was split into; 1 if it fits into the model's context.
    read_windows
        Number of windows that were read for the question.
    quote
        The sentences that the answer was quoted from; the best sentence if it was written.
    confidence
        Probability that the model quotes exactly this answer; None if it was written or is a whole sentence.
    answer_model
        Name of the larger model that worded the answer; None if `model` quoted or wrote it.
    stopped_by
        The text of `stop` that ended the answer; None if none did.

    Examples
    --------
    >>> answer = document.ask("Who was the keeper?")  # doctest: +SKIP
    >>> answer.text, answer.evidence[0].text, answer.no_answer_share < 0.5  # doctest: +SKIP
    ('Ann Low', 'Its keeper was Ann Low.', True)
    """

    text: str
    evidence: list[Evidence]
    question: str
    model: str
    complete: bool
    document_tokens: int
    answer_tokens: int
    reused_tokens: int = 0
    no_answer_share: float = 0.0
    sentences: int = 0
    words: list[AnswerWord] = field(default_factory=list)
    tuned_on: str | None = None
    windows: int = 1
    read_windows: int = 1
    quote: str = ""
    confidence: float | None = None
    answer_model: str | None = None
    stopped_by: str | None = None


@dataclass(frozen=True)
class AnswerText:
    """The text of an answer.

    Attributes
    ----------
    text
        The text.
    words
        Its words with their sources.
    tokens
        Its length in tokens.
    complete
        Whether it ended by itself.
    quote
        The sentences that it was quoted from.
    confidence
        Probability that the model quotes exactly this text; None for a written text or a whole sentence.
    model
        Name of the larger model that worded it; None for the document's own.
    stopped_by
        The text that ended it; None if none did.
    """

    text: str
    words: list[AnswerWord]
    tokens: int
    complete: bool
    quote: str = ""
    confidence: float | None = None
    model: str | None = None
    stopped_by: str | None = None

    def cut_at(self, stop: StopTexts) -> AnswerText:
        """Return the text before the first of some texts that end it."""
        found = stop.find(self.text)
        if found is None:
            return self
        position, stopped_by = found
        text = self.text[:position].rstrip()
        words = [replace(word, end=min(word.end, len(text))) for word in self.words if word.start < len(text)]
        return replace(self, text=text, words=words, complete=True, stopped_by=stopped_by)


def quote_answer(
    model: EvidenceModel,
    context: PrefilledContext,
    question: QuestionTokens,
    sources: Sequence[Source],
    evidence: Sequence[Evidence],
    *,
    sentences: int,
    max_tokens: int,
) -> AnswerText:
    """Quote the most probable answer from some sentences.

    The model reads the sentences alone, in the order of the text, and quotes a span of them. The answer to a question
    for yes or no is the best sentence as a whole, and so is the answer where the model quotes no span with confidence.

    Parameters
    ----------
    model
        The model.
    context
        The prefilled document; only its template is used.
    question
        The question's tokens, with an answer begun.
    sources
        The texts.
    evidence
        All sentences, best first.
    sentences
        Number of best sentences to quote from.
    max_tokens
        Longest answer, in tokens.
    """
    in_order = sort_by_place(sources, evidence)
    if is_yes_no_question(question.text):
        return quote_sentence(model, evidence[0], in_order, max_tokens=max_tokens)
    passage, ends = join_sentences(sort_by_place(sources, evidence[:sentences]))
    begins = [0, *(end + 1 for end, _ in ends[:-1])]
    markers = [
        (begin, begin + find_marker_end(passage[begin:end])) for begin, (end, _) in zip(begins, ends, strict=True)
    ]
    markers += [match.span() for match in _PART_MARK.finditer(passage)]

    def find_span(cache: Any) -> Any:
        cache.truncate(len(model.prompt.before_ids))
        return find_best_span(model, cache, passage, question, max_tokens=max_tokens, excluded=markers)

    span = context.run(find_span)
    is_row = evidence[0].kind == BlockKind.TABLE_ROW
    if span is None or span.log_probability < (MIN_ROW_LOG_PROBABILITY if is_row else MIN_LOG_PROBABILITY):
        return quote_sentence(model, evidence[0], in_order, max_tokens=max_tokens)
    text = passage[span.start : span.end]

    def find_sources(start: int, _end: int) -> list[int]:
        return [next(item.rank for end, item in ends if span.start + start < end)]

    quoted = [
        item.text for begin, (end, item) in zip(begins, ends, strict=True) if begin < span.end and span.start < end
    ]
    return AnswerText(
        text,
        split_words(text, find_sources),
        span.tokens,
        complete=span.complete and span.tokens < max_tokens,
        quote=" ".join(quoted),
        confidence=span.probability,
    )


def quote_sentence(
    model: EvidenceModel, best: Evidence, in_order: Sequence[Evidence], *, max_tokens: int
) -> AnswerText:
    """Return a sentence as the answer, without the number of its clause, cut after a unit if it is too long.

    A sentence that only says yes or no is quoted with the one after it.

    Parameters
    ----------
    model
        The model.
    best
        The sentence.
    in_order
        All sentences in the order of the text.
    max_tokens
        Longest answer, in tokens.
    """
    quoted = [best]
    following = in_order.index(best) + 1
    if len(find_units(best.text)) <= MAX_INCOMPLETE_UNITS and following < len(in_order):
        quoted += [item for item in [in_order[following]] if item.source == best.source]
    quote = " ".join(item.text for item in quoted)
    sentence = quote[find_marker_end(quote) :].strip() or quote
    token_ids, offsets = model.prompt.encode_text(sentence)
    text = sentence
    if len(token_ids) > max_tokens:
        limit = offsets[max_tokens - 1][1]
        text = sentence[: max((unit.end for unit in find_units(sentence) if unit.end <= limit), default=limit)]
    words = split_words(text, lambda _start, _end: [best.rank])
    return AnswerText(text, words, min(len(token_ids), max_tokens), complete=len(token_ids) <= max_tokens, quote=quote)


def is_yes_no_question(question: str) -> bool:
    """Return whether a question asks for yes or no, and offers no other choice.

    Examples
    --------
    >>> is_yes_no_question("Is smoking allowed?"), is_yes_no_question("Is it red or blue?"), is_yes_no_question("Who?")
    (True, False, False)
    """
    return bool(_YES_NO.search(question)) and not _CHOICE.search(question)


def write_answer(
    model: EvidenceModel,
    context: PrefilledContext,
    question: QuestionTokens,
    ranks: Sequence[int] | NDArray[np.intp],
    *,
    max_tokens: int,
    continuation: Continuation | None = None,
    sampling: Sampling | None = None,
    stop: StopTexts = StopTexts(),  # noqa: B008 - it cannot be changed
    on_token: Callable[[str], None] | None = None,
) -> AnswerText:
    """Write an answer from the whole document, token by token.

    Parameters
    ----------
    model
        The model.
    context
        The prefilled document.
    question
        The question's tokens, without an answer begun.
    ranks
        The rank of each sentence of the prefilled document.
    max_tokens
        Longest answer, in tokens.
    continuation
        Where the model continues after the question; default runs the question.
    sampling
        How tokens are chosen; None for the most probable ones.
    stop
        Texts that end the answer.
    on_token
        Called with each new part of the answer's text.
    """
    if continuation is None:
        continuation = forward_question(model, context, question)
    if model.starts_answer:
        heads, null_mass = model.heads.copying, context.null_stats.copying
    else:
        heads, null_mass = model.heads.matching, context.null_stats.matching
    choose_token = make_token_chooser(sampling)
    cache = continuation.cache
    token = choose_token(continuation.logits, [])
    token_ids: list[int] = []
    text_ends: list[int] = []
    masses: list[SentenceMass] = []
    emitted = 0
    text = ""
    while token not in model.prompt.end_ids and len(token_ids) < max_tokens:
        token_ids.append(token)
        text = model.prompt.decode(token_ids)
        text_ends.append(len(text))
        found = stop.find(text)
        # A character can take several tokens.
        safe_end = found[0] if found else stop.find_safe_end(text)
        if on_token and safe_end > emitted and not text.endswith(_REPLACEMENT_CHARACTER):
            on_token(text[emitted:safe_end])
            emitted = safe_end
        logits, records = record_sentence_mass(model, cache, [token], context.segment_ids, stop=False)
        mass = average_sentence_mass(records, heads, context.document.sentences, slice(None))
        masses.append((mass - null_mass).sum(axis=0))
        if found:
            break
        token = choose_token(logits, token_ids)
    if on_token and not stop.find(text) and emitted < len(text):
        on_token(text[emitted:])
    leading_spaces = len(text) - len(text.lstrip())

    def find_sources(start: int, end: int) -> list[int]:
        first = int(np.searchsorted(text_ends, start + leading_spaces, side="right"))
        last = int(np.searchsorted(text_ends, end + leading_spaces, side="left"))
        return [int(ranks[number]) for number in find_heaviest_sentences(np.sum(masses[first : last + 1], axis=0))]

    text = text.strip()
    complete = token in model.prompt.end_ids
    return AnswerText(text, split_words(text, find_sources), len(token_ids), complete).cut_at(stop)


def split_words(text: str, find_sources: Callable[[int, int], Sequence[int]]) -> list[AnswerWord]:
    """Split an answer into words.

    Parameters
    ----------
    text
        The answer.
    find_sources
        Returns the ranks of the sentences that a span of the answer comes from.

    Examples
    --------
    >>> [(word.start, word.sources) for word in split_words("Ann Low", lambda start, end: [1])]
    [(0, (1,)), (4, (1,))]
    """
    return [
        AnswerWord(match.start(), match.end(), tuple(find_sources(match.start(), match.end())))
        for match in _WORD.finditer(text)
    ]


def find_heaviest_sentences(mass: SentenceMass) -> NDArray[np.intp]:
    """Return the numbers of the sentences with the most mass, heaviest first.

    Examples
    --------
    >>> import numpy as np
    >>> find_heaviest_sentences(np.array([0.1, -0.2, 0.5, 0.4])).tolist()
    [2, 3]
    """
    positive = np.maximum(mass, 0.0)
    first = np.argsort(-positive, kind="stable")[:MAX_WORD_SOURCES]
    heavy: NDArray[np.intp] = first[positive[first] > MIN_SOURCE_SHARE * positive.sum()]
    return heavy


def sort_by_place(sources: Sequence[Source], evidence: Sequence[Evidence]) -> list[Evidence]:
    """Return sentences in the order of the text.

    Examples
    --------
    >>> sort_by_place([], [])
    []
    """
    order = {source.name: number for number, source in enumerate(sources)}
    return sorted(evidence, key=lambda item: (order[item.source], item.start))


def join_sentences(evidence: Sequence[Evidence]) -> tuple[str, list[tuple[int, Evidence]]]:
    """Join sentences by spaces, and return where each ends.

    Examples
    --------
    >>> join_sentences([])
    ('', [])
    """
    text = ""
    ends: list[tuple[int, Evidence]] = []
    for item in evidence:
        text = f"{text} {item.text}" if text else item.text
        ends.append((len(text), item))
    return text, ends
