"""Text that is safe to print on a terminal."""

from __future__ import annotations

import json
import re
from typing import Any

# Embeddings, overrides and isolates of the bidirectional algorithm: they show text in another order than it is read.
_BIDIRECTIONAL = r"\u202a-\u202e\u2066-\u2069"
_LINE_SEPARATORS = r"\u2028\u2029"
_SURROGATES = r"\ud800-\udfff"  # from file names that are not UTF-8; no terminal can encode them
_CONTROLS = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDIRECTIONAL}{_LINE_SEPARATORS}{_SURROGATES}]")
# JSON leaves these characters unescaped.
_UNESCAPED_BY_JSON = re.compile(rf"[\x7f-\x9f{_BIDIRECTIONAL}{_LINE_SEPARATORS}{_SURROGATES}]")


def replace_controls(text: str) -> str:
    r"""Replace control characters by U+FFFD.

    A terminal would execute them, or show the text behind a bidirectional control in another order. Newlines and tabs
    are unchanged.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    str
        With ``\r\n`` as ``\n``.

    Examples
    --------
    >>> replace_controls("a \x1b[31mred\x07 word\n")
    'a \ufffd[31mred\ufffd word\n'
    """
    return _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n"))


def format_json(value: Any, *, indent: int | None = 2) -> str:
    r"""Return a value as JSON that is safe on a terminal.

    Parameters
    ----------
    value : object
        Dicts, lists, strings, numbers, bools and None; anything else is written as its ``str``.
    indent : int, optional
        Spaces per level; None for one line.

    Returns
    -------
    str
        Ends with a newline.

    Examples
    --------
    >>> format_json({"a": 1})
    '{\n  "a": 1\n}\n'
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=str)
    return _UNESCAPED_BY_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"
