"""A checked query of a library."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from keywise.errors import DtypeError, OptionError
from keywise.library.schema import KEY
from keywise.library.where import check_where, enclose
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
    """

    queries: NDArray[Any]
    temperature: float
    top: int
    values: str | None
    value_dim: int
    where: str | None
    path: str

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

    Raises
    ------
    OptionError
        An option cannot be used.
    DtypeError
        An option has another type, or `values` is not a numeric column.
    """
    if check_float("temperature", temperature) <= 0:
        raise OptionError("temperature", "must be greater than 0", got=temperature)
    return Query(
        queries=queries,
        temperature=float(temperature),
        top=check_int("top", top, minimum=0),
        values=values,
        value_dim=0 if values is None else _read_value_dim(dataset.schema, values),
        where=None if where is None else check_where(dataset, where),
        path=path,
    )


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
