"""Attention over candidates from Lance's vector index, with a bound on their weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from keywise.attention.partial import Partial, merge
from keywise.errors import OptionError
from keywise.library.arrow_arrays import Array, arrow_to_vectors, read_addresses, read_values
from keywise.library.lance_errors import convert_lance_errors
from keywise.library.partials import LibraryPartial, attend_rows, merge_partials, stack_partials
from keywise.library.query import Query
from keywise.library.schema import KEY


def attend_candidates(dataset: Any, query: Query, candidates: int) -> tuple[LibraryPartial, Array]:
    """Compute attention over each query's candidates, and their least share of the weight.

    The bound assumes that every other row scores as much as the candidate with the lowest score. It fails only if the
    index missed a row that scores more.

    Parameters
    ----------
    dataset
        The library's Lance dataset.
    query
        The query.
    candidates
        Number of candidates per query.

    Returns
    -------
    LibraryPartial
        Attention over the candidates.
    array [Q]
        The least share of all weight that the candidates have.

    Raises
    ------
    OptionError
        There is no index over the keys.
    """
    if not any(KEY in index.field_names for index in dataset.describe_indices()):
        raise OptionError(
            "approximate", "must be False without an index over the keys", remedy="create one with Library.index()"
        )
    with convert_lance_errors(query.path, "cannot be read", where=query.where):
        row_count = dataset.count_rows(query.filter)
    results = [_attend_one(dataset, query.select(index), candidates, row_count) for index in range(len(query.queries))]
    return stack_partials([partial for partial, _ in results]), np.concatenate([share for _, share in results])


def _attend_one(dataset: Any, query: Query, candidates: int, row_count: int) -> tuple[LibraryPartial, Array]:
    nearest = {"column": KEY, "q": query.queries[0], "k": candidates, "metric": "dot"}
    with convert_lance_errors(query.path, "cannot be read", where=query.where):
        table = dataset.scanner(
            columns=query.columns, filter=query.filter, prefilter=True, nearest=nearest, with_row_address=True
        ).to_table()
    if not len(table):
        return merge_partials([], query), np.ones(1, np.float32)
    keys = arrow_to_vectors(table.column(KEY))
    values = read_values(table, query, keys)
    result = attend_rows(query, [keys], None if values is None else [values], read_addresses(table))
    lowest_score = (keys.astype(np.float32) @ query.queries[0].astype(np.float32)).min() / query.temperature
    other_rows = Partial(
        np.full_like(result.partial.running_max, lowest_score),
        np.full_like(result.partial.running_sum, max(row_count - len(keys), 0)),
        np.zeros_like(result.partial.values),
    )
    return result, result.partial.share_of(merge(result.partial, other_rows))[0, 0]
