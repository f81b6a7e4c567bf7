"""The most probable span of a text as an answer, and probabilities of answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.model import EvidenceModel, forward_batch

if TYPE_CHECKING:
    from keywise.documents.prompt import QuestionTokens

# The starts with the best scores are extended in one batch, each by so many tokens at most.
MAX_STARTS: Final = 6
MAX_SPAN_TOKENS: Final = 12
# Weights of the copying heads and of a longer span beside the model's own log-probability.
COPYING_WEIGHT: Final = 0.3
NATS_PER_TOKEN: Final = 0.3
_MIN_MASS: Final = 1e-4

_WORD = re.compile(r"\w+")
_WORD_START = re.compile(r"(?<!\w)[\w$£€]")


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
    """

    start: int
    end: int
    log_probability: float
    tokens: int


def find_best_span(
    model: EvidenceModel, cache: Any, text: str, question: QuestionTokens, *, max_tokens: int
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
        Longest answer, in tokens.

    Returns
    -------
    Span or None
        None if the text has no words, or only those of the question.
    """
    starts = [match.start() for match in _WORD_START.finditer(text)]
    if not starts:
        return None
    text_ids, offsets = model.prompt.encode_text(text)
    first_log_probabilities, copying_mass = _forward_text(model, cache, text_ids, question)
    token_at_start = np.searchsorted([end for _, end in offsets], starts, side="right")
    copying_bonus = COPYING_WEIGHT * np.log(copying_mass[np.minimum(token_at_start, len(text_ids) - 1)] + _MIN_MASS)

    tails = [model.prompt.encode_text(text[start:]) for start in starts]
    start_scores = np.array([first_log_probabilities[tail_ids[0]] for tail_ids, _ in tails]) + copying_bonus
    chosen = np.argsort(-start_scores, kind="stable")[:MAX_STARTS]
    spans = [tails[number][0][: min(MAX_SPAN_TOKENS, max_tokens)] for number in chosen]
    width = max(map(len, spans))
    cache.batch_repeat_interleave(len(spans))
    padded = [[*span, *[span[0]] * (width - len(span))] for span in spans]
    logits = forward_batch(model.loaded, cache, padded, last=width)

    # A span of the question's own words is an answer only if the question offers a choice.
    known_words = _find_words(question.text)
    if "or" in known_words:
        known_words = set()
    best_score = -np.inf
    best: Span | None = None
    for number, span, span_logits in zip(chosen, spans, logits, strict=True):
        span_log_probability = 0.0
        next_log_probabilities = first_log_probabilities
        start = starts[number]
        for length, (token, (_, tail_end)) in enumerate(zip(span, tails[number][1], strict=False), start=1):
            span_log_probability += next_log_probabilities[token]
            next_log_probabilities = _compute_log_softmax(span_logits[length - 1])
            end = start + tail_end
            if not _ends_word(text, end) or known_words.issuperset(_find_words(text[start:end])):
                continue
            end_log_probability = np.logaddexp.reduce(next_log_probabilities[model.prompt.quote_end_ids])
            log_probability = float(span_log_probability + end_log_probability)
            score = log_probability + copying_bonus[number] + NATS_PER_TOKEN * length
            if best is None or score > best_score:
                best_score = score
                best = Span(start, end, log_probability, length)
    return best


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


def _ends_word(text: str, end: int) -> bool:
    """Return whether a word, not punctuation, ends before a character."""
    return text[end - 1].isalnum() and not text[end : end + 1].isalnum()
