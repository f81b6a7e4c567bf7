"""Text that is safe to print on a terminal."""

from __future__ import annotations

import json
import re
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def replace_controls(text: str) -> str:
    r"""Replace control characters, which a terminal would obey, by U+FFFD.

    Line ends and tabs stay.

    Parameters
    ----------
    text
        Any text.

    Examples
    --------
    >>> replace_controls("a \x1b[31mred\x07 word\n")
    'a \ufffd[31mred\ufffd word\n'
    """
    return _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n"))


def format_json(value: Any) -> str:
    r"""Return plain values as indented JSON that is safe on a terminal.

    Parameters
    ----------
    value
        Plain values; anything else is written as its text.

    Examples
    --------
    >>> format_json({"a": 1})
    '{\n  "a": 1\n}\n'
    """
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    # JSON lets these pass as they are, and a terminal may obey them.
    return re.sub(r"[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"
