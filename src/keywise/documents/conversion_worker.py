"""The process that converts files for `keywise.documents.conversion`, within limits of memory and time."""

from __future__ import annotations

import io
import json
import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

from keywise.util.foreign_errors import translate_errors


class DamagedFileError(Exception):
    """Report a file that a converter cannot read."""


def main() -> None:
    """Serve the connection whose file descriptor is the only argument.

    A request is two messages, a JSON object and the file; a reply is one byte for the outcome and the text.
    """
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    # Imported before the first request, so that the limits apply to the conversion alone.
    import markitdown.converters  # noqa: PLC0415 - slow

    connection.send_bytes(b"ready")
    while True:
        try:
            request = json.loads(connection.recv_bytes())
            content = connection.recv_bytes()
        except EOFError:
            return
        set_limits(request["memory_bytes"], request["cpu_seconds"])
        try:
            reply = convert(markitdown, request["converter"], request["extension"], content)
        except MemoryError:
            reply = b"M"
        connection.send_bytes(reply)


def convert(markitdown: Any, converter_name: str, extension: str, content: bytes) -> bytes:
    """Return ``b"T"`` and the text in UTF-8, or ``b"D"`` for a damaged file, or ``b"M"`` for a lack of memory."""
    # Only the converter of this suffix: none of them opens the network, runs programs or loads plug-ins.
    converter = markitdown.MarkItDown(enable_builtins=False, enable_plugins=False)
    converter.register_converter(getattr(markitdown.converters, converter_name)())
    stream_info = markitdown.StreamInfo(extension=extension)
    try:
        with translate_errors(DamagedFileError, MemoryError):
            text: str = converter.convert_stream(io.BytesIO(content), stream_info=stream_info).markdown
    except DamagedFileError as error:
        # The library puts the converter's error into its own.
        return b"M" if "MemoryError" in str(error) else b"D"
    return b"T" + text.encode("utf-8", "replace")


def set_limits(memory_bytes: int, cpu_seconds: int) -> None:
    """Allow the next conversion this much memory and time on the CPU, on top of what is used now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used_seconds = int(usage.ru_utime + usage.ru_stime) + 1
    _set_soft_limit(resource.RLIMIT_CPU, used_seconds + cpu_seconds)
    _set_soft_limit(resource.RLIMIT_DATA, _count_data_bytes() + memory_bytes)


def _set_soft_limit(kind: int, value: int) -> None:
    hard_limit = resource.getrlimit(kind)[1]
    soft_limit = value if hard_limit == resource.RLIM_INFINITY else min(value, hard_limit)
    resource.setrlimit(kind, (soft_limit, hard_limit))


def _count_data_bytes() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
