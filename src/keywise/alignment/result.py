"""The alignment of two texts: weights, scores and links between their words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keywise.alignment.heads import AlignmentHeads
from keywise.alignment.links import Link, Matrix, format_pharaoh
from keywise.alignment.report import make_matrix, make_table, write_page

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False)
class Alignment:
    """Which source words each target word attends to.

    Attributes
    ----------
    source, target : tuple of str
        The words.
    weights : float32 array [target words, source words]
        Mean attention of the heads, summed over the tokens of a source word and averaged over those of a target word.
    scores : float32 array [target words, source words]
        What links were selected by; with tuned heads the probability of a link.
    links : tuple of (int, int)
        Pairs of a source word and a target word that belong together, both from 0, in order.
    null : float32 array [target words]
        The mean attention that went to no source word.
    heads : AlignmentHeads
        The heads that were read.
    dropped_source, dropped_target : tuple of int
        Words without any token: the tokenizer drops them, and they have no links.

    Examples
    --------
    >>> from keywise.alignment import align
    >>> alignment = align(model, tokenizer, "the red house", "la maison rouge")  # doctest: +SKIP
    >>> alignment.pharaoh()  # doctest: +SKIP
    '0-0 1-2 2-1'
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    weights: Matrix
    scores: Matrix
    links: tuple[Link, ...]
    null: NDArray[np.float32]
    heads: AlignmentHeads
    dropped_source: tuple[int, ...] = ()
    dropped_target: tuple[int, ...] = ()

    @property
    def unaligned_source(self) -> tuple[int, ...]:
        """Source words without a link."""
        linked = {source for source, _ in self.links}
        return tuple(number for number in range(len(self.source)) if number not in linked)

    @property
    def unaligned_target(self) -> tuple[int, ...]:
        """Target words without a link."""
        linked = {target for _, target in self.links}
        return tuple(number for number in range(len(self.target)) if number not in linked)

    def __repr__(self) -> str:
        tuned = f"tuned on {self.heads.tuned_on}" if self.heads.is_tuned else "untuned"
        return f"Alignment({len(self.source)} to {len(self.target)} words, {len(self.links)} links, heads {tuned})"

    def pharaoh(self) -> str:
        """Return the links in Pharaoh's format: ``i-j`` separated by spaces, source word first, both from 0.

        Examples
        --------
        >>> alignment.pharaoh()  # doctest: +SKIP
        '0-0 1-2 2-1'
        """
        return format_pharaoh(self.links)

    def to_json(self) -> dict[str, Any]:
        """Return the alignment as plain values for ``json.dumps``.

        Examples
        --------
        >>> alignment.to_json()["links"]  # doctest: +SKIP
        [[0, 0], [1, 2], [2, 1]]
        """
        return {
            "source": list(self.source),
            "target": list(self.target),
            "links": [list(link) for link in self.links],
            "unaligned_source": list(self.unaligned_source),
            "unaligned_target": list(self.unaligned_target),
            "scores": [[round(float(score), 4) for score in row] for row in self.scores],
            "weights": [[round(float(weight), 4) for weight in row] for row in self.weights],
            "null": [round(float(weight), 4) for weight in self.null],
            "heads": [[each.layer, each.head, each.row] for each in self.heads.forward],
            "tuned_on": self.heads.tuned_on,
        }

    def table(self) -> RenderableType:
        """Return a table with one line a target word, for ``rich.print``.

        Examples
        --------
        >>> rich.print(alignment.table())  # doctest: +SKIP
        """
        return make_table(self)

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that draws the words, their links and their scores.

        Parameters
        ----------
        path : path
            The file to write or replace.

        Raises
        ------
        FormatError
            The file cannot be written.

        Examples
        --------
        >>> alignment.write_html("alignment.html")  # doctest: +SKIP
        """
        write_page([self], path)

    def _repr_html_(self) -> str:
        return make_matrix(self)
