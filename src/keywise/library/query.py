"""What is asked of a library, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from keywise.errors import DtypeError, OptionError
from keywise.library.part import Array, Part, attend_rows
from keywise.library.schema import KEY
from keywise.util.checks import check_float, check_int


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

    def over(
        self,
        keys: Sequence[Array],
        values: Sequence[Array] | None,
        addresses: Array | int,
        allowed: Array | None = None,
    ) -> Part:
        """Attend to some rows; see `attend_rows`."""
        return attend_rows(
            self.queries, keys, values, addresses, temperature=self.temperature, top=self.top, allowed=allowed
        )


def checked_query(
    dataset: Any, queries: Array, *, temperature: float, where: str | None, top: int, values: str | None
) -> Query:
    """Check against a dataset what is asked of it; `queries` are checked already.

    Raises
    ------
    OptionError, DtypeError
        When an argument cannot be used, or values are no numbers.
    """
    if check_float("temperature", temperature) <= 0:
        raise OptionError(f"temperature={temperature}: it is above 0")
    if where is not None:
        _check_where(dataset, where)
    return Query(
        queries=queries,
        temperature=float(temperature),
        top=check_int("top", top, minimum=0),
        values=values,
        value_dim=0 if values is None else _value_dim(dataset.schema, values),
        where=where,
    )


def checked_text(text: str) -> str:
    """Give a text to be asked about without the space around it.

    Raises
    ------
    DtypeError, OptionError
        When it is no text, or an empty one.
    """
    if not isinstance(text, str):
        raise DtypeError(f"text={text!r} is no text; ask in words")
    if not text.strip():
        raise OptionError(f"text={text!r} is empty; ask in words")
    return text.strip()


def _check_where(dataset: Any, where: str) -> None:
    try:
        dataset.scanner(columns=[], filter=where, with_row_id=True).explain_plan()
    except (ValueError, OSError, TypeError) as error:
        said = str(error).partition(", /")[0]
        raise OptionError(f"where={where!r} cannot be used: {said}; it is Lance's SQL over the columns") from error


def _value_dim(schema: pa.Schema, values: str) -> int:
    if values not in schema.names:
        raise OptionError(f"values={values!r} is no column; there are {', '.join(schema.names)}")
    kind = schema.field(values).type
    width, kind = (kind.list_size, kind.value_type) if pa.types.is_fixed_size_list(kind) else (1, kind)
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise DtypeError(f"values={values!r} is a column of {kind}; name a numeric column")
    return int(width)
