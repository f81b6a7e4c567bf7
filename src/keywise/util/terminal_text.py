"""Text that is safe to print on a terminal."""

from __future__ import annotations

import json
import re
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def replace_controls(text: str) -> str:
    r"""Replace control characters by U+FFFD.

    A terminal would execute them. Newlines and tabs are unchanged.

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


def format_json(value: Any) -> str:
    r"""Return a value as indented JSON that is safe on a terminal.

    Parameters
    ----------
    value : object
        Dicts, lists, strings, numbers, bools and None; anything else is written as its ``str``.

    Returns
    -------
    str
        Ends with a newline.

    Examples
    --------
    >>> format_json({"a": 1})
    '{\n  "a": 1\n}\n'
    """
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    # JSON leaves these characters unescaped, and a terminal may execute them.
    return re.sub(r"[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"
