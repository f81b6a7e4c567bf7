"""The process that converts files for `keywise.documents.conversion`, within limits of memory and time."""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from keywise.documents.blocks import encode_blocks, encode_quotes
from keywise.documents.extract.extracted import Extracted, UnreadableFileError
from keywise.documents.sentences import make_quotes
from keywise.util.foreign_errors import translate_errors


class DamagedFileError(Exception):
    """Report a file that a converter cannot read."""


def main() -> None:
    """Serve the connection whose file descriptor is the only argument.

    A request is two messages, a JSON object and the file; a reply is one byte for the outcome and the text.
    """
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent may ignore it
    connection.send_bytes(b"ready")
    while True:
        try:
            request = json.loads(connection.recv_bytes())
            content = connection.recv_bytes()
        except EOFError:
            return
        # Imported before the limits are set: they apply to the conversion alone.
        module = import_module(f"keywise.documents.extract.{request['format']}")
        set_limits(request["memory_bytes"], request["cpu_seconds"])
        try:
            reply = convert(module, content, request["task"], request.get("places"))
        except MemoryError:
            reply = b"M"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(reply)


def convert(module: ModuleType, content: bytes, task: str = "extract", places: Sequence[Any] = ()) -> bytes:
    """Return one byte for the outcome, and what belongs to it in UTF-8.

    The outcomes are ``b"T"`` with the extracted text and blocks, or the pictures of pages, as JSON,
    ``b"R"`` with the reason why the file cannot be read, ``b"D"`` for a damaged file and ``b"M"`` for a lack of memory.

    Parameters
    ----------
    module
        A module of `keywise.documents.extract`, with ``extract(content)`` or, for text, ``find_blocks(text)``.
    content
        The file; text is in UTF-8.
    task
        ``"extract"``, ``"split"`` to find the sentences too, ``"render"`` for pictures of pages, or ``"measure"`` for
        their sizes.
    places
        For pictures: pairs of a page and its boxes, as for ``pdf_pictures.render``.
    """
    try:
        with translate_errors(DamagedFileError, MemoryError, UnreadableFileError):
            if task == "render":
                return b"T" + json.dumps(module.render(content, dict(places))).encode()
            if task == "measure":
                return b"T" + json.dumps(module.measure(content)).encode()
            data = _extract(module, content, has_sentences=task == "split")
    except UnreadableFileError as error:
        return b"R" + str(error).encode("utf-8", "replace")
    except DamagedFileError as error:
        message = str(error).lower()
        # A library puts the error of its own part into another; libxml2 calls a failed allocation an unknown error.
        return b"M" if "memory" in message or "unknown error" in message else b"D"
    return b"T" + json.dumps(data).encode()


def _extract(module: ModuleType, content: bytes, *, has_sentences: bool) -> dict[str, Any]:
    if hasattr(module, "extract"):
        extracted: Extracted = module.extract(content)
    else:
        extracted = Extracted("", module.find_blocks(content.decode("utf-8", "surrogatepass")))
    blocks = extracted.blocks
    data: dict[str, Any] = {"text": extracted.text, "blocks": encode_blocks(blocks), "warnings": extracted.warnings}
    if has_sentences:
        text = extracted.text or content.decode("utf-8", "surrogatepass")
        data["quotes"] = encode_quotes(list(make_quotes(text, blocks)), blocks)
    return data


def set_limits(memory_bytes: int, cpu_seconds: int) -> None:
    """Allow the next conversion this much memory and time on the CPU, on top of what is used now."""
    # A limit of the process's whole time would not do: the kernel may count it in another way than it tells.
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    value, hard_limit = _count_data_bytes() + memory_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft_limit = value if hard_limit == resource.RLIM_INFINITY else min(value, hard_limit)
    resource.setrlimit(resource.RLIMIT_DATA, (soft_limit, hard_limit))


def _count_data_bytes() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
