"""What is extracted from a file."""

from __future__ import annotations

from dataclasses import dataclass

from keywise.documents.blocks import Block, Quote


@dataclass(frozen=True)
class Extracted:
    """The text of a file and its blocks.

    Attributes
    ----------
    text
        The text that the blocks' spans count in.
    blocks
        The blocks, in reading order.
    warnings
        What the user should know, such as pages without text.
    quotes
        The sentences of the blocks; None if they were not asked for.

    Examples
    --------
    >>> Extracted("It is dry.", ()).warnings
    ()
    """

    text: str
    blocks: tuple[Block, ...]
    warnings: tuple[str, ...] = ()
    quotes: tuple[Quote, ...] | None = None


class UnreadableFileError(Exception):
    """Report a file that cannot be read for a reason that its user can understand."""
