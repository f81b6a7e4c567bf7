"""Extraction of text and blocks from files, in a process with limits of memory and time.

A small file can make a converter work for hours or fill the memory, and a converter may crash. The process that
converts is stopped then; the next file gets a new one.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Final

from keywise.documents.blocks import decode_blocks, decode_quotes
from keywise.documents.extract.extracted import Extracted
from keywise.errors import FormatError, ModelError

MEBIBYTE: Final = 1 << 20
BASE_MEMORY_BYTES: Final = 640 * MEBIBYTE
MEMORY_PER_CONTENT_BYTE: Final = 64
BASE_SECONDS: Final = 5
SECONDS_PER_MEBIBYTE: Final = 30
STARTUP_SECONDS: Final = 120
WAITING_FACTOR: Final = 12
"""Wall-clock time allowed for a second on the CPU: other programs may be running."""


def extract_blocks(content: bytes, format_name: str, label: str, name: str, *, split: bool = False) -> Extracted:
    """Return the text and blocks of a file.

    Parameters
    ----------
    content
        The file; Markdown and other text in UTF-8.
    format_name
        Module of `keywise.documents.extract` that reads it.
    label
        What errors call the format, such as "PDF".
    name
        What errors call the file.
    split
        Whether to find the sentences in that process too, within its limits.

    Raises
    ------
    FormatError
        The file is damaged or protected, needs more memory or time than a file of its size should, or makes the
        extraction crash.
    ModelError
        The process that converts cannot be started.
    """
    data = _convert(content, format_name, label, name, {"task": "split" if split else "extract"})
    blocks = decode_blocks(data["blocks"])
    quotes = decode_quotes(data["quotes"], blocks) if split else None
    return Extracted(data["text"], blocks, tuple(data["warnings"]), quotes)


def render_pages(content: bytes, places: Mapping[int, Sequence[Sequence[float]]], name: str) -> list[dict[str, Any]]:
    """Return pages of a PDF as pictures, in a process with the same limits.

    Parameters
    ----------
    content
        The file.
    places
        For each page, from 1, the boxes to locate on it.
    name
        What errors call the file.

    Returns
    -------
    list of dict
        As `keywise.documents.extract.pdf_pictures.render` returns them.

    Raises
    ------
    FormatError
        The file is damaged, or needs more memory or time than a file of its size should.
    """
    options = {"task": "render", "places": list(places.items())}
    pictures: list[dict[str, Any]] = _convert(content, "pdf_pictures", "PDF", name, options)
    return pictures


def measure_pages(content: bytes, name: str) -> list[tuple[int, int]]:
    """Return the width and height of the pictures of all pages of a PDF, in pixels, in a process with the same limits.

    Parameters
    ----------
    content
        The file.
    name
        What errors call the file.

    Raises
    ------
    FormatError
        The file is damaged, or needs more memory or time than a file of its size should.
    """
    sizes = _convert(content, "pdf_pictures", "PDF", name, {"task": "measure"})
    return [(width, height) for width, height in sizes]


def _convert(content: bytes, format_name: str, label: str, name: str, options: Mapping[str, Any]) -> Any:
    """Return what a module of `keywise.documents.extract` makes of a file, as plain values."""
    size_mebibytes = len(content) / MEBIBYTE
    cpu_seconds = round(BASE_SECONDS + SECONDS_PER_MEBIBYTE * size_mebibytes)
    memory_bytes = BASE_MEMORY_BYTES + MEMORY_PER_CONTENT_BYTE * len(content)
    request = {"format": format_name, "memory_bytes": memory_bytes, "cpu_seconds": cpu_seconds, **options}
    outcome, reply = _PROCESS.convert(request, content, waiting_seconds=WAITING_FACTOR * cpu_seconds)
    if outcome == "text":
        return _replace_nulls(json.loads(reply))
    remedies = {
        "reason": reply,
        "damaged": "it may be cut off, or need a password",
        "memory": f"its {len(content):,} bytes need more than {memory_bytes // MEBIBYTE:,} MiB of memory",
        "time": f"its {len(content):,} bytes take more than {cpu_seconds:,} seconds",
        "crash": "the converter crashed on it",
    }
    raise FormatError("path", f"must be a {label} file that can be read", got=name, remedy=remedies[outcome])


def _replace_nulls(value: Any) -> Any:
    """Return plain values without null characters, which end a text in databases and terminals."""
    # A PDF's fonts can map letters to them.
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_replace_nulls(each) for each in value]
    if isinstance(value, dict):
        return {name: _replace_nulls(each) for name, each in value.items()}
    return value


class _ConversionProcess:
    """A process that converts one file after another, started when the first file comes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        self._owner_pid = 0

    def convert(self, request: dict[str, Any], content: bytes, *, waiting_seconds: float) -> tuple[str, str]:
        """Return the outcome, and what belongs to it."""
        with self._lock:
            try:
                connection = self._start()
                connection.send_bytes(json.dumps(request).encode())
                connection.send_bytes(content)
                if not connection.poll(waiting_seconds):
                    self.stop()
                    return "time", ""
                reply = connection.recv_bytes()
            except (EOFError, ConnectionError):
                return self._explain_end(), ""
            except BaseException:
                self.stop()  # Ctrl-C: a late reply must not answer the next request
                raise
        return _OUTCOMES[reply[:1]], reply[1:].decode()

    def _start(self) -> Connection[Any, Any]:
        process = self._process
        is_running = process is not None and self._owner_pid == os.getpid() and process.poll() is None
        if is_running and self._connection is not None:
            return self._connection
        self.stop()
        ours, theirs = Pipe()
        # -P: a module of the same name in the current folder must not be imported instead.
        command = [sys.executable, "-P", "-m", "keywise.documents.conversion_worker", str(theirs.fileno())]
        paths = os.pathsep.join(path for path in sys.path if path)
        with theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
            )
        self._connection = ours
        self._owner_pid = os.getpid()
        try:
            if ours.poll(STARTUP_SECONDS) and ours.recv_bytes() == b"ready":
                return ours
        except EOFError:
            pass
        remedy = "run `python -m keywise.documents.conversion_worker 0` to see why"
        raise ModelError("the process that converts files", "must start", remedy=remedy)

    def _explain_end(self) -> str:
        """Return why the process ended."""
        process = self._process
        code = None if process is None else process.wait()  # its end of the connection is closed
        self.stop()
        return "time" if code == -signal.SIGPROF else "crash"

    def stop(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
        # A forked child has the connection of its parent too, and must leave the parent's process alone.
        if self._process is not None and self._owner_pid == os.getpid():
            self._process.kill()
            self._process.wait()
        self._connection = None
        self._process = None


_OUTCOMES: Final = {b"T": "text", b"R": "reason", b"D": "damaged", b"M": "memory"}
_PROCESS: Final = _ConversionProcess()
atexit.register(_PROCESS.stop)
