"""The tensors of a cache file, with a checksum of every block."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
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

compute_checksum = crc32
"""Return the CRC-32 of a block."""


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


def allocate_pages(byte_count: int) -> mmap.mmap:
    """Return zeroed memory of its own that begins on a page; pages take memory when they are first written.

    Parameters
    ----------
    byte_count : int
        Length of the memory.

    Raises
    ------
    OSError
        There is not so much memory.
    """
    # Not shared, which is the default and has neither huge pages nor copies of its own in forked processes.
    memory = mmap.mmap(-1, max(byte_count, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def read_into(handle: int, target: memoryview, offset: int) -> bool:
    """Read a range of bytes of a file, and return whether the file has all of them.

    Parameters
    ----------
    handle : int
        Descriptor of the file; its position is neither used nor changed.
    target : memoryview
        Bytes to fill.
    offset : int
        Place of the first byte in the file.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    while target:
        count = os.preadv(handle, [target], offset)
        if not count:
            return False
        target = target[count:]
        offset += count
    return True


class StoredPayload:
    """The payload of a file: its blocks are read into memory and verified when they are first used.

    Bytes of a mapping may change after they were verified, and the process is killed (SIGBUS) if the file is truncated.

    Parameters
    ----------
    path : str
        The file, for messages.
    file : binary file
        The open file; it may be closed, replaced or removed afterwards.
    begin : int
        Bytes before the payload.
    payload_bytes : int
        Length of the payload.
    checksums : uint32 array
        CRC-32 of each block of `CHECK_BYTES` bytes.

    Attributes
    ----------
    data : mmap
        Memory of the payload; blocks that were not used are zero.

    Raises
    ------
    OSError
        There is not so much memory.
    """

    def __init__(self, path: str, file: IO[bytes], begin: int, payload_bytes: int, checksums: Array) -> None:
        self.data = allocate_pages(payload_bytes)
        self._path = path
        self._begin = begin
        self._payload_bytes = payload_bytes
        self._checksums = checksums
        self._verified: set[int] = set()
        self._lock = threading.Lock()
        self._handle = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._handle)

    def view_tensor(self, entry: TensorEntry) -> Array:
        """Return a tensor as a view that is not read yet.

        Parameters
        ----------
        entry : TensorEntry
            Its place, which must lie in the payload.
        """
        dtype = DTYPES[entry.dtype]
        count = (entry.end - entry.begin) // dtype.itemsize
        return np.frombuffer(self.data, dtype, count, entry.begin).reshape(entry.shape)

    def verify_view(self, view: Array) -> None:
        """Read and verify the bytes under a view.

        Parameters
        ----------
        view : array [batch, heads, tokens, ...]
            A tensor of the payload, or a range of its tokens.

        Raises
        ------
        FormatError
            The checksum of a block differs, or the file cannot be read.
        """
        payload_address = byte_bounds(np.frombuffer(self.data, np.uint8))[0]
        runs = [view] if view.flags.c_contiguous else [view[index] for index in np.ndindex(view.shape[:2])]
        for run in runs:
            begin, end = byte_bounds(run)
            self.verify(begin - payload_address, end - payload_address)

    def verify(self, begin: int, end: int) -> None:
        """Read and verify the blocks that contain a range of bytes, each block once.

        Parameters
        ----------
        begin, end : int
            Range of bytes, counted from the start of the payload.

        Raises
        ------
        FormatError
            The checksum of a block differs, or the file cannot be read.
        """
        # Single-threaded, because the threads of the model's last operation are still spinning. Locked, because a block
        # must not be read again while another thread uses it.
        with self._lock, memoryview(self.data) as view:
            for block in range(begin // CHECK_BYTES, count_checksums(end)):
                if block not in self._verified:
                    first = block * CHECK_BYTES
                    last = min(first + CHECK_BYTES, self._payload_bytes)
                    with view[first:last] as target:
                        self._read_block(block, target, self._begin + first)
                    self._verified.add(block)

    def _read_block(self, block: int, target: memoryview, offset: int) -> None:
        try:
            complete = read_into(self._handle, target, offset)
        except OSError as error:
            raise FormatError("path", f"{self._path!r} cannot be read ({error.strerror})") from error
        if not complete:
            raise FormatError("path", f"{self._path!r} is damaged: it was cut while it was open")
        if crc32(target) != self._checksums[block]:
            last = offset + len(target) - 1
            raise FormatError("path", f"{self._path!r} is damaged: the checksum of bytes {offset} to {last} differs")
