"""Checks of the SQL of `where`, before Lance evaluates it."""

from __future__ import annotations

import re
from typing import Any, Final

from keywise.errors import DtypeError, OptionError
from keywise.library.lance_errors import read_reason
from keywise.library.null_characters import check_null_characters

MAX_TOKENS: Final = 2000
MAX_NESTING: Final = 32
"""Lance parses and plans recursively; both limits keep far below the depth that would exhaust its stack."""

FUNCTIONS: Final = frozenset(
    re.findall(
        r"\w+",
        """
        abs array_contains array_has array_has_all array_has_any array_length array_position arrow_typeof ascii
        bit_length btrim cardinality ceil char_length character_length coalesce concat concat_ws contains cos
        current_date date_bin date_part date_trunc ends_with exp extract floor greatest initcap instr isnan iszero least
        left length ln log log10 log2 lower ltrim md5 mod now nullif octet_length position pow power regexp_like
        regexp_match reverse right round rtrim sha256 sign sin split_part sqrt starts_with strpos substr substring
        to_date to_timestamp trim trunc upper
        """,
    )
)
"""Functions whose results are not much larger than their arguments. Others, such as `repeat`, can exhaust memory."""

_KEYWORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """
        all and any between both by case cast char character date datetime decimal distinct else escape from ilike in
        interval is leading like not numeric or similar some then time timestamp to trailing try_cast varchar when
        """,
    )
)
"""Words before a parenthesis that call no function."""

_TOKEN: Final = re.compile(
    r"""
    (?P<space>\s+)
    | (?P<text>'(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*`)
    | (?P<number>\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)?)
    | (?P<word>[^\W\d]\w*)
    | (?P<symbol>::|<=|>=|<>|!=|!~\*|!~|~\*|\|\||->>|->|[-+*/%=<>(),.\[\]{}:&|^~])
    """,
    re.VERBOSE,
)


def check_where(dataset: Any, where: Any, path: str) -> str:
    """Return SQL that is one expression over the columns, or raise.

    Parameters
    ----------
    dataset
        The library's Lance dataset.
    where
        The argument.
    path
        The library, for messages.

    Returns
    -------
    str
        The same text.

    Raises
    ------
    DtypeError
        The argument is not a text.
    OptionError
        It is no expression, calls a function that is not allowed, or names other columns.
    FormatError
        A column that it names has null characters.
    """
    if not isinstance(where, str):
        raise DtypeError("where", "must be a text of Lance SQL", got=where)
    _check_tokens(where)
    try:
        dataset.scanner(columns=[], filter=enclose(where), with_row_id=True).explain_plan()
    except (ValueError, OSError, TypeError, RuntimeError, KeyError) as error:
        raise _make_error(where, read_reason(error)) from error
    check_null_characters(path, dataset, [name for name in dataset.schema.names if _may_name(where, name)])
    return where


def _may_name(where: str, column: str) -> bool:
    """Return whether SQL may name a column; one with quotation marks can be written in several ways."""
    return column.lower() in where.lower() or any(mark in column for mark in "`'\"")


def enclose(where: str) -> str:
    """Return SQL in parentheses, so that nothing but an expression parses."""
    return f"({where})"


def _check_tokens(where: str) -> None:
    """Raise unless a text consists of a few tokens of expressions, with allowed functions only."""
    if "\0" in where:  # Lance ends the process when its own message has one
        raise _make_error(where, "it must not have null characters")
    position = 0
    count = 0
    nesting = 0
    previous = ""
    previous_kind = ""
    while position < len(where):
        match = _TOKEN.match(where, position)
        if match is None or where.startswith(("--", "/*"), position):
            raise _make_error(where, f"{where[position : position + 2]!r} at character {position} is no part of one")
        token = match[0]
        kind = str(match.lastgroup)
        if kind == "text" and previous_kind == "word" and previous.lower() not in _KEYWORDS:
            raise _make_error(where, f"{previous + token[:1]!r} before character {position} is no part of one")
        if token == "(" and previous_kind == "text":
            raise _make_error(where, f"{previous!r} before character {position} is no function")
        if token == "(" and previous_kind == "word" and previous.lower() not in FUNCTIONS | _KEYWORDS:
            allowed = ", ".join(sorted(FUNCTIONS))
            raise _make_error(where, f"the function {previous!r} is not allowed; these are: {allowed}")
        nesting += (token in ("(", "[", "{")) - (token in (")", "]", "}"))
        if nesting < 0:
            raise _make_error(where, f"the parenthesis at character {position} closes nothing")
        if kind != "space":
            count += 1
            previous = token
            previous_kind = kind
        if count > MAX_TOKENS or nesting > MAX_NESTING:
            raise _make_error(where[:100], f"it may have {MAX_TOKENS} words and signs, nested {MAX_NESTING} deep")
        position = match.end()
    if not count:
        raise _make_error(where, "leave it out to use every row")


def _make_error(where: str, reason: str) -> OptionError:
    return OptionError("where", "must be Lance SQL over the columns", got=where, remedy=reason)
