"""Memory maps of the keys in a library's local data files, for attention without copies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader

from keywise.library.arrow_arrays import Array, arrow_to_vectors
from keywise.library.schema import KEY, KeyFormat


class KeyMaps:
    """Maps the key columns of local data files and keeps the maps.

    Lance never changes a data file, so a map stays valid.

    Parameters
    ----------
    keys
        Dimension and dtype of the keys.
    """

    def __init__(self, keys: KeyFormat) -> None:
        self._dimension = keys.dimension
        self._dtype = np.dtype(keys.dtype)
        self._pages_by_file: dict[Path, list[Array] | None] = {}
        self._pages_by_fragment: dict[tuple[int, int], list[Array] | None] = {}

    def map_fragment(self, dataset: Any, fragment: Any) -> Sequence[Array] | None:
        """Return the keys of a fragment, deleted rows included.

        Parameters
        ----------
        dataset
            The library's Lance dataset.
        fragment
            One of its fragments.

        Returns
        -------
        sequence of arrays [N, D] or None
            One array per page, in order. None if Lance must decode the keys: the file is remote, or they are not
            stored plainly.
        """
        fragment_key = (dataset.version, fragment.fragment_id)
        if fragment_key not in self._pages_by_fragment:
            self._pages_by_fragment[fragment_key] = self._find_pages(dataset, fragment.metadata)
        return self._pages_by_fragment[fragment_key]

    def _find_pages(self, dataset: Any, metadata: Any) -> list[Array] | None:
        folder = Path(dataset.uri.removeprefix("file://")) / "data"
        field_id = next(field.id() for field in dataset.lance_schema.fields() if field.name() == KEY)
        files = [file for file in metadata.files if field_id in file.fields]
        if metadata.overlays or len(files) != 1 or not (folder / files[0].path).is_file():
            return None
        path = folder / files[0].path
        if path not in self._pages_by_file:
            column_index = files[0].column_indices[files[0].fields.index(field_id)]
            self._pages_by_file[path] = self._map_file(path, column_index, metadata.physical_rows)
        return self._pages_by_file[path]

    def _map_file(self, path: Path, column_index: int, row_count: int) -> list[Array] | None:
        reader = LanceFileReader(os.fspath(path), columns=[KEY])
        pages = LanceFileReader(os.fspath(path)).metadata().columns[column_index].pages
        row_bytes = self._dimension * self._dtype.itemsize
        # Lance stores plain values of one width in one buffer per page, with nothing between them.
        is_plain = all(len(page.buffers) == 1 and "FullZipLayout" in page.encoding for page in pages)
        if not is_plain or sum(page.buffers[0].size for page in pages) != row_count * row_bytes:
            return None
        with pa.memory_map(os.fspath(path)) as file:
            contents = file.read_buffer(file.size())
        mapped_pages: list[Array] = []
        first = 0
        for page in pages:
            buffer = page.buffers[0]
            if buffer.size % row_bytes:
                return None
            keys = np.frombuffer(contents.slice(buffer.position, buffer.size), self._dtype)
            keys = keys.reshape(-1, self._dimension)
            # The layout is not documented: use a page only if Lance decodes the same keys from its ends.
            for row in {0, len(keys) - 1}:
                if not np.array_equal(keys[row : row + 1], _decode_row(reader, first + row)):
                    return None
            mapped_pages.append(keys)
            first += len(keys)
        return mapped_pages


def _decode_row(reader: Any, row: int) -> Array:
    table = reader.read_range(row, 1, batch_size=1).to_table()
    return arrow_to_vectors(table.column(KEY))
