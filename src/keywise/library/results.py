"""Results of a library: added documents, its description, attention over it, and sentences."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from keywise.library.arrow_arrays import Array
from keywise.library.dataset import verify_files
from keywise.library.lance_errors import convert_lance_errors
from keywise.library.partials import NO_ROW, LibraryPartial
from keywise.library.query import Query
from keywise.library.schema import list_columns


@dataclass(frozen=True)
class AddResult:
    """Documents that `Library.add` added, by name.

    Attributes
    ----------
    added
        Documents that are new.
    updated
        Documents whose content changed; their sentences were replaced.
    moved
        New names of documents whose files were moved, by their old names; they were not encoded again.
    unchanged
        Documents whose content is the same.
    gone
        Documents at or below the named paths whose files do not exist any more. They are still in the library.
    removed
        Such documents that were removed, with ``prune=True``.
    skipped
        Files and folders that could not be read, with the reasons.
    sentences
        Number of sentences encoded.
    version
        The library's version afterwards.
    """

    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    sentences: int = 0
    version: int = 0


@dataclass(frozen=True)
class LibraryInfo:
    """A description of a library.

    Attributes
    ----------
    path
        Folder or address.
    version
        The open version.
    rows
        Number of keys.
    documents
        Number of documents; None for keys of the user's own.
    dimension
        Dimension of the keys.
    dtype
        ``"float16"`` or ``"float32"``.
    columns
        Columns besides the key.
    encoder, fingerprint
        Name and fingerprint of the encoder; None for keys of the user's own.
    temperature
        The default temperature; None without rows.
    """

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
class LibraryAttention:
    """Attention of queries over a library.

    Attributes
    ----------
    weights : [Q, top] float32
        Weights of the heaviest rows, heaviest first; 0 where there are fewer rows.
    rows : [Q, top] int64
        Addresses of these rows in this version; -1 where there are fewer rows.
    top_mass : [Q] float32
        Sum of `weights`: the share of all weight that these rows have. A lower bound if not `exact`.
    value : [Q, Dv] float32 or None
        Weighted mean of the values over all rows.
    entropy, lse : [Q] float32
        Entropy of the weights over all rows, and log-sum-exp of the scores, in nats.
    temperature
        Scores were divided by it.
    exact
        Whether every row was attended to; if not, `value`, `entropy` and `lse` are those of the candidates.
    dataset
        The version that was attended to.
    path
        The library.
    query
        What was asked.
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
    path: str = field(repr=False)
    query: Query = field(repr=False)

    @cached_property
    def matches(self) -> list[list[dict[str, Any]]]:
        """``weight`` and all columns besides the key of each query's heaviest rows."""
        addresses = sorted({int(row) for row in self.rows.reshape(-1) if row != NO_ROW})
        if not addresses:
            return [[] for _ in self.rows]
        # A library never has Lance's stable row ids, so the id of a row is its address.
        condition = f"_rowid IN ({', '.join(map(str, addresses))})"
        columns = list_columns(self.dataset.schema)
        verify_files(self.path, self.dataset)
        with convert_lance_errors(self.path, "cannot be read"):
            table = self.dataset.scanner(columns=columns, filter=condition, with_row_id=True).to_table()
        row_values = {row.pop("_rowid"): row for row in table.to_pylist()}
        return [
            [
                {"weight": float(weight), **row_values[int(row)]}
                for weight, row in zip(query_weights, query_rows, strict=True)
                if row != NO_ROW
            ]
            for query_weights, query_rows in zip(self.weights, self.rows, strict=True)
        ]


@dataclass(frozen=True)
class SentenceHit:
    """A sentence that a question attends to.

    Attributes
    ----------
    text
        The sentence.
    document
        Name of its document.
    start, end
        Its span in the document's text, in characters.
    weight
        Its share of the question's attention to all sentences; without ``keys_only=True``, scores are raised by common
        words.
    rank
        1 for the heaviest sentence.
    semantic
        Its share by keys alone.
    lexical
        Its share of the BM25 scores of the sentences with words of the question; None with ``keys_only=True``.
    kind
        What it is, such as "paragraph" or "table row".
    heading_path
        The headings that it stands under, outermost first.
    """

    text: str
    document: str
    start: int
    end: int
    weight: float
    rank: int
    semantic: float
    lexical: float | None
    kind: str
    heading_path: tuple[str, ...]


def make_attention(
    dataset: Any, query: Query, result: LibraryPartial, least_share: Array, *, exact: bool
) -> LibraryAttention:
    """Return the attention of queries over a library.

    Parameters
    ----------
    dataset
        The Lance dataset that was attended to.
    query
        The query.
    result
        Attention over the rows that were attended to.
    least_share : [Q]
        The least share of all weight that these rows have.
    exact
        Whether they are all rows.
    """
    weights = result.weights * least_share[:, None]
    return LibraryAttention(
        weights=weights,
        rows=result.rows,
        top_mass=weights.sum(axis=1),
        value=None if query.values is None else result.value,
        entropy=result.entropy,
        lse=result.lse,
        temperature=query.temperature,
        exact=exact,
        dataset=dataset,
        path=query.path,
        query=query,
    )
