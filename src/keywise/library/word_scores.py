"""Scores of a library's rows for the words of a question, by BM25."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from lance.query import MatchQuery
from numpy.typing import NDArray

from keywise.library.lance_errors import convert_lance_errors
from keywise.library.schema import TEXT

WORD_CANDIDATES: Final = 1000
"""The words of a question count for so many sentences, those with the highest BM25 scores."""

BM25_WEIGHT: Final = 0.4
"""Nats that a sentence's score grows by per unit of BM25; docs/library.md says how it was chosen."""


@dataclass(frozen=True, eq=False)
class RowBias:
    """What is added to the scores of some rows.

    Attributes
    ----------
    addresses : [N] int64
        Addresses of the rows, ascending.
    nats : [N] float32
        What is added, after the division by the temperature.
    """

    addresses: NDArray[Any]
    nats: NDArray[Any]

    def select(self, addresses: NDArray[Any]) -> NDArray[Any]:
        """Return what is added to the scores of other rows, 0 for those that are not among them.

        Parameters
        ----------
        addresses : [M] int64
            The rows.

        Examples
        --------
        >>> RowBias(np.array([3, 7]), np.float32([0.5, 2.0])).select(np.array([7, 8])).tolist()
        [2.0, 0.0]
        """
        if not len(self.addresses):
            return np.zeros(len(addresses), np.float32)
        places = np.minimum(np.searchsorted(self.addresses, addresses), len(self.addresses) - 1)
        return np.where(self.addresses[places] == addresses, self.nats[places], np.float32(0))


def score_words(path: str, dataset: Any, text: str, where: str | None) -> RowBias:
    """Return the BM25 scores of the sentences with words of a text.

    Parameters
    ----------
    path
        The library, for messages.
    dataset
        Its Lance dataset, whose files are verified.
    text
        A question.
    where
        Lance's SQL in parentheses, checked; None for all rows.

    Returns
    -------
    RowBias
        `BM25_WEIGHT` times the highest `WORD_CANDIDATES` scores.

    Raises
    ------
    OptionError
        `where` fails on a row.
    FormatError
        The index cannot be read.
    """
    text = text.encode(errors="replace").decode()  # a surrogate is part of no word
    with convert_lance_errors(path, "cannot be read", where=where):
        table = dataset.scanner(
            columns=["_score"],
            full_text_query=MatchQuery(text, TEXT),
            filter=where,
            prefilter=True,
            limit=WORD_CANDIDATES,
            with_row_address=True,
        ).to_table()
    addresses = table["_rowaddr"].to_numpy().astype(np.int64)
    order = np.argsort(addresses)
    scores = table["_score"].to_numpy().astype(np.float32)
    return RowBias(addresses[order], BM25_WEIGHT * scores[order])
