"""What a library gives back: what was added, what it is, what attention to it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from keywise.library.part import NO_ROW, Array
from keywise.library.schema import columns_of


@dataclass(frozen=True)
class Added:
    """What `Library.add` did.

    Attributes
    ----------
    added, replaced, unchanged
        Documents by name: new, changed since they were added, and left alone because their content is the same.
    skipped
        Documents that could not be read, each with the reason.
    sentences
        Number of sentences encoded.
    version
        The library's version now.
    """

    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    sentences: int = 0
    version: int = 0


@dataclass(frozen=True)
class Info:
    """What a library is; `documents` and `encoder` are None where its keys are the user's."""

    path: str
    version: int
    rows: int
    documents: int | None
    dimension: int
    dtype: str
    columns: list[str]
    encoder: str | None
    fingerprint: str | None
    temperature: float | None


@dataclass(frozen=True, eq=False)
class Attended:
    """What attention to a library found, per query.

    Attributes
    ----------
    weights : [Q, top] float32
        Weights of the heaviest rows, heaviest first; 0 where there are fewer rows.
    rows : [Q, top] int64
        Their addresses in this version; -1 where there are fewer rows.
    covered : [Q] float32
        Sum of `weights`: what part of all the mass the rows named have. A lower bound if not `exact`.
    value : [Q, Dv] float32 or None
        Weighted sum of the values over all rows.
    entropy, lse : [Q] float32
        Entropy of the weights over all rows, and log-sum-exp of the scores, in nats.
    temperature
        What scores were divided by.
    exact
        Whether every row was attended to; if not, `value`, `entropy` and `lse` are those of the candidates.
    dataset
        The version that was attended to.
    """

    weights: Array
    rows: Array
    top_mass: Array
    value: Array | None
    entropy: Array
    lse: Array
    temperature: float
    exact: bool
    dataset: Any = field(repr=False)

    @cached_property
    def matches(self) -> list[list[dict[str, Any]]]:
        """Per query its heaviest rows: ``weight`` and the columns besides the key; read when they are asked for."""
        addresses = sorted({int(row) for row in self.rows.reshape(-1) if row != NO_ROW})
        if not addresses:
            return [[] for _ in self.rows]
        columns = columns_of(self.dataset.schema)
        # Without stable ids of rows, which a library never has, a row's id is its address.
        condition = f"_rowid IN ({', '.join(map(str, addresses))})"
        table = self.dataset.scanner(columns=columns, filter=condition, with_row_id=True).to_table()
        rows = {row.pop("_rowid"): row for row in table.to_pylist()}
        return [
            [{"weight": float(weight), **rows[int(row)]} for weight, row in zip(*both, strict=True) if row != NO_ROW]
            for both in zip(self.weights, self.rows, strict=True)
        ]


@dataclass(frozen=True)
class Sentence:
    """A sentence that a question attended to: its weight among all sentences, its file, its span in characters."""

    text: str
    document: str
    start: int
    end: int
    weight: float
    rank: int
