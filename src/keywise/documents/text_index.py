"""Scores of sentences from their text alone, without attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.blocks import BlockKind
from keywise.documents.context import find_contexts, find_leads, number_tables
from keywise.documents.evidence import SentenceRoles
from keywise.documents.lexical import LexicalIndex
from keywise.documents.semantic import Encode, SemanticIndex

if TYPE_CHECKING:
    from keywise.documents.files import Source

_PART_KINDS: Final = frozenset({BlockKind.TABLE_HEADER, BlockKind.CONTENTS_LINE})

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
        self._contexts = find_contexts(sources)
        self._lexical = LexicalIndex(sources, self._contexts)
        quotes = [quote for source in sources for quote in source.quotes]
        self._texts = [quote.text for quote in quotes]
        kinds = [quote.block.kind for quote in quotes]
        lists_parts = np.array([kind in _PART_KINDS for kind in kinds], dtype=np.bool_)
        self._roles = SentenceRoles(find_leads(quotes), lists_parts, number_tables(sources))

    @property
    def sentences(self) -> NDArray[np.intp]:
        """The numbers of all sentences."""
        return np.arange(len(self._contexts))

    def get_text(self, sentence: int) -> str:
        """Return a sentence by its number."""
        return self._texts[sentence]

    def get_text_in_context(self, sentence: int) -> str:
        """Return a sentence by its number, after its headings or the line that announces it."""
        return " ".join(part for part in (self._contexts[sentence], self._texts[sentence]) if part)

    def score(self, question: str, sentences: NDArray[np.intp] | None = None) -> TextScores:
        """Return the scores of sentences for a question: float64 [sentences] each.

        Parameters
        ----------
        question
            The question.
        sentences
            int array, the numbers of the sentences; None for all.
        """
        if sentences is None:
            sentences = self.sentences
        scores = {
            "lexical": self._lexical.score_sentences(question)[sentences],
            "paragraph_lexical": self._lexical.score_paragraphs(question)[sentences],
        }
        if self._semantic is not None:
            scores["semantic"], scores["paragraph_semantic"] = self._semantic.score(question, sentences)
        return scores

    def score_words(self, question: str) -> NDArray[np.float64]:
        """Return how well the words of each sentence and its paragraph match a question: float64 [sentences]."""
        return self._lexical.score_sentences(question) + self._lexical.score_paragraphs(question)

    def find_roles(self, sentences: NDArray[np.intp] | None = None) -> SentenceRoles:
        """Return which sentences do not answer by themselves, and which are rows of a table.

        Parameters
        ----------
        sentences
            As for `score`.

        Examples
        --------
        >>> from keywise.documents import Source
        >>> index = TextIndex([Source("note", "Q: Who kept the lamp? A: Ann did.")], None)
        >>> index.find_roles().leads_on.tolist()
        [True, False]
        """
        chosen = self.sentences if sentences is None else sentences
        roles = self._roles
        return SentenceRoles(roles.leads_on[chosen], roles.lists_parts[chosen], roles.tables[chosen])

    @cached_property
    def _semantic(self) -> SemanticIndex | None:
        if self._encode is None:
            return None
        return SemanticIndex(self._encode, self._sources, self._contexts, self._lexical.paragraph_ids)
