"""Exact attention over every row of a library, fragment by fragment; memory stays flat however many rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np

from keywise.errors import OptionError
from keywise.library.mapped import MappedKeys
from keywise.library.part import MOST_WEIGHTS, Array, Part, merge_parts
from keywise.library.query import Query
from keywise.library.schema import KEY, numbers_of

ADDRESS = "_rowaddr"
SCANNED_ROWS = 8192
"""Rows of a batch that Lance decodes."""


def attend_fragments(dataset: Any, fragments: Sequence[Any], query: Query, maps: MappedKeys) -> Iterator[Part]:
    """Yield the part of each fragment, in order."""
    for fragment in fragments:
        pages = maps.of(dataset, fragment)
        parts = _scanned(fragment, query) if pages is None else _in_place(fragment, pages, query)
        yield merged(parts, query)


def merged(parts: Iterable[Part], query: Query) -> Part:
    """Merge parts, given in row order."""
    found = iter(parts)
    return reduce(merge_parts, found, next(found, None) or query.empty())


def _scanned(fragment: Any, query: Query) -> Iterator[Part]:
    batches = fragment.scanner(
        columns=query.columns, filter=query.where, with_row_address=True, batch_size=SCANNED_ROWS
    ).to_batches()
    for batch in batches:
        if len(batch):
            keys = numbers_of(batch.column(KEY))
            values = values_of(batch, query, keys)
            yield query.over([keys], None if values is None else [values], addresses_of(batch))


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
    for first, keys in _runs(pages, max(MOST_WEIGHTS // max(len(query.queries), 1), 1)):
        ends = first + np.cumsum([0, *map(len, keys)])
        seen = None if allowed is None else allowed[first : ends[-1]]
        if seen is not None and not seen.any():
            continue
        of_keys = keys if query.values == KEY else None
        of_rows = of_keys if values is None else [values[a:b] for a, b in pairwise(ends)]
        yield query.over(keys, of_rows, (fragment.fragment_id << 32) + first, seen)


def _runs(pages: Sequence[Array], most_rows: int) -> Iterator[tuple[int, list[Array]]]:
    """Cut pages into runs of so many rows at most, each a list of arrays, and give the first row of each."""
    first, rows, run = 0, 0, list[Array]()
    for page in pages:
        for start in range(0, len(page), most_rows):
            piece = page[start : start + most_rows]
            if run and rows + len(piece) > most_rows:
                yield first, run
                first, rows, run = first + rows, 0, []
            run.append(piece)
            rows += len(piece)
    if run:
        yield first, run


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
