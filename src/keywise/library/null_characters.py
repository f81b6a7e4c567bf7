"""A check for null characters in text columns, which only other tools write.

Lance ends the process when one of its own messages has a null character, as that of a failed cast of a text does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from keywise.errors import FormatError
from keywise.library.lance_errors import convert_lance_errors

_checked: set[tuple[str, int, str]] = set()
"""Columns without null characters: path, version and name."""


def check_null_characters(path: str, dataset: Any, columns: Sequence[str]) -> None:
    """Raise an error if a text in some columns has a null character.

    Parameters
    ----------
    path
        The library, for messages.
    dataset
        Its Lance dataset, whose files are verified. A column of a version is read once.
    columns
        Names of columns of any type.

    Raises
    ------
    FormatError
        A text has one.
    """
    texts = [name for name in columns if _holds_texts(dataset.schema.field(name).type)]
    for name in texts:
        if (path, dataset.version, name) in _checked:
            continue
        with convert_lance_errors(path, "cannot be read"):
            found = any(
                _has_null_character(leaf)
                for batch in dataset.scanner(columns=[name]).to_batches()
                for leaf in _iterate_leaves(batch.column(0))
            )
        if found:
            rule = f"must be a library without null characters in texts; column {name!r} has one"
            raise FormatError("path", rule, got=path, remedy="`where` cannot use this column")
        _checked.add((path, dataset.version, name))


def _holds_texts(column_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(column_type):
        return _holds_texts(column_type.value_type)
    children = [column_type.field(number).type for number in range(column_type.num_fields)]
    return _is_text(column_type) or any(map(_holds_texts, children))


def _is_text(column_type: pa.DataType) -> bool:
    is_binary = pa.types.is_binary(column_type) or pa.types.is_large_binary(column_type)
    is_string = pa.types.is_string(column_type) or pa.types.is_large_string(column_type)
    is_view = pa.types.is_string_view(column_type) or pa.types.is_binary_view(column_type)
    return bool(is_binary or is_string or is_view)


def _iterate_leaves(array: Any) -> Iterator[Any]:
    """Yield the texts in an array, in lists and structures too."""
    if pa.types.is_dictionary(array.type):
        yield from _iterate_leaves(array.dictionary)
    elif pa.types.is_struct(array.type):
        for child in array.flatten():
            yield from _iterate_leaves(child)
    elif pa.types.is_nested(array.type):
        yield from _iterate_leaves(array.flatten())
    elif _is_text(array.type):
        yield array


def _has_null_character(array: Any) -> bool:
    if pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        array = array.cast(pa.large_binary())
    return bool(pc.any(pc.match_substring(array, "\0")).as_py())
