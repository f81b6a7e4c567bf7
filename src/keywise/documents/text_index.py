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

    @property
    def sentences(self) -> NDArray[np.intp]:
        """The numbers of all sentences."""
        return np.arange(len(self._leads))

    def score(self, question: str, sentences: NDArray[np.intp] | None = None) -> TextScores:
        """Return the scores of sentences for a question: float64 [sentences] each.

        Parameters
        ----------
        question
            The question.
        sentences
            int array, the numbers of the sentences among which shares sum to 1; None for all. Words are as rare as
            they are in all sentences.
        """
        if sentences is None:
            sentences = self.sentences
        lexical = self._lexical.score_sentences(question)[sentences]
        paragraph_lexical = self._lexical.score_paragraphs(question)[sentences]
        # The share of a paragraph counts once.
        _, first_of_paragraph = np.unique(self._lexical.paragraph_ids[sentences], return_index=True)
        scores = {
            "lexical": lexical / (lexical.sum() or 1.0),
            "paragraph_lexical": paragraph_lexical / (paragraph_lexical[first_of_paragraph].sum() or 1.0),
        }
        if self._semantic is not None:
            scores["semantic"], scores["paragraph_semantic"] = self._semantic.score(question, sentences)
        return scores

    def score_words(self, question: str) -> NDArray[np.float64]:
        """Return how well the words of each sentence and its paragraph match a question: float64 [sentences]."""
        return self._lexical.score_sentences(question) + self._lexical.score_paragraphs(question)

    def find_roles(self, question: str, sentences: NDArray[np.intp] | None = None) -> SentenceRoles:
        """Return which sentences do not answer this question by themselves.

        A page of questions and answers quotes the question; a heading, or a colon, announces what follows.

        Parameters
        ----------
        question
            The question.
        sentences
            As for `score`.

        Examples
        --------
        >>> from keywise.documents import Source
        >>> index = TextIndex([Source("note", "Q: Who kept the lamp? A: Ann did.")], None)
        >>> index.find_roles("Who kept the old lamp?").leads_on.tolist()
        [True, False]
        """
        if sentences is None:
            sentences = self.sentences
        leads_on = self._leads | self._lexical.find_repetitions(question)
        return SentenceRoles(leads_on[sentences], self._lists_parts[sentences])

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
