"""The keys of a fragment as they lie in its file, mapped: attention reads them where they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader
from numpy.typing import NDArray

from keywise.library.schema import KEY, numbers_of


class MappedKeys:
    """Maps the key columns of local data files, which Lance never changes, and remembers the maps.

    Parameters
    ----------
    dimension, dtype
        Of the keys.
    """

    def __init__(self, dimension: int, dtype: str) -> None:
        self._dimension, self._dtype = dimension, np.dtype(dtype)
        self._maps: dict[Path, list[NDArray[Any]] | None] = {}
        self._of: dict[tuple[int, int], list[NDArray[Any]] | None] = {}

    def of(self, dataset: Any, fragment: Any) -> Sequence[NDArray[Any]] | None:
        """Give a fragment's keys, deleted rows included, in arrays in order; None where Lance must decode."""
        known = (dataset.version, fragment.fragment_id)
        if known not in self._of:
            self._of[known] = self._found(dataset, fragment.metadata)
        return self._of[known]

    def _found(self, dataset: Any, metadata: Any) -> list[NDArray[Any]] | None:
        folder = Path(dataset.uri.removeprefix("file://")) / "data"
        number = next(field.id() for field in dataset.lance_schema.fields() if field.name() == KEY)
        files = [file for file in metadata.files if number in file.fields]
        if metadata.overlays or len(files) != 1 or not (folder / files[0].path).is_file():
            return None
        path = folder / files[0].path
        if path not in self._maps:
            self._maps[path] = self._map(
                path, files[0].column_indices[files[0].fields.index(number)], metadata.physical_rows
            )
        return self._maps[path]

    def _map(self, path: Path, column: int, rows: int) -> list[NDArray[Any]] | None:
        reader = LanceFileReader(os.fspath(path), columns=[KEY])
        pages = LanceFileReader(os.fspath(path)).metadata().columns[column].pages
        row_bytes = self._dimension * self._dtype.itemsize
        # Lance keeps plain values of one width in one buffer per page, without anything between them.
        plain = all(len(page.buffers) == 1 and "FullZipLayout" in page.encoding for page in pages)
        if not plain or sum(page.buffers[0].size for page in pages) != rows * row_bytes:
            return None
        with pa.memory_map(os.fspath(path)) as file:
            whole = file.read_buffer(file.size())
        keys, first = [], 0
        for page in pages:
            buffer = page.buffers[0]
            if buffer.size % row_bytes:
                return None
            mapped = np.frombuffer(whole.slice(buffer.position, buffer.size), self._dtype).reshape(-1, self._dimension)
            # What Lance reads there has the last word on whether this is what it looks like.
            for row in {0, len(mapped) - 1}:
                if not np.array_equal(mapped[row], self._read_row(reader, first + row)):
                    return None
            keys.append(mapped)
            first += len(mapped)
        return keys

    def _read_row(self, reader: Any, row: int) -> NDArray[Any]:
        table = reader.read_range(row, 1, batch_size=1).to_table()
        numbers: NDArray[Any] = numbers_of(table.column(KEY))[0]
        return numbers
