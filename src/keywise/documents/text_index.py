"""Scores of sentences from their text alone, without attention."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from keywise.documents.blocks import BlockKind
from keywise.documents.evidence import SentenceRoles
from keywise.documents.lexical import LexicalIndex
from keywise.documents.semantic import Encode, SemanticIndex

if TYPE_CHECKING:
    from keywise.documents.files import Source

TextScores = dict[str, NDArray[np.float64]]
"""By name, one score per sentence: ``lexical``, ``paragraph_lexical`` and, with an encoder, ``semantic`` and
``paragraph_semantic``. See `keywise.documents.Evidence`."""


class TextIndex:
    """The words of sentences and, with an encoder, their vectors.

    Parameters
    ----------
    sources
        The texts; their sentences are numbered in order.
    encode
        Returns the vectors of texts; None for lexical scores only. Sentences are encoded at the first question.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> index = TextIndex([Source("note", "The lamp is lit. Ann kept it.")], None)
    >>> sorted(index.score("Who kept the lamp?"))
    ['lexical', 'paragraph_lexical']
    """

    def __init__(self, sources: Sequence[Source], encode: Encode | None) -> None:
        self._sources = sources
        self._encode = encode
        self._lexical = LexicalIndex(sources)
        self._leads = self._find_kinds({BlockKind.HEADING}) | self._find_lead_ins()
        self._lists_parts = self._find_kinds({BlockKind.TABLE_HEADER, BlockKind.CONTENTS_LINE})

    def score(self, question: str) -> TextScores:
        """Return the scores of every sentence for a question: float64 [sentences] each."""
        scores = {
            "lexical": self._lexical.score_sentences(question),
            "paragraph_lexical": self._lexical.score_paragraphs(question),
        }
        if self._semantic is not None:
            scores["semantic"] = self._semantic.score_sentences(question)
            scores["paragraph_semantic"] = self._semantic.score_paragraphs(question)
        return scores

    def find_roles(self, question: str) -> SentenceRoles:
        """Return which sentences do not answer this question by themselves.

        A page of questions and answers quotes the question; a heading, or a colon, announces what follows.

        Examples
        --------
        >>> from keywise.documents import Source
        >>> index = TextIndex([Source("note", "Q: Who kept the lamp? A: Ann did.")], None)
        >>> index.find_roles("Who kept the old lamp?").leads_on.tolist()
        [True, False]
        """
        return SentenceRoles(self._leads | self._lexical.find_repetitions(question), self._lists_parts)

    def _find_lead_ins(self) -> NDArray[np.bool_]:
        """Return which sentences announce what follows by a colon at their end."""
        quotes = [quote for source in self._sources for quote in source.quotes]
        return np.array([quote.text.rstrip().endswith((":", "\uff1a")) for quote in quotes], dtype=np.bool_)

    def _find_kinds(self, kinds: Collection[BlockKind]) -> NDArray[np.bool_]:
        quotes = [quote for source in self._sources for quote in source.quotes]
        return np.array([quote.block.kind in kinds for quote in quotes], dtype=np.bool_)

    @cached_property
    def _semantic(self) -> SemanticIndex | None:
        if self._encode is None:
            return None
        return SemanticIndex(self._encode, self._sources, self._lexical.paragraph_ids)
