"""A short passage read for one question: the likeliest words of it as the answer, and how likely an answer is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from keywise.documents.heads import Head

if TYPE_CHECKING:
    from keywise.documents.prompt import Prompt
    from keywise.models.loading import LoadedModel

# So many places where an answer could begin are gone on from, in one batch, by at most so many tokens.
STARTS: Final = 6
SPAN_TOKENS: Final = 12
# What a hint of the copying heads, and a longer span, are worth beside the model's own probability.
COPYING_WEIGHT: Final = 0.3
NATS_PER_TOKEN: Final = 0.3
_LEAST_MASS: Final = 1e-4

_WORD = re.compile(r"\w+")
_WORD_START = re.compile(r"(?<!\w)[\w$£€]")


@dataclass(frozen=True)
class Span:
    """Words of a passage, by their characters, and the natural logarithm of their probability as a quoted answer."""

    start: int
    end: int
    log_probability: float
    tokens: int


def likeliest_span(
    loaded: LoadedModel,
    prompt: Prompt,
    copying: Sequence[Head],
    passage: str,
    question: str,
    *,
    most_tokens: int,
    begun: Any = None,
) -> Span | None:
    """Find the words of a passage that a model would most likely give as its answer; None if it has no words.

    Places to begin are chosen by the probability of their first token and by the mass that the copying heads give it;
    then whole spans are compared: the probability of their tokens and of ending there, that mass, and their length,
    for every further token costs probability. Words that only repeat the question are no answer.

    Parameters
    ----------
    loaded, prompt
        The model and its prompt.
    copying
        (layer, head) that look from the beginning of an answer to the words to begin it with.
    passage
        A few sentences.
    question
        The question.
    most_tokens
        Longest answer, in tokens.
    begun
        A cache that has read what precedes a document, and is written to; default reads it.
    """
    import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

    begin = [match.start() for match in _WORD_START.finditer(passage)]
    if not begin:
        return None
    ids, offsets = prompt.text_ids(passage)
    turn = prompt.question_ids(question, started=True)
    cache, before_ids = (begun, []) if begun is not None else (keywise.hf.Cache(loaded.model.config), prompt.before_ids)
    layers = sorted({layer for layer, _ in copying})
    with keywise.hf.record_stats(loaded.model, layers=layers, queries=1, top_k=0, kind="self") as records:
        first = _log_probabilities(_logits(loaded, cache, [[*before_ids, *ids, *turn]], last=1)[0, -1])
    mass = np.zeros(len(ids))
    by_layer = {record.layer: record.stats.key_mass for record in records}
    place = slice(len(prompt.before_ids), len(prompt.before_ids) + len(ids))
    for layer, head in copying:
        mass += np.asarray(by_layer[layer][0, head, place], dtype=np.float64) / len(copying)
    token_at = np.searchsorted([end for _, end in offsets], begin, side="right")
    bonus = COPYING_WEIGHT * np.log(mass[np.minimum(token_at, len(ids) - 1)] + _LEAST_MASS)

    tails = [prompt.text_ids(passage[start:]) for start in begin]
    promise = np.array([first[tail[0][0]] for tail in tails]) + bonus
    chosen = np.argsort(-promise, kind="stable")[:STARTS]
    longest = min(SPAN_TOKENS, most_tokens)
    spans = [tails[number][0][:longest] for number in chosen]
    width = max(map(len, spans))
    cache.batch_repeat_interleave(len(spans))
    logits = _logits(loaded, cache, [[*span, *[span[0]] * (width - len(span))] for span in spans], last=width)

    # Words that the question has already answer it only where it offers a choice.
    known = _words(question)
    if "or" in known:
        known = set()
    best: tuple[float, Span] | None = None
    for number, span, given in zip(chosen, spans, logits, strict=True):
        said = 0.0
        following = first
        for length, (token, (_, tail_end)) in enumerate(zip(span, tails[number][1], strict=False), start=1):
            said += following[token]
            following = _log_probabilities(given[length - 1])
            end = begin[number] + tail_end
            if not _word_ends(passage, end) or known.issuperset(_words(passage[begin[number] : end])):
                continue
            log_probability = float(said + np.logaddexp.reduce(following[prompt.quote_ids]))
            score = log_probability + bonus[number] + NATS_PER_TOKEN * length
            if best is None or score > best[0]:
                best = score, Span(begin[number], end, log_probability, length)
    return None if best is None else best[1]


def log_probability(loaded: LoadedModel, prompt: Prompt, passage: str, question: str, answer: str) -> float:
    """Give the natural logarithm of the probability that a model quotes these words, having read a passage."""
    import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

    ids, _ = prompt.text_ids(passage)
    said, _ = prompt.text_ids(answer)
    asked = [*prompt.before_ids, *ids, *prompt.question_ids(question, started=True)]
    cache = keywise.hf.Cache(loaded.model.config)
    logits = _logits(loaded, cache, [[*asked, *said]], last=len(said) + 1)[0]
    *given, ending = map(_log_probabilities, logits)
    told = sum(float(row[token]) for row, token in zip(given, said, strict=True))
    return told + float(np.logaddexp.reduce(ending[prompt.quote_ids]))


def _logits(loaded: LoadedModel, cache: Any, ids: list[list[int]], *, last: int) -> Any:
    """Run tokens after those in the cache; give [batch, last, vocabulary] for what may follow the last of them."""
    import torch  # noqa: PLC0415 - heavy

    with torch.inference_mode():
        return loaded.model(torch.tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=last).logits


def _log_probabilities(logits: Any) -> Any:
    """Give the natural logarithms of the probabilities of what may follow one token, float32 [vocabulary].

    One token at a time, because its numbers fit into the CPU's cache: those of all are memory that the system has to
    hand out first, which takes many times as long as the numbers themselves.
    """
    import torch  # noqa: PLC0415 - heavy

    return torch.log_softmax(logits, dim=-1, dtype=torch.float32).numpy()


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _word_ends(text: str, end: int) -> bool:
    """Tell whether a word, and not only punctuation, ends at this character."""
    return text[end - 1].isalnum() and not text[end : end + 1].isalnum()
