"""`keywise cache`: the prefilled documents on disk."""

import re
import time
from collections.abc import Callable
from dataclasses import asdict
from decimal import Decimal
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from keywise.cli.options import AsJson
from keywise.cli.terminal import print_notice, write, write_json
from keywise.documents.store import MAX_LIMIT_BYTES, PrefillStore
from keywise.errors import OptionError
from keywise.util.terminal_text import replace_controls

HELP = "Prefilled documents, stored on disk for further questions."

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?) *(?P<unit>[KMGT]?)B?", re.ASCII | re.IGNORECASE)


def list_documents(as_json: AsJson = False) -> None:
    """List the stored documents, the last used first."""
    store = PrefillStore(status=print_notice)
    documents = store.kept()
    size_bytes = sum(document.size_bytes for document in documents)
    limit_bytes = store.limit_bytes
    if as_json:
        records = [asdict(document) for document in documents]
        write_json({"folder": store.folder, "limit_bytes": limit_bytes, "size_bytes": size_bytes, "kept": records})
        return
    columns = [Column(name, overflow="fold") for name in ("used", "tokens", "size", "model", "documents")]
    table = Table(*columns, box=None)
    for document in documents:
        cells = (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(document.used)),
            f"{document.tokens:,}",
            _format_size(document.size_bytes),
            document.model,
            ", ".join(document.sources),
        )
        table.add_row(*(Text(replace_controls(cell)) for cell in cells))
    Console().print(table)
    write(f"{_format_size(size_bytes)} of {_format_size(limit_bytes)} in {store.folder}\n")


def remove(
    name: Annotated[list[str], typer.Argument(metavar="NAME", help="Names of files, as `cache ls` shows them.")],
    as_json: AsJson = False,
) -> None:
    """Remove stored documents by the name of a file that they were read from."""
    store = PrefillStore(status=print_notice)
    freed_bytes = sum(store.remove(source) for source in name)
    if as_json:
        write_json({"freed_bytes": freed_bytes})
    else:
        write(f"{_format_size(freed_bytes)} freed\n")


def clear(as_json: AsJson = False) -> None:
    """Remove all stored documents. Models stay."""
    freed_bytes = PrefillStore(status=print_notice).clear()
    if as_json:
        write_json({"freed_bytes": freed_bytes})
    else:
        write(f"{_format_size(freed_bytes)} freed\n")


def limit(
    size: Annotated[
        str | None,
        typer.Argument(metavar="SIZE", help="For example 500M or 10GB; 0 stores nothing.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show or set how many bytes may be stored.

    If there are more, the least recently used documents are removed.
    """
    store = PrefillStore(status=print_notice)
    if size is not None:
        store.limit_bytes = _parse_size(size)
    if as_json:
        write_json({"limit_bytes": store.limit_bytes})
    else:
        write(f"{_format_size(store.limit_bytes)}\n")


COMMANDS: dict[str, Callable[..., None]] = {"ls": list_documents, "rm": remove, "clear": clear, "limit": limit}


def _parse_size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise OptionError("size", "must be a number and a unit", got=text, remedy="use for example 500MB")
    size_bytes = Decimal(match["number"]) * UNITS[match["unit"].upper() + "B"]
    if size_bytes > MAX_LIMIT_BYTES:
        raise OptionError("size", f"must be at most {_format_size(MAX_LIMIT_BYTES)}", got=text)
    return int(size_bytes)


def _format_size(size_bytes: int) -> str:
    fitting = [unit for unit, unit_bytes in UNITS.items() if unit_bytes <= size_bytes]
    unit = fitting[-1] if fitting else "B"
    return f"{size_bytes / UNITS[unit]:.4g} {unit}"
