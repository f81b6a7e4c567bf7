"""Attention to candidates alone, which Lance's vector index chooses, with a lower bound of the mass that they have."""

from __future__ import annotations

from typing import Any

import numpy as np

from keywise.attention.partial import Partial, merge
from keywise.errors import OptionError
from keywise.library.part import Array, Part
from keywise.library.query import Query
from keywise.library.scan import addresses_of, values_of
from keywise.library.schema import KEY, numbers_of


def attend_candidates(dataset: Any, query: Query, candidates: int) -> tuple[Part, Array]:
    """Give the part of the candidates, and the least share [Q] that they have of all rows.

    Every row that is no candidate is taken to score as much as the last candidate. What the candidates have in that
    case is what they have at least, unless the index missed a row that scores more.

    Raises
    ------
    OptionError
        When there is no index over the keys.
    """
    if not any(KEY in index.field_names for index in dataset.describe_indices()):
        raise OptionError("approximate=True needs a vector index over the keys; make it with Library.index()")
    rows = dataset.count_rows(query.where)
    found = [_one(dataset, query.only(number), candidates, rows) for number in range(len(query.queries))]
    return Part.stacked([part for part, _ in found]), np.concatenate([share for _, share in found])


def _one(dataset: Any, query: Query, candidates: int, rows: int) -> tuple[Part, Array]:
    nearest = {"column": KEY, "q": query.queries[0], "k": candidates, "metric": "dot"}
    table = dataset.scanner(
        columns=query.columns, filter=query.where, prefilter=True, nearest=nearest, with_row_address=True
    ).to_table()
    if not len(table):
        return query.empty(), np.ones(1, np.float32)
    keys = numbers_of(table.column(KEY))
    values = values_of(table, query, keys)
    part = query.over([keys], None if values is None else [values], addresses_of(table))
    last = (keys.astype(np.float32) @ query.queries[0].astype(np.float32)).min() / query.temperature
    rest = (
        np.full_like(part.partial.running_max, last),
        np.full_like(part.partial.running_sum, max(rows - len(keys), 0)),
    )
    whole = merge(part.partial, Partial(*rest, np.zeros_like(part.partial.values)))
    return part, part.partial.share_of(whole)[0, 0]
