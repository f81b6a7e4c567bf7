"""`keywise cache`: the documents that were read and are kept."""

import re
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from keywise.cli.options import AsJson
from keywise.cli.terminal import say, write, write_json
from keywise.documents.store import Store
from keywise.errors import OptionError
from keywise.util.terminal_text import replace_controls

HELP = "Documents that were read, kept on disk for the next question about them."

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(rf"(?P<number>\d+(\.\d+)?) *(?P<unit>{'|'.join(UNITS)})?", re.ASCII | re.IGNORECASE)


def ls(as_json: AsJson = False) -> None:
    """List what is kept, the last used first."""
    store = Store(status=say)
    kept = store.kept()
    size_bytes, limit_bytes = sum(item.size_bytes for item in kept), store.limit_bytes
    if as_json:
        listed = [asdict(item) for item in kept]
        write_json({"folder": store.folder, "limit_bytes": limit_bytes, "size_bytes": size_bytes, "kept": listed})
        return
    table = Table(
        *(Column(name, overflow="fold") for name in ("used", "tokens", "size", "model", "documents")), box=None
    )
    for item in kept:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.used))
        cells = (used, f"{item.tokens:,}", _size(item.size_bytes), item.model, ", ".join(item.sources))
        table.add_row(*(Text(replace_controls(cell)) for cell in cells))
    Console().print(table)
    write(f"{_size(size_bytes)} of {_size(limit_bytes)} in {store.folder}\n")


def clear(as_json: AsJson = False) -> None:
    """Remove everything that is kept. Models stay."""
    freed_bytes = Store(status=say).clear()
    if as_json:
        write_json({"freed_bytes": freed_bytes})
    else:
        write(f"{_size(freed_bytes)} freed\n")


def limit(
    size: Annotated[
        str | None,
        typer.Argument(metavar="SIZE", help="Such as 500MB or 10GB; 0 keeps nothing.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how much may be kept, or set it to SIZE; what was not used for longest goes first."""
    store = Store(status=say)
    if size is not None:
        store.limit_bytes = _bytes(size)
    if as_json:
        write_json({"limit_bytes": store.limit_bytes})
    else:
        write(f"{_size(store.limit_bytes)}\n")


COMMANDS: tuple[Callable[..., None], ...] = (ls, clear, limit)


def _bytes(size: str) -> int:
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise OptionError(f"SIZE={size!r} is no size; give a number of {', '.join(UNITS)}, such as 10GB")
    return round(float(match["number"]) * UNITS[(match["unit"] or "B").upper()])


def _size(size_bytes: int) -> str:
    unit = max((unit for unit, worth in UNITS.items() if worth <= size_bytes), key=UNITS.__getitem__, default="B")
    return f"{size_bytes / UNITS[unit]:.4g} {unit}"
