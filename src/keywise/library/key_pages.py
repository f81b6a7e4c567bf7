"""The keys in a library's local data files, read into memory and verified, for attention without Lance's decoder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from lance.file import LanceFileReader

from keywise.library.arrow_arrays import Array, arrow_to_vectors
from keywise.library.checksums import DATA_FOLDER, list_fragment_files, read_verified
from keywise.library.dataset import is_local
from keywise.library.lance_errors import convert_lance_errors
from keywise.library.schema import KEY, KeyFormat
from keywise.util.machine import measure_available_memory

KEPT_SHARE: Final = 0.5
"""Share of the available memory that keys may take; the keys of larger libraries are read again at every query."""


class KeyPage:
    """Consecutive keys of a data file.

    Parameters
    ----------
    pages : KeyPages
        Reads and keeps the keys.
    name : str
        The file, in the library's folder.
    begin : int
        Place of the first key in the file, in bytes.
    rows : int
        Number of keys.
    """

    def __init__(self, pages: KeyPages, name: str, begin: int, rows: int) -> None:
        self._pages = pages
        self._name = name
        self._begin = begin
        self._rows = rows
        self._kept: Array | None = None

    def __len__(self) -> int:
        return self._rows

    @property
    def kept_bytes(self) -> int:
        """Bytes that are kept in memory."""
        return 0 if self._kept is None else self._kept.nbytes

    def read(self) -> Array:
        """Return the keys [N, D], verified.

        Raises
        ------
        FormatError
            The file has changed, or cannot be read.
        """
        if self._kept is not None:
            return self._kept
        keys = self.read_rows(0, self._rows)
        if self._pages.reserve(keys.nbytes):
            self._kept = keys
        return keys

    def read_rows(self, first: int, last: int) -> Array:
        """Return some keys of the page, verified."""
        return self._pages.read(self._name, self._begin, first, last)


class KeyPages:
    """Finds the pages of keys in local data files, and keeps the keys in memory while there is room.

    A copy in memory cannot change after it was verified, and no truncated file can end the process, as with a mapping.

    Parameters
    ----------
    path
        The library.
    keys
        Dimension and dtype of the keys.
    """

    def __init__(self, path: str, keys: KeyFormat) -> None:
        self._path = path
        self._dimension = keys.dimension
        self._dtype = np.dtype(keys.dtype)
        self._row_bytes = keys.dimension * self._dtype.itemsize
        self._free_bytes = int(KEPT_SHARE * measure_available_memory())
        self._pages_by_file: dict[str, list[KeyPage] | None] = {}
        # Of one version.
        self._pages_by_fragment: dict[int, list[KeyPage] | None] = {}
        self._version: int | None = None

    def find_pages(self, dataset: Any, fragment: Any) -> Sequence[KeyPage] | None:
        """Return the pages of a fragment, deleted rows included.

        Parameters
        ----------
        dataset
            The library's Lance dataset, whose files are verified.
        fragment
            One of its fragments.

        Returns
        -------
        sequence of KeyPage or None
            In order. None if Lance must decode the keys: the file is remote, or they are not stored plainly.

        Raises
        ------
        FormatError
            A file has changed, or cannot be read.
        """
        if dataset.version != self._version:
            self._forget_other_files(dataset)
        if fragment.fragment_id not in self._pages_by_fragment:
            self._pages_by_fragment[fragment.fragment_id] = self._find_fragment(dataset, fragment.metadata)
        return self._pages_by_fragment[fragment.fragment_id]

    def reserve(self, byte_count: int) -> bool:
        """Return whether there is room to keep so many bytes, and reserve it."""
        if byte_count > self._free_bytes:
            return False
        self._free_bytes -= byte_count
        return True

    def read(self, name: str, begin: int, first: int, last: int) -> Array:
        """Return keys `first` to `last` - 1 of those that begin at a place in a file, verified."""
        content = read_verified(self._path, name, begin + first * self._row_bytes, begin + last * self._row_bytes)
        return content.view(self._dtype).reshape(-1, self._dimension)

    def _forget_other_files(self, dataset: Any) -> None:
        """Release the keys of files that a version does not name."""
        names = set(list_fragment_files(fragment.metadata for fragment in dataset.get_fragments()))
        for name in self._pages_by_file.keys() - names:
            pages = self._pages_by_file.pop(name) or []
            self._free_bytes += sum(page.kept_bytes for page in pages)
        self._pages_by_fragment.clear()
        self._version = dataset.version

    def _find_fragment(self, dataset: Any, metadata: Any) -> list[KeyPage] | None:
        field_id = next(field.id() for field in dataset.lance_schema.fields() if field.name() == KEY)
        files = [file for file in metadata.files if field_id in file.fields]
        if not is_local(self._path) or metadata.overlays or len(files) != 1 or files[0].base_id is not None:
            return None
        name = f"{DATA_FOLDER}/{files[0].path}"
        if name not in self._pages_by_file:
            column_index = files[0].column_indices[files[0].fields.index(field_id)]
            with convert_lance_errors(self._path, "cannot be read"):
                self._pages_by_file[name] = self._find_file(name, column_index, metadata.physical_rows)
        return self._pages_by_file[name]

    def _find_file(self, name: str, column_index: int, row_count: int) -> list[KeyPage] | None:
        path = os.path.join(self._path, name)
        reader = LanceFileReader(path, columns=[KEY])
        stored_pages = LanceFileReader(path).metadata().columns[column_index].pages
        # Lance stores plain values of one width in one buffer per page, with nothing between them.
        is_plain = all(len(page.buffers) == 1 and "FullZipLayout" in page.encoding for page in stored_pages)
        if not is_plain or sum(page.buffers[0].size for page in stored_pages) != row_count * self._row_bytes:
            return None
        pages: list[KeyPage] = []
        first = 0
        for stored_page in stored_pages:
            buffer = stored_page.buffers[0]
            rows, rest = divmod(buffer.size, self._row_bytes)
            if rest or buffer.position % self._dtype.itemsize:
                return None
            page = KeyPage(self, name, buffer.position, rows)
            # The layout is not documented: use a page only if Lance decodes the same keys from its ends.
            for row in {0, rows - 1} if rows else ():
                if not np.array_equal(page.read_rows(row, row + 1), _decode_row(reader, first + row)):
                    return None
            pages.append(page)
            first += rows
        return pages


def _decode_row(reader: Any, row: int) -> Array:
    table = reader.read_range(row, 1, batch_size=1).to_table()
    return arrow_to_vectors(table.column(KEY))
