"""Exact attention over every row of a library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np

from keywise.library.arrow_arrays import Array, arrow_to_vectors, read_addresses, read_values
from keywise.library.key_pages import KeyPage, KeyPages
from keywise.library.lance_errors import convert_lance_errors
from keywise.library.partials import LibraryPartial, attend_rows, merge_partials
from keywise.library.query import Query
from keywise.library.schema import KEY
from keywise.util.progress import Progress

SCANNED_ROWS: Final = 8192
"""Rows of a batch that Lance decodes."""

MAX_CALL_WEIGHTS: Final = 2**22
"""Rows times queries of one kernel call, whose weights are in memory together: 16 MB in float32."""

MAX_CALL_BYTES: Final = 2**28
"""Bytes of the keys of one kernel call: keys that are not kept are in memory together for one call."""

_FRAGMENT_SHIFT: Final = 32
"""A row address is the fragment's id, shifted by this, plus the row's offset in the fragment."""


def attend_fragments(
    dataset: Any,
    fragments: Sequence[Any],
    query: Query,
    key_pages: KeyPages,
    progress: Progress | None = None,
) -> Iterator[LibraryPartial]:
    """Compute attention over the rows of each fragment.

    Parameters
    ----------
    dataset
        The library's Lance dataset, whose files are verified.
    fragments
        Fragments of this dataset.
    query
        The query.
    key_pages
        Reads the keys of local files; the keys of other files are decoded by Lance.
    progress
        Called with the number of rows attended to and of all rows.

    Yields
    ------
    LibraryPartial
        One per fragment, in order.

    Raises
    ------
    OptionError
        `where` fails on a row.
    FormatError
        A file has changed meanwhile, or cannot be read.
    """
    total_rows = sum(fragment.physical_rows for fragment in fragments) if progress else 0
    done_rows = 0
    for fragment in fragments:
        if progress:
            progress(done_rows, total_rows)
            done_rows += fragment.physical_rows
        pages = key_pages.find_pages(dataset, fragment)
        partials = _attend_decoded(fragment, query) if pages is None else _attend_pages(fragment, pages, query)
        yield merge_partials(partials, query)


def _attend_decoded(fragment: Any, query: Query) -> Iterator[LibraryPartial]:
    """Yield attention over each batch of rows that Lance decodes."""
    for batch in _scan_batches(fragment, query, query.columns):
        if not len(batch):
            continue
        keys = arrow_to_vectors(batch.column(KEY))
        values = read_values(batch, query, keys)
        yield attend_rows(query, [keys], None if values is None else [values], read_addresses(batch))


def _attend_pages(fragment: Any, pages: Sequence[KeyPage], query: Query) -> Iterator[LibraryPartial]:
    """Yield attention over slices of a fragment's keys; deleted and hidden rows are masked."""
    allowed, values = _read_visible(fragment, query)
    row_bytes = query.queries.shape[1] * query.queries.dtype.itemsize
    max_rows = max(min(MAX_CALL_WEIGHTS // max(len(query.queries), 1), MAX_CALL_BYTES // row_bytes), 1)
    for first, slices in _slice_pages(pages, max_rows):
        bounds = first + np.cumsum([0, *(last - start for _, start, last in slices)])
        group_allowed = None if allowed is None else allowed[first : bounds[-1]]
        if group_allowed is not None and not group_allowed.any():
            continue
        keys = [page.read()[start:last] for page, start, last in slices]
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
    if not (has_value_column or query.where is not None or fragment.num_deletions):
        return None, None
    row_count = fragment.physical_rows
    allowed = np.zeros(row_count, bool)
    values = np.zeros((row_count, query.value_dim)) if has_value_column else None
    for batch in _scan_batches(fragment, query, query.value_columns):
        offsets = read_addresses(batch) & ((1 << _FRAGMENT_SHIFT) - 1)
        allowed[offsets] = True
        if values is not None:
            values[offsets] = read_values(batch, query, None)
    return allowed, values


def _scan_batches(fragment: Any, query: Query, columns: list[str]) -> Iterator[Any]:
    """Yield some columns of a fragment's visible rows; Lance's errors are raised as errors of keywise."""
    with convert_lance_errors(query.path, "cannot be read", where=query.where):
        scanner = fragment.scanner(columns=columns, filter=query.filter, with_row_address=True, batch_size=SCANNED_ROWS)
        batches = scanner.to_batches()
    while True:
        with convert_lance_errors(query.path, "cannot be read", where=query.where):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _slice_pages(pages: Sequence[KeyPage], max_rows: int) -> Iterator[tuple[int, list[tuple[KeyPage, int, int]]]]:
    """Yield groups of pages of at most `max_rows`, each after its first row.

    A page is given with its first row and the row behind its last one; larger pages are split.
    """
    first = 0
    group_rows = 0
    group: list[tuple[KeyPage, int, int]] = []
    for page in pages:
        for start in range(0, len(page), max_rows):
            last = min(start + max_rows, len(page))
            if group and group_rows + last - start > max_rows:
                yield first, group
                first += group_rows
                group_rows = 0
                group = []
            group.append((page, start, last))
            group_rows += last - start
    if group:
        yield first, group
