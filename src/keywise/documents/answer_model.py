"""Answers that a second, larger model words from the best sentences of a document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import regex

from keywise.documents.answer import AnswerText, split_words
from keywise.documents.blocks import BlockKind
from keywise.documents.model import forward_batch
from keywise.documents.prompt import Prompt
from keywise.documents.ranking import Ranking
from keywise.models.loading import LoadedModel

if TYPE_CHECKING:
    from keywise.documents.evidence import Evidence
    from keywise.documents.text_index import TextIndex

# Sentences that the model reads, and how many of them with the sentence before.
READ_SENTENCES: Final = 5
WITH_PREVIOUS: Final = 2
ANSWER_TOKENS: Final = 48
# Where `keywise tune` has not measured it: a model of 1.5 billion may move sentences, one of 0.5 billion must not.
MIN_MOVING_PARAMETERS: Final = 1_000_000_000
# A sentence holds an answer if it has this share of the answer's words.
MIN_WORD_SHARE: Final = 0.6

# The log odds that no sentence answers: weights of those of the ranking and of the model's judgement. Fitted on the
# questions of docs/evidence.md.
ABSENCE_WEIGHTS: Final = np.array([0.34, 2.15])
ABSENCE_BIAS: Final = -0.57
MIN_SHARE: Final = 1e-6

_INSTRUCTION: Final = "\n\nAnswer with as few words as possible, copied exactly from the text."
_CHECK: Final = "\n\nDoes the text say the answer to this question? Reply yes or no."
_YES: Final = ("yes", "Yes", "YES")
_NO: Final = ("no", "No", "NO")
_WORDS = regex.compile(r"[\p{L}\p{M}\p{N}]+")


@dataclass(frozen=True)
class WordedAnswer:
    """An answer that a model worded.

    Attributes
    ----------
    text
        The answer; empty if the model said nothing.
    tokens
        Its length in tokens.
    complete
        Whether it ended by itself.
    probability
        Probability of exactly this text.
    answered_share
        Probability, by the model, that the sentences answer the question.
    """

    text: str
    tokens: int
    complete: bool
    probability: float
    answered_share: float


class AnswerModel:
    """A language model that words answers from a few sentences.

    Parameters
    ----------
    loaded
        The model; it must have a chat template.
    moves_sentences
        Whether its answers may change the order of the sentences, and its judgement the share of no answer. None: it
        has a billion parameters or more.

    Attributes
    ----------
    loaded : LoadedModel
        The model.
    moves_sentences : bool
        Whether its answers may change the order of the sentences.

    Raises
    ------
    ModelError
        It has no chat template, or does not attend by keywise.
    """

    def __init__(self, loaded: LoadedModel, *, moves_sentences: bool | None = None) -> None:
        import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

        keywise.hf.use(loaded.model)
        self.loaded = loaded
        if moves_sentences is None:
            moves_sentences = loaded.parameters >= MIN_MOVING_PARAMETERS
        self.moves_sentences = moves_sentences
        self._prompt = Prompt(loaded)
        self._yes_ids = [self._encode(word)[0] for word in _YES]
        self._no_ids = [self._encode(word)[0] for word in _NO]

    def word_answer(
        self,
        question: str,
        sentences: Sequence[str],
        *,
        max_tokens: int = ANSWER_TOKENS,
        on_token: Callable[[str], None] | None = None,
    ) -> WordedAnswer:
        """Word the answer to a question from some sentences by greedy decoding.

        Parameters
        ----------
        question
            The question.
        sentences
            The sentences, in the order of the text.
        max_tokens
            Longest answer, in tokens.
        on_token
            Called with each new part of the answer's text.
        """
        import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

        model = self.loaded
        cache = keywise.hf.Cache(model.model.config)
        text = "\n".join(["Text:", *sentences, "", f"Question: {question.strip()}"])
        before_ids, after_ids = self._prompt.before_ids, self._prompt.after_ids
        forward_batch(model, cache, [[*before_ids, *self._encode(text)]], last=1)
        read_tokens = cache.get_seq_length()
        logits = forward_batch(model, cache, [[*self._encode(_CHECK), *after_ids]], last=1)[0, -1]
        answered_share = self._find_yes_share(logits)
        cache.truncate(read_tokens)
        logits = forward_batch(model, cache, [[*self._encode(_INSTRUCTION), *after_ids]], last=1)[0, -1]
        token_ids: list[int] = []
        log_probability = 0.0
        emitted = 0
        while len(token_ids) < max_tokens:
            token = int(logits.argmax())
            log_probability += float(logits.float().log_softmax(-1)[token])
            if token in self._prompt.end_ids:
                break
            answer = self._prompt.decode([*token_ids, token])
            if "\n" in answer.strip():
                break
            token_ids.append(token)
            if on_token is not None and not answer.endswith("\ufffd"):
                on_token(answer[emitted:])
                emitted = len(answer)
            logits = forward_batch(model, cache, [[token]], last=1)[0, -1]
        return WordedAnswer(
            self._prompt.decode(token_ids).strip(),
            len(token_ids),
            len(token_ids) < max_tokens,
            float(np.exp(log_probability)),
            answered_share,
        )

    def _encode(self, text: str) -> list[int]:
        return self._prompt.encode_text(text)[0]

    def _find_yes_share(self, logits: Any) -> float:
        shares = logits.float().softmax(-1)
        yes, no = float(shares[self._yes_ids].sum()), float(shares[self._no_ids].sum())
        return yes / (yes + no) if yes + no > 0.0 else 0.5


def word_answer(
    answer_model: AnswerModel, ranking: Ranking, text_index: TextIndex, question: str
) -> tuple[Ranking, AnswerText | None]:
    """Word the answer to a question from the best sentences; the one that holds it becomes the first.

    Parameters
    ----------
    answer_model
        The model.
    ranking
        The ranked sentences.
    text_index
        Their texts.
    question
        The question.

    Returns
    -------
    ranking, answer
        The answer is None if its words do not stand in a sentence that the model read, or stand in a row of a table.
    """
    answer = answer_model.word_answer(question, choose_passages(ranking, text_index))
    if answer_model.moves_sentences:
        ranking = weigh_absence(ranking, answer.answered_share)
    holder = find_holder(answer.text, ranking.evidence[:READ_SENTENCES])
    # Of a row, which is short, a large model computes: it adds up cells and counts columns.
    if holder is None or holder.kind == BlockKind.TABLE_ROW:
        return ranking, None
    if answer_model.moves_sentences:
        ranking = move_first(ranking, holder)
        holder = ranking.evidence[0]
    words = split_words(answer.text, lambda _start, _end: [holder.rank])
    text = AnswerText(
        answer.text,
        words,
        answer.tokens,
        complete=answer.complete,
        quote=holder.text,
        confidence=answer.probability,
        model=answer_model.loaded.name,
    )
    return ranking, text


def choose_passages(ranking: Ranking, text_index: TextIndex) -> list[str]:
    """Return the best sentences in the order of the text, each after its context, some with the sentence before.

    Parameters
    ----------
    ranking
        The ranked sentences.
    text_index
        Their texts.
    """
    numbers = np.argsort(ranking.ranks, kind="stable")[:READ_SENTENCES].tolist()
    passages = {number: text_index.get_text_in_context(number) for number in numbers}
    for number in numbers[:WITH_PREVIOUS]:
        previous = text_index.get_text(number - 1) if number else ""
        if previous and number - 1 not in passages and previous not in passages[number]:
            passages[number] = f"{previous}\n{passages[number]}"
    return [passages[number] for number in sorted(passages)]


def weigh_absence(ranking: Ranking, answered_share: float) -> Ranking:
    """Return a ranking whose share of no answer takes a model's judgement into account; the other shares fill the rest.

    Parameters
    ----------
    ranking
        The ranked sentences.
    answered_share
        Probability, by the model, that the best sentences answer.
    """
    clipped = np.clip([ranking.no_answer_share, 1.0 - answered_share], MIN_SHARE, 1.0 - MIN_SHARE)
    log_odds = float(ABSENCE_WEIGHTS @ np.log(clipped / (1.0 - clipped)) + ABSENCE_BIAS)
    no_answer_share = float(1.0 / (1.0 + np.exp(-log_odds)))
    scale = (1.0 - no_answer_share) / max(1.0 - ranking.no_answer_share, MIN_SHARE)
    evidence = [replace(item, share=item.share * scale, attention=item.attention * scale) for item in ranking.evidence]
    return replace(ranking, evidence=evidence, no_answer_share=no_answer_share)


def find_holder(answer: str, evidence: Sequence[Evidence]) -> Evidence | None:
    """Return the first of some sentences that holds an answer, else the one with most of its words, else None.

    Parameters
    ----------
    answer
        The answer.
    evidence
        The sentences, best first.

    Examples
    --------
    >>> find_holder("Ann", []) is None
    True
    """
    words = _split_words(answer)
    if not words:
        return None
    spaced = f" {' '.join(words)} "
    for item in evidence:
        if spaced in f" {' '.join(_split_words(item.text))} ":
            return item
    shares = [len(set(words) & set(_split_words(item.text))) / len(set(words)) for item in evidence]
    best = int(np.argmax(shares)) if shares else -1
    return evidence[best] if best >= 0 and shares[best] >= MIN_WORD_SHARE else None


def move_first(ranking: Ranking, item: Evidence) -> Ranking:
    """Return a ranking in which a sentence is the first; the shares keep their order.

    Parameters
    ----------
    ranking
        The ranked sentences.
    item
        One of them.
    """
    evidence = ranking.evidence
    ordered = [item, *(other for other in evidence if other is not item)]
    moved = [
        replace(other, rank=rank, share=old.share)
        for rank, (other, old) in enumerate(zip(ordered, evidence, strict=True), start=1)
    ]
    new_ranks = np.zeros(len(evidence) + 1, dtype=np.intp)
    for rank, other in enumerate(ordered, start=1):
        new_ranks[other.rank] = rank
    return replace(ranking, evidence=moved, ranks=new_ranks[ranking.ranks])


def _split_words(text: str) -> list[str]:
    return [word.casefold() for word in _WORDS.findall(text)]
