"""The attention of a question on a document's sentences.

A null question is run on every document first. Its attention is subtracted from that of each question, which removes
attention sinks and preferred positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.lexical import inverse_document_frequency
from keywise.documents.model import forward_tokens, record_sentence_mass

if TYPE_CHECKING:
    from keywise.documents.heads import Head, Heads
    from keywise.documents.model import EvidenceModel
    from keywise.documents.prefill import PrefilledContext
    from keywise.documents.prompt import DocumentTokens, QuestionTokens
    from keywise.hf import LayerStats

# Chen et al., "Attention in Large Language Models Yields Efficient Zero-Shot Re-Rankers" (2024).
NULL_QUESTION: Final = "N/A"

# A question's token is weighted by this power of its inverse document frequency: common words locate no evidence.
RARITY_POWER: Final = 2.0

SentenceMass = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EvidenceStats:
    """The attention mass of one question on every sentence, per head.

    Attributes
    ----------
    matching
        float64 [matching heads, sentences], mean over the question's tokens, rare ones counting most.
    copying
        float64 [copying heads, sentences], mean over the tokens that begin an answer.
    """

    matching: SentenceMass
    copying: SentenceMass

    def __sub__(self, other: EvidenceStats) -> EvidenceStats:
        return EvidenceStats(self.matching - other.matching, self.copying - other.copying)


@dataclass(frozen=True, eq=False)
class Continuation:
    """A cache with a document and a question, and the logits [vocabulary] of the next token."""

    cache: Any
    logits: Any


@dataclass(frozen=True, eq=False)
class QuestionScore:
    """The statistics of a question above those of the null question.

    Attributes
    ----------
    stats
        Attention mass per head and sentence.
    continuation
        Where the model can continue after the question; None unless requested.
    """

    stats: EvidenceStats
    continuation: Continuation | None


def score_question(
    model: EvidenceModel, context: PrefilledContext, question: QuestionTokens, *, keep_cache: bool = False
) -> QuestionScore:
    """Run a question after a document and return its attention on every sentence.

    Parameters
    ----------
    model
        The model that prefilled the document.
    context
        The prefilled document; it is not changed.
    question
        The question's tokens, with an answer begun if the model has copying heads.
    keep_cache
        Whether to run the model to its end, so that an answer can follow; otherwise it stops after the last layer with
        evidence heads.
    """

    def record(cache: Any) -> tuple[Any, Any, Sequence[LayerStats]]:
        logits, records = record_sentence_mass(
            model, cache, question.token_ids, context.segment_ids, stop=not keep_cache
        )
        return cache, logits, records

    cache, logits, records = context.run(record)
    weights = weigh_tokens(context.document, question.token_ids[question.question])
    stats = evidence_from_stats(
        records,
        model.heads,
        context.document.sentences,
        matching_queries=question.question,
        copying_queries=question.answer_start,
        weights=weights,
    )
    continuation = Continuation(cache, logits) if keep_cache else None
    return QuestionScore(stats - context.null_stats, continuation)


def forward_question(model: EvidenceModel, context: PrefilledContext, question: QuestionTokens) -> Continuation:
    """Run a question after a document without recording attention."""

    def forward(cache: Any) -> Continuation:
        return Continuation(cache, forward_tokens(model.loaded, cache, question.token_ids))

    return context.run(forward)


def evidence_from_stats(
    records: Iterable[LayerStats],
    heads: Heads,
    sentences: int,
    *,
    matching_queries: slice,
    copying_queries: slice,
    weights: NDArray[np.float64] | None = None,
) -> EvidenceStats:
    """Return the mean attention mass of matching and copying heads on each sentence.

    Parameters
    ----------
    records
        Statistics of one forward pass with `segment_mass` of the document's sentences.
    heads
        The heads.
    sentences
        Number of sentences.
    matching_queries, copying_queries
        Tokens of the pass to average over, for each kind of heads.
    weights
        float64 [matching queries], the weight of each in the mean; default equal.
    """
    return EvidenceStats(
        average_sentence_mass(records, heads.matching, sentences, matching_queries, weights),
        average_sentence_mass(records, heads.copying, sentences, copying_queries),
    )


def average_sentence_mass(
    records: Iterable[LayerStats],
    heads: Sequence[Head],
    sentences: int,
    queries: slice,
    weights: NDArray[np.float64] | None = None,
) -> SentenceMass:
    """Return the attention mass of some heads on each sentence, averaged over some queries.

    Parameters
    ----------
    records
        Statistics of one forward pass of one sequence, with `segment_mass` of the document's sentences.
    heads
        (layer, head) pairs.
    sentences
        Number of sentences.
    queries
        Tokens of the pass to average over.
    weights
        float64 [queries], the weight of each in the mean; default equal.

    Returns
    -------
    float64 array [heads, sentences]
    """
    by_layer = {record.layer: record.stats.segment_mass for record in records}
    mass = np.zeros((len(heads), sentences))
    for number, (layer, head) in enumerate(heads):
        segment_mass = np.asarray(by_layer[layer][0, head, queries], dtype=np.float64)
        mean = np.average(segment_mass, axis=0, weights=weights)
        mass[number, : mean.size] = mean  # the last sentences may have no token
    return mass


def weigh_tokens(document: DocumentTokens, token_ids: Sequence[int]) -> NDArray[np.float64]:
    """Return the weight of each token of a question: small if many sentences contain it."""
    document_ids, sentence_ids = document.sentence_tokens
    weights: list[float] = []
    for token in token_ids:
        sentences_with = np.unique(sentence_ids[document_ids == token]).size
        weights.append(inverse_document_frequency(sentences_with, document.sentences) ** RARITY_POWER)
    return np.array(weights)
