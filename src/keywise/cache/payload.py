"""The tensors of a cache file, with a checksum of every block."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from numpy.lib.array_utils import byte_bounds

from keywise.attention.arrays import Array
from keywise.cache.safetensors_header import DTYPES, TensorEntry
from keywise.errors import FormatError

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:  # the same checksums, six times slower
    from zlib import crc32

CHECK_BYTES = 256 * 1024
"""Payload bytes per checksum."""


def count_checksums(payload_bytes: int) -> int:
    """Return the number of checksums of a payload.

    Parameters
    ----------
    payload_bytes : int
        Length of the payload.
    """
    return -(-payload_bytes // CHECK_BYTES)


class PayloadWriter:
    """Write tensors one after the other, with the CRC-32 of each block.

    Parameters
    ----------
    file : binary file
        Open for writing, at the place where the payload begins.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._checksums: list[int] = []
        self._written_bytes = 0

    def write(self, arrays: Iterable[Array]) -> None:
        """Append arrays to the payload.

        Parameters
        ----------
        arrays : iterable of arrays
            Their elements are written in C order.
        """
        for array in arrays:
            self._write_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _write_bytes(self, data: memoryview) -> None:
        while data:
            filled_bytes = self._written_bytes % CHECK_BYTES
            if not filled_bytes:
                self._checksums.append(0)
            part = data[: CHECK_BYTES - filled_bytes]
            self._file.write(part)
            self._checksums[-1] = crc32(part, self._checksums[-1])
            self._written_bytes += len(part)
            data = data[len(part) :]

    def list_checksums(self) -> Array:
        """Return the checksums of the blocks so far, uint32."""
        return np.array(self._checksums, np.uint32)


@dataclass(eq=False)
class MappedPayload:
    """The payload of a file in memory.

    The mapping is private: writes to it do not reach the file.

    Attributes
    ----------
    path : str
        The file, for messages.
    data : mmap
        The whole file.
    begin : int
        Bytes before the payload.
    payload_bytes : int
        Length of the payload.
    checksums : uint32 array
        CRC-32 of each block of `CHECK_BYTES` bytes.
    verified : set of int
        Numbers of the blocks whose checksum was compared.
    """

    path: str
    data: mmap.mmap
    begin: int
    payload_bytes: int
    checksums: Array
    verified: set[int] = field(default_factory=set)

    def view_tensor(self, entry: TensorEntry) -> Array:
        """Return a tensor as a view that is not verified yet.

        Parameters
        ----------
        entry : TensorEntry
            Its place, which must lie in the payload.
        """
        dtype = DTYPES[entry.dtype]
        count = (entry.end - entry.begin) // dtype.itemsize
        return np.frombuffer(self.data, dtype, count, self.begin + entry.begin).reshape(entry.shape)

    def verify_view(self, view: Array) -> None:
        """Verify the bytes under a view.

        Parameters
        ----------
        view : array [batch, heads, tokens, ...]
            A tensor of the payload, or a range of its tokens.

        Raises
        ------
        FormatError
            The checksum of a block differs.
        """
        payload_address = byte_bounds(np.frombuffer(self.data, np.uint8, offset=self.begin))[0]
        runs = [view] if view.flags.c_contiguous else [view[index] for index in np.ndindex(view.shape[:2])]
        for run in runs:
            begin, end = byte_bounds(run)
            self.verify(begin - payload_address, end - payload_address)

    def verify(self, begin: int, end: int) -> None:
        """Verify the blocks that contain a range of bytes, each block once.

        Parameters
        ----------
        begin, end : int
            Range of bytes, counted from the start of the payload.

        Raises
        ------
        FormatError
            The checksum of a block differs.
        """
        # Single-threaded, because the threads of the model's last operation are still spinning.
        with memoryview(self.data) as view:
            for block in range(begin // CHECK_BYTES, count_checksums(end)):
                if block in self.verified:
                    continue
                first = self.begin + block * CHECK_BYTES
                last = min(first + CHECK_BYTES, self.begin + self.payload_bytes)
                if crc32(view[first:last]) != self.checksums[block]:
                    raise FormatError(
                        "path", f"{self.path!r} is damaged: the checksum of bytes {first} to {last - 1} differs"
                    )
                self.verified.add(block)
