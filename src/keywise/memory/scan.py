"""Exact attention over every row of a library, fragment by fragment; memory stays flat however many rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keywise.errors import OptionError
from keywise.memory.mapped import MappedKeys
from keywise.memory.part import MOST_ROWS, Part, attend_rows, merge_parts
from keywise.memory.schema import KEY, numbers_of

Array = NDArray[Any]

ADDRESS = "_rowaddr"
SCANNED_ROWS = 8192
"""Rows of a batch that Lance decodes."""


@dataclass(frozen=True, eq=False)
class Query:
    """What is asked of every row.

    Attributes
    ----------
    queries : [Q, D]
        In the dtype of the keys.
    temperature
        Scores are divided by it.
    top
        Number of heaviest rows to name per query.
    values
        The column of values; None for no values.
    value_dim
        Their width.
    where
        Lance's SQL: rows for which it does not hold are hidden.
    """

    queries: Array
    temperature: float
    top: int
    values: str | None
    value_dim: int
    where: str | None

    @property
    def columns(self) -> list[str]:
        """The columns that it takes: the key, and values if they are others."""
        return [KEY] if self.values in {None, KEY} else [KEY, str(self.values)]

    def only(self, number: int) -> Query:
        """Give one of the queries alone."""
        return replace(self, queries=self.queries[number : number + 1])

    def empty(self) -> Part:
        """Give the part without rows."""
        return Part.empty(len(self.queries), self.value_dim, self.top)

    def over(self, keys: Array, values: Array | None, rows: Array, allowed: Array | None = None) -> Part:
        """Attend to some rows."""
        return attend_rows(
            self.queries, keys, values, rows, temperature=self.temperature, top=self.top, allowed=allowed
        )


def attend_fragments(dataset: Any, fragments: Sequence[Any], query: Query, maps: MappedKeys) -> Iterator[Part]:
    """Yield the part of each fragment, in order."""
    for fragment in fragments:
        pages = maps.of(dataset, fragment)
        parts = _scanned(fragment, query) if pages is None else _in_place(fragment, pages, query)
        yield merged(parts, query)


def merged(parts: Iterable[Part], query: Query) -> Part:
    """Merge parts, given in row order."""
    return reduce(merge_parts, parts, query.empty())


def _scanned(fragment: Any, query: Query) -> Iterator[Part]:
    batches = fragment.scanner(
        columns=query.columns, filter=query.where, with_row_address=True, batch_size=SCANNED_ROWS
    ).to_batches()
    for batch in batches:
        if len(batch):
            keys = numbers_of(batch.column(KEY))
            yield query.over(keys, values_of(batch, query, keys), addresses_of(batch))


def _in_place(fragment: Any, pages: Sequence[Array], query: Query) -> Iterator[Part]:
    """Attend to mapped keys, but for rows that are deleted or hidden; values of another column come from Lance."""
    foreign = query.values not in {None, KEY}
    picks = bool(foreign or query.where or fragment.num_deletions)
    size = fragment.physical_rows
    allowed = np.zeros(size, bool) if picks else None
    values = np.zeros((size, query.value_dim)) if foreign else None
    if allowed is not None:
        for batch in fragment.scanner(
            columns=query.columns[1:], filter=query.where, with_row_address=True
        ).to_batches():
            here = addresses_of(batch) & 0xFFFFFFFF
            allowed[here] = True
            if values is not None:
                values[here] = values_of(batch, query, None)
    first = 0
    for page in pages:
        for start in range(0, len(page), MOST_ROWS):
            keys = page[start : start + MOST_ROWS]
            these = slice(first, first + len(keys))
            first += len(keys)
            seen = None if allowed is None else allowed[these]
            if seen is not None and not seen.any():
                continue
            of_keys = keys if query.values == KEY else None
            addresses = (fragment.fragment_id << 32) + np.arange(these.start, these.stop, dtype=np.int64)
            yield query.over(keys, of_keys if values is None else values[these], addresses, seen)


def values_of(batch: Any, query: Query, keys: Array | None) -> Array | None:
    """Give the values [N, Dv] of rows that Lance read; `keys` are theirs, where values may be the keys."""
    if query.values is None or query.values == KEY:
        return None if query.values is None else keys
    values = numbers_of(batch.column(query.values)).astype(np.float64)
    if not np.isfinite(values).all():
        raise OptionError(f"values={query.values!r} holds NaN or infinity; leave such rows out with where=")
    return values


def addresses_of(batch: Any) -> Array:
    """Give the addresses of rows that Lance read."""
    return np.asarray(batch.column(ADDRESS).to_numpy(), dtype=np.int64)
