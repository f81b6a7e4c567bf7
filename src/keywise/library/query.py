"""A checked query of a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.library.schema import KEY
from keywise.library.where import check_where, enclose
from keywise.library.word_scores import RowBias, score_words
from keywise.util.checks import check_float, check_int


@dataclass(frozen=True, eq=False)
class Query:
    """Queries and options that are applied to every row.

    Attributes
    ----------
    queries : [Q, D]
        In the dtype of the keys.
    temperature
        Scores are divided by it.
    top
        Number of heaviest rows to report per query.
    values
        Column of the values; None for no values.
    value_dim
        Width of the values; 0 without values.
    where
        Lance's SQL; rows for which it does not hold are hidden.
    path
        The library, for messages.
    bias
        Per query what is added to the scores of some rows; None for no such rows.
    """

    queries: NDArray[Any]
    temperature: float
    top: int
    values: str | None
    value_dim: int
    where: str | None
    path: str
    bias: tuple[RowBias | None, ...] | None = None

    @property
    def filter(self) -> str | None:
        """The SQL as Lance evaluates it."""
        return None if self.where is None else enclose(self.where)

    @property
    def value_columns(self) -> list[str]:
        """Columns that have to be read besides the key."""
        if self.values is None or self.values == KEY:
            return []
        return [self.values]

    @property
    def columns(self) -> list[str]:
        """Columns that have to be read."""
        return [KEY, *self.value_columns]

    def make_bias(self, addresses: NDArray[Any] | int, rows: int) -> NDArray[Any] | None:
        """Return what is added to the scores [Q, N] of some rows; None for nothing.

        Parameters
        ----------
        addresses
            Ascending addresses of the rows, or the address of the first of consecutive rows.
        rows
            Number of the rows.
        """
        if self.bias is None:
            return None
        bias = np.zeros((len(self.bias), rows), np.float32)
        for number, each in enumerate(self.bias):
            if each is None or not rows:
                continue
            if isinstance(addresses, int):
                places = each.addresses - addresses
                found = (places >= 0) & (places < rows)
            else:
                places = np.minimum(np.searchsorted(addresses, each.addresses), rows - 1)
                found = addresses[places] == each.addresses
            bias[number, places[found]] = each.nats[found]
        return bias

    def select(self, index: int) -> Query:
        """Return one of the queries with the same options."""
        return replace(self, queries=self.queries[index : index + 1])


def make_query(
    dataset: Any,
    queries: NDArray[Any],
    *,
    temperature: float,
    where: str | None,
    top: int,
    values: str | None,
    path: str,
    words: Sequence[str | None] | None = None,
) -> Query:
    """Return a query whose options have been checked against a dataset.

    Parameters
    ----------
    dataset
        The library's Lance dataset.
    queries : [Q, D]
        Checked already, in the dtype of the keys.
    temperature, where, top, values, path
        See `Query`.
    words
        Per query a text whose words raise the scores of the rows that have them, or None.

    Raises
    ------
    OptionError
        An option cannot be used.
    DtypeError
        An option has another type, or `values` is not a numeric column.
    """
    if check_float("temperature", temperature) <= 0:
        raise OptionError("temperature", "must be greater than 0", got=temperature)
    checked_where = None if where is None else check_where(dataset, where, path)
    query = Query(
        queries=queries,
        temperature=float(temperature),
        top=check_int("top", top, minimum=0),
        values=values,
        value_dim=0 if values is None else _read_value_dim(dataset.schema, values),
        where=checked_where,
        path=path,
    )
    if words is None:
        return query
    return replace(query, bias=_score_words(dataset, query, words))


def _score_words(dataset: Any, query: Query, words: Sequence[str | None]) -> tuple[RowBias | None, ...]:
    if len(words) != len(query.queries):
        raise ShapeError("words", f"must be one text or None per query: {len(query.queries)}, got {len(words)}")
    texts = [None if text is None else check_text("words", text) for text in words]
    return tuple(None if text is None else score_words(query.path, dataset, text, query.filter) for text in texts)


def check_text(name: str, text: str) -> str:
    """Return a text without the white space around it, or raise.

    Parameters
    ----------
    name
        The argument's name.
    text
        Its value.

    Raises
    ------
    DtypeError
        The value is not a text.
    OptionError
        The text is empty.
    """
    if not isinstance(text, str):
        raise DtypeError(name, "must be a text", got=text)
    if not text.strip():
        raise OptionError(name, "must not be empty", got=text)
    return text.strip()


def _read_value_dim(schema: pa.Schema, values: str) -> int:
    if values not in schema.names:
        raise OptionError("values", f"must be one of the columns {', '.join(schema.names)}", got=values)
    dtype = schema.field(values).type
    width = 1
    if pa.types.is_fixed_size_list(dtype):
        width = int(dtype.list_size)
        dtype = dtype.value_type
    if not (pa.types.is_floating(dtype) or pa.types.is_integer(dtype)):
        raise DtypeError("values", f"must be a numeric column, got {values!r} of type {dtype}")
    return width
