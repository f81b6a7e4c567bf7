"""Blocks of JSON and JSON lines: a record is a row, a value a line with the path of its key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from keywise.documents.blocks import BlockBuilder, BlockKind, render_row
from keywise.documents.extract.encodings import decode_text
from keywise.documents.extract.extracted import Extracted, UnreadableFileError

MAX_RECORD_CHARACTERS: Final = 600
_PROSE_WORDS: Final = 30


def extract(content: bytes) -> Extracted:
    r"""Return the text and blocks of a JSON file, or of one with a JSON value per line.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    UnreadableFileError
        It is not valid JSON.

    Examples
    --------
    >>> extract(b'[{"lamp": "red", "size": {"m": 2}}, {"lamp": "blue"}]').text
    'lamp: red; size.m: 2\nlamp: blue'
    """
    text = decode_text(content)[0].removeprefix("\ufeff")
    builder = BlockBuilder()
    try:
        values = [_parse(text)]
    except json.JSONDecodeError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            values = [_parse(line) for line in lines]
        except json.JSONDecodeError:
            values = []
        if len(values) < 2:
            raise UnreadableFileError(f"line {error.lineno} is not valid: {error.msg}") from error
    except RecursionError as error:
        raise UnreadableFileError("its values are nested too deeply") from error
    _add_value(builder, values[0] if len(values) == 1 else values, ())
    return Extracted(builder.text, tuple(builder.blocks))


def _parse(text: str) -> Any:
    # Numbers stay as they are written.
    return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)


def _add_value(builder: BlockBuilder, value: Any, path: tuple[str, ...]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _add_value(builder, item, (*path, str(key)))
    elif isinstance(value, list):
        for number, item in enumerate(value, start=1):
            cells = dict(_flatten(item, ()))
            row = render_row(list(cells.values()), list(cells))
            if isinstance(item, dict | list) and len(row) > MAX_RECORD_CHARACTERS:
                builder.enter_section(" ".join([*path, str(number)]), level=1)
                _add_value(builder, item, path)
            elif isinstance(item, dict):
                builder.add(BlockKind.TABLE_ROW, row, table_header=list(cells))
            else:
                builder.add(BlockKind.LINE, f"{'.'.join(path)}: {row}" if path else row)
    elif value is not None:
        text = _to_text(value)
        if len(text.split()) > _PROSE_WORDS:
            builder.enter_section(".".join(path), level=2)
            builder.add(BlockKind.PARAGRAPH, text)
        else:
            builder.add(BlockKind.LINE, f"{'.'.join(path)}: {text}" if path else text)


def _flatten(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every value in a record; a list of plain values is one."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, (*path, str(key)))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for number, item in enumerate(value, start=1):
            yield from _flatten(item, (*path, str(number)))
    elif isinstance(value, list):
        yield ".".join(path), ", ".join(_to_text(item) for item in value)
    else:
        yield ".".join(path), _to_text(value)


def _to_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
