"""Exact attention over every row of a library, in memory independent of their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np

from keywise.library.arrow_arrays import Array, arrow_to_vectors, read_addresses, read_values
from keywise.library.key_maps import KeyMaps
from keywise.library.partials import LibraryPartial, attend_rows, merge_partials
from keywise.library.query import Query
from keywise.library.schema import KEY

SCANNED_ROWS: Final = 8192
"""Rows of a batch that Lance decodes."""

MAX_CALL_WEIGHTS: Final = 2**22
"""Rows times queries of one kernel call, whose weights are in memory together: 16 MB in float32."""

_FRAGMENT_SHIFT: Final = 32
"""A row address is the fragment's id, shifted by this, plus the row's offset in the fragment."""


def attend_fragments(
    dataset: Any, fragments: Sequence[Any], query: Query, key_maps: KeyMaps
) -> Iterator[LibraryPartial]:
    """Compute attention over the rows of each fragment.

    Parameters
    ----------
    dataset
        The library's Lance dataset.
    fragments
        Fragments of this dataset.
    query
        The query.
    key_maps
        Maps the keys of local files; the keys of other files are decoded by Lance.

    Yields
    ------
    LibraryPartial
        One per fragment, in order.
    """
    for fragment in fragments:
        pages = key_maps.map_fragment(dataset, fragment)
        partials = _attend_decoded(fragment, query) if pages is None else _attend_mapped(fragment, pages, query)
        yield merge_partials(partials, query)


def _attend_decoded(fragment: Any, query: Query) -> Iterator[LibraryPartial]:
    """Yield attention over each batch of rows that Lance decodes."""
    scanner = fragment.scanner(
        columns=query.columns, filter=query.where, with_row_address=True, batch_size=SCANNED_ROWS
    )
    for batch in scanner.to_batches():
        if not len(batch):
            continue
        keys = arrow_to_vectors(batch.column(KEY))
        values = read_values(batch, query, keys)
        yield attend_rows(query, [keys], None if values is None else [values], read_addresses(batch))


def _attend_mapped(fragment: Any, pages: Sequence[Array], query: Query) -> Iterator[LibraryPartial]:
    """Yield attention over slices of mapped keys; deleted and hidden rows are masked."""
    allowed, values = _read_visible(fragment, query)
    max_rows = max(MAX_CALL_WEIGHTS // max(len(query.queries), 1), 1)
    for first, keys in _slice_pages(pages, max_rows):
        bounds = first + np.cumsum([0, *map(len, keys)])
        group_allowed = None if allowed is None else allowed[first : bounds[-1]]
        if group_allowed is not None and not group_allowed.any():
            continue
        group_values: Sequence[Array] | None = None
        if values is not None:
            group_values = [values[start:end] for start, end in pairwise(bounds)]
        elif query.values == KEY:
            group_values = keys
        address = (fragment.fragment_id << _FRAGMENT_SHIFT) + first
        yield attend_rows(query, keys, group_values, address, group_allowed)


def _read_visible(fragment: Any, query: Query) -> tuple[Array | None, Array | None]:
    """Return a mask of a fragment's visible rows, and the values of these rows.

    The mask is None if all are visible; the values are None if there are none or if they are the keys.
    """
    has_value_column = bool(query.value_columns)
    if not (has_value_column or query.where or fragment.num_deletions):
        return None, None
    row_count = fragment.physical_rows
    allowed = np.zeros(row_count, bool)
    values = np.zeros((row_count, query.value_dim)) if has_value_column else None
    scanner = fragment.scanner(columns=query.value_columns, filter=query.where, with_row_address=True)
    for batch in scanner.to_batches():
        offsets = read_addresses(batch) & ((1 << _FRAGMENT_SHIFT) - 1)
        allowed[offsets] = True
        if values is not None:
            values[offsets] = read_values(batch, query, None)
    return allowed, values


def _slice_pages(pages: Sequence[Array], max_rows: int) -> Iterator[tuple[int, list[Array]]]:
    """Yield groups of pages of at most `max_rows`, each after its first row.

    Larger pages are split.
    """
    first = 0
    group_rows = 0
    group: list[Array] = []
    for page in pages:
        for start in range(0, len(page), max_rows):
            chunk = page[start : start + max_rows]
            if group and group_rows + len(chunk) > max_rows:
                yield first, group
                first += group_rows
                group_rows = 0
                group = []
            group.append(chunk)
            group_rows += len(chunk)
    if group:
        yield first, group
