"""The sentences that a question attends to most, with their shares by keys and by words."""

from __future__ import annotations

import numpy as np

from keywise.attention.partial import Partial
from keywise.library.arrow_arrays import Array
from keywise.library.partials import NO_ROW
from keywise.library.results import LibraryAttention, SentenceHit


def make_hits(attention: LibraryAttention) -> list[SentenceHit]:
    """Return the heaviest sentences of a question, heaviest first.

    Parameters
    ----------
    attention
        Attention of the question by keys and words, or by keys alone; in the first case of two queries: first by keys
        alone.
    """
    bias = attention.query.bias
    ranking = 0 if bias is None else 1
    rows = attention.rows[ranking]
    present = rows != NO_ROW
    if not present.any():
        return []
    semantic = attention.weights[ranking]
    lexical: Array | None = None
    words = None if bias is None else bias[ranking]
    if words is not None:
        nats = words.select(rows)
        semantic = semantic * _share_by_keys(attention.lse, nats)
        lexical = nats / (words.nats.sum(dtype=np.float64) or 1.0)
    return [
        SentenceHit(
            text=match["text"],
            document=match["document"],
            start=match["start"],
            end=match["end"],
            weight=float(match["weight"]),
            rank=rank,
            semantic=float(semantic_share),
            lexical=None if lexical is None else float(lexical[present][rank - 1]),
            kind=match["kind"],
            heading_path=tuple(match["heading_path"]),
        )
        for rank, (match, semantic_share) in enumerate(
            zip(attention.matches[ranking], semantic[present], strict=True), start=1
        )
    ]


def _share_by_keys(lse: Array, nats: Array) -> Array:
    """Return the factors [top] from weights with words to weights by keys alone: exp(lse[1] - lse[0] - nats)."""

    def make_partial(score: Array) -> Partial:
        score = np.broadcast_to(np.float32(score), nats.shape)[None, None]
        return Partial(score, np.ones_like(score), np.zeros((*score.shape, 1), np.float32))

    factors: Array = make_partial(lse[1] - nats).share_of(make_partial(lse[0]))[0, 0]
    return factors
