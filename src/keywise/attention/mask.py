"""Which keys a query may see: one frozen record whose fields combine by AND."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keywise.errors import DtypeError
from keywise.util.checks import check_bool, check_int


@dataclass(frozen=True, eq=False)
class Mask:
    """Describe which keys each query may attend to, aligned to the lower right.

    Query ``i`` of batch item ``b`` is at key position ``lengths[b] - Q + i``. Hidden keys and values never affect a
    result, not even as NaN.

    Parameters
    ----------
    causal : bool
        A query sees no key after its own position.
    window : (int or None, int or None), optional
        Keys visible to the left and to the right of the query's own position; None is unlimited on that side.
    lengths : int array [B], optional
        Keys at or after this position are hidden (right padding). Default: the number of keys. More than that
        moves the queries behind the last key.
    starts : int array [B], optional
        Keys before this position are hidden (left padding). Default: 0.
    keep_first : int
        Number of keys, counted from ``starts``, that the window does not hide.
    documents : int array [B, N], optional
        Ids of packed documents, one per position; more than N are allowed. A query sees only keys of the document at
        its own position.
    allowed : bool array, optional
        Broadcasts to [B, Hq, Q, N]; True where the query may attend.

    Raises
    ------
    DtypeError, OptionError
        A field has the wrong type or is out of range.

    Examples
    --------
    >>> import keywise as kw
    >>> kw.Mask(causal=True, window=(127, None)).window
    (127, None)
    """

    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    lengths: Any = None
    starts: Any = None
    keep_first: int = 0
    documents: Any = None
    allowed: Any = None

    def __post_init__(self) -> None:
        check_bool("mask.causal", self.causal)
        check_int("mask.keep_first", self.keep_first, minimum=0, maximum=None)
        if self.window is not None:
            self._check_window()

    def _check_window(self) -> None:
        if not isinstance(self.window, tuple) or len(self.window) != 2:
            raise DtypeError("mask.window", "must be a pair (left, right), None for unlimited", got=self.window)
        for side in self.window:
            if side is not None:
                check_int("mask.window", side, minimum=0, maximum=None)
