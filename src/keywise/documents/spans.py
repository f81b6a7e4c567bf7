"""The most probable span of a text as an answer, and probabilities of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import regex
from numpy.typing import NDArray

from keywise.documents.model import EvidenceModel, forward_batch
from keywise.documents.units import Unit, find_units, has_unspaced_script

if TYPE_CHECKING:
    from keywise.documents.prompt import QuestionTokens

# The starts with the best scores are extended in one batch, each by so many tokens at most, and to the end of the unit
# or the digits that it has then reached: a telephone number or an address has more.
MAX_STARTS: Final = 6
MAX_SPAN_TOKENS: Final = 12
# Longest span; longer ones are whole sentences.
MAX_SPAN_CHARACTERS: Final = 400
# Weights of the copying heads and of a longer span beside the model's own log-probability.
COPYING_WEIGHT: Final = 0.3
NATS_PER_TOKEN: Final = 0.3
_MIN_MASS: Final = 1e-4

# An article, or the letter of a part of the sentence.
_LETTER = regex.compile(r"\p{Ll}")
_WORD = regex.compile(r"[\w\p{M}]+")


@dataclass(frozen=True)
class Span:
    """A span of a text as a quoted answer.

    Attributes
    ----------
    start, end
        Its characters.
    log_probability
        Natural logarithm of the probability that the model quotes it.
    tokens
        Its length in tokens.
    complete
        Whether it ends where a unit ends; False if `max_tokens` cut it.
    """

    start: int
    end: int
    log_probability: float
    tokens: int
    complete: bool

    @property
    def probability(self) -> float:
        """Probability that the model quotes it."""
        return float(np.exp(self.log_probability))


def find_best_span(
    model: EvidenceModel,
    cache: Any,
    text: str,
    question: QuestionTokens,
    *,
    max_tokens: int,
    excluded: Sequence[tuple[int, int]] = (),
) -> Span | None:
    """Return the most probable span of a text as a quoted answer.

    Starts are chosen by the probability of their first token and by the attention of the copying heads. Whole spans
    are then compared by the probability of their tokens and of the quotation's end, that attention, and their length,
    because every further token costs probability. Spans that only repeat the question are left out.

    Parameters
    ----------
    model
        The model; its copying heads attend from an answer's beginning to the words that it would start with.
    cache
        Holds the tokens of the template before a document; the text and the question are appended to it.
    text
        A few sentences.
    question
        The question's tokens, with an answer begun.
    max_tokens
        Longest answer, in tokens. A span that begins well but has no unit as short as this is cut.
    excluded
        Spans of characters in which no answer may begin, such as the number of a clause.

    Returns
    -------
    Span or None
        None if the text has no words, or only those of the question.
    """
    units = [unit for unit in find_units(text) if not any(start <= unit.start < end for start, end in excluded)]
    if not units:
        return None
    text_ids, offsets = model.prompt.encode_text(text)
    first_log_probabilities, copying_mass = _forward_text(model, cache, text_ids, question)
    starts = [unit.start for unit in units]
    token_at_start = np.searchsorted([end for _, end in offsets], starts, side="right")
    copying_bonus = COPYING_WEIGHT * np.log(copying_mass[np.minimum(token_at_start, len(text_ids) - 1)] + _MIN_MASS)

    # What follows a span's longest end does not change its first tokens.
    tails = [model.prompt.encode_text(text[start : start + MAX_SPAN_CHARACTERS]) for start in starts]
    start_scores = np.array([first_log_probabilities[tail_ids[0]] for tail_ids, _ in tails]) + copying_bonus
    chosen = np.argsort(-start_scores, kind="stable")[:MAX_STARTS]
    counts = [_count_tokens(text, units, number, tails[number], max_tokens) for number in chosen]
    spans = [tails[number][0][:count] for number, count in zip(chosen, counts, strict=True)]
    width = max(counts)
    cache.batch_repeat_interleave(len(spans))
    padded = [[*span, *[span[0]] * (width - len(span))] for span in spans]
    logits = forward_batch(model.loaded, cache, padded, last=width)

    # A span of the question's own words is an answer only if the question offers a choice.
    known_text = "" if "or" in _find_words(question.text) else question.text
    ends = {end for unit in units for end in (unit.end, unit.word_end)}
    best_score = -np.inf
    best: Span | None = None
    cut: Span | None = None
    for number, span, span_logits in zip(chosen, spans, logits, strict=True):
        span_log_probability = 0.0
        next_log_probabilities = first_log_probabilities
        start = starts[number]
        for length, (token, (_, tail_end)) in enumerate(zip(span, tails[number][1], strict=False), start=1):
            span_log_probability += next_log_probabilities[token]
            next_log_probabilities = _compute_log_softmax(span_logits[length - 1])
            end = start + tail_end
            if number == chosen[0] and length == max_tokens:
                cut = Span(start, end, float(span_log_probability), length, complete=False)
            if end not in ends or _LETTER.fullmatch(text[start:end]) or _repeats(text[start:end], known_text):
                continue
            end_log_probability = np.logaddexp.reduce(next_log_probabilities[model.prompt.quote_end_ids])
            log_probability = float(span_log_probability + end_log_probability)
            score = log_probability + copying_bonus[number] + NATS_PER_TOKEN * min(length, MAX_SPAN_TOKENS)
            if best is None or score > best_score:
                best_score = score
                best = Span(start, end, log_probability, length, complete=True)
    return best or cut


def compute_quote_log_probability(model: EvidenceModel, text: str, question: str, answer: str) -> float:
    """Return the log-probability, in nats, that a model quotes an answer from a text.

    Parameters
    ----------
    model
        The model.
    text
        The text that precedes the question.
    question
        The question.
    answer
        The answer.
    """
    import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

    text_ids, _ = model.prompt.encode_text(text)
    answer_ids, _ = model.prompt.encode_text(answer)
    question_ids = model.prompt.encode_question(question, start_answer=True).token_ids
    cache = keywise.hf.Cache(model.loaded.model.config)
    token_ids = [*model.prompt.before_ids, *text_ids, *question_ids, *answer_ids]
    logits = forward_batch(model.loaded, cache, [token_ids], last=len(answer_ids) + 1)[0]
    *before_tokens, after_answer = map(_compute_log_softmax, logits)
    answer_log_probability = sum(float(row[token]) for row, token in zip(before_tokens, answer_ids, strict=True))
    return answer_log_probability + float(np.logaddexp.reduce(after_answer[model.prompt.quote_end_ids]))


def _forward_text(
    model: EvidenceModel, cache: Any, text_ids: list[int], question: QuestionTokens
) -> tuple[Any, NDArray[np.float64]]:
    """Run a text and a question.

    Returns
    -------
    first_log_probabilities : float32 array [vocabulary]
        Log-probabilities of the first token of an answer.
    mass : float64 array [text tokens]
        Mean attention of the copying heads on each token of the text.
    """
    import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

    copying = model.heads.copying
    layers = sorted({layer for layer, _ in copying})
    with keywise.hf.record_stats(model.loaded.model, layers=layers, queries=1, top_k=0, kind="self") as records:
        logits = forward_batch(model.loaded, cache, [[*text_ids, *question.token_ids]], last=1)
    first_log_probabilities = _compute_log_softmax(logits[0, -1])
    by_layer = {record.layer: record.stats.key_mass for record in records}
    text_start = len(model.prompt.before_ids)
    text_slice = slice(text_start, text_start + len(text_ids))
    mass = np.zeros(len(text_ids))
    for layer, head in copying:
        mass += np.asarray(by_layer[layer][0, head, text_slice], dtype=np.float64) / len(copying)
    return first_log_probabilities, mass


def _compute_log_softmax(logits: Any) -> Any:
    """Return log-probabilities, float32 [vocabulary].

    One token at a time: its logits fit into the CPU's cache, and memory for those of all tokens would take longer to
    allocate than to compute.
    """
    import torch  # noqa: PLC0415 - heavy

    return torch.log_softmax(logits, dim=-1, dtype=torch.float32).numpy()


def _find_words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _repeats(span: str, question: str) -> bool:
    """Return whether all words of a span are the question's; words without spaces between them are its substring."""
    return _find_words(question).issuperset(_find_words(span)) or (has_unspaced_script(span) and span in question)


def _count_tokens(
    text: str, units: Sequence[Unit], first: int, tail: tuple[list[int], list[tuple[int, int]]], max_tokens: int
) -> int:
    """Return how many tokens of the text from a unit on are examined."""
    token_ids, offsets = tail
    start = units[first].start
    limit = start + offsets[min(MAX_SPAN_TOKENS, len(token_ids)) - 1][1]
    end = limit
    for unit in units[first:]:
        # Groups of digits that follow each other are one number.
        follows = _ends_with_digit(text, end) and text[end : unit.start].isspace() and text[unit.start].isdigit()
        if unit.start >= limit and not follows:
            break
        end = max(end, unit.end)
    count = sum(token_start + start < end for token_start, _ in offsets)
    return max(1, min(count, max_tokens))


def _ends_with_digit(text: str, end: int) -> bool:
    return text[end - 1 : end].isdigit()
