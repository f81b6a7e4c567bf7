"""The sizes of one call."""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """Sizes of one call: (B, Hq, Hkv, Q, N, D, Dv)."""

    batch: int
    query_heads: int
    key_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int

    @property
    def scores(self) -> tuple[int, int, int, int]:
        """Shape of the scores: (B, Hq, Q, N)."""
        return self.batch, self.query_heads, self.queries, self.keys
