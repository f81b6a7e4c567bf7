"""SQL of `where`: rows for which it holds, or `OptionError`."""

import numpy as np

import keywise as kw
from keywise.errors import OptionError
from keywise.library.where import FUNCTIONS
from tests.fuzz.targets.choices import Bytes
from tests.fuzz.targets.files import make_folder

ROWS = 6
_TEXTS = ("one", "two; three", "it's", "a -- b", "(five", "/* six */")
_PIECES = (
    *("number", "group", "`odd name`", "_rowid", "key", "colour", "true", "null", "'one'", "'%'", "'('", "''", '"a"'),
    *("0", "1", "-1", "2.5", "1e308", "9223372036854775807", "99999999999999999999", "'2020-01-01'", "'1 month'"),
    *("(", "(", ")", ")", "[", "]", "{", "}", ",", ".", "::", "=", "<", ">=", "!=", "+", "-", "*", "/", "%", "||", "~"),
    *("and", "or", "not", "in", "is", "like", "ilike", "between", "escape", "case", "when", "then", "else", "end"),
    *("cast", "try_cast", "as", "bigint", "double", "varchar", "date", "timestamp", "interval", "decimal", "time"),
    *("extract", "from", "exists", "any", "all", "distinct", "at", "zone", "similar", "to", "select", "--", ";", "$1"),
    *sorted(FUNCTIONS),
    "repeat",
)
_PIECED = 0xFF
"""First byte of inputs that choose pieces; it begins no text in UTF-8."""
_EXPRESSIONS = (
    "number < 2",
    "group = 'it''s' OR `odd name` = 1 AND NOT (number IN (1, 2))",
    "lower(group) LIKE '%e' escape '!' or abs(-number) = 4",
    "CAST(number AS DOUBLE) * 2.5e0 >= 10 and group IS NOT NULL",
    "regexp_like(group, '^[a-z]+$') and number between 1 and 3",
    "case when number = 1 then true else group ~ 'a' end",
    "date_bin(interval '1 month', to_timestamp(number)) < current_date",
    "array_has([number, 2], 2) and arrow_typeof(key) is not null",
    "date_part('year', cast('2020-01-01' as date)) = 2020",
    "substr(group, number, 2) = right(group, -number)",
)


def _make_library() -> kw.Library:
    path = make_folder() / "library"
    library = kw.Library.open(path, "a")
    columns = {"number": np.arange(ROWS), "group": list(_TEXTS), "odd name": np.arange(ROWS) % 2}
    library.add_keys(np.eye(ROWS), **columns)
    return kw.Library.open(path)


_LIBRARY = _make_library()


def make_seeds() -> list[bytes]:
    """Return expressions, and choices of pieces."""
    random_numbers = np.random.default_rng(0)
    pieced = [bytes([_PIECED]) + random_numbers.bytes(8) for _ in range(30)]
    return [*(text.encode() for text in _EXPRESSIONS), *pieced]


def execute(data: bytes) -> None:
    """Attend to the rows for which an expression holds, and to those for which its opposite holds."""
    where = _write_pieces(data[1:]) if data[:1] == bytes([_PIECED]) else data.decode("utf-8", "surrogateescape")
    selected = _select(where)
    if selected is None:
        return
    rest = _select(f"not ({where})")
    assert rest is None or not selected & rest, "a row is selected by an expression and by its opposite"


def _select(where: str) -> set[int] | None:
    """Return the selected rows; None if the expression is refused."""
    try:
        attention = _LIBRARY.attend(np.zeros(ROWS), where=where, top=ROWS)
    except OptionError as error:
        if error.argument != "where" or len(str(error).splitlines()) != 1:
            raise AssertionError("the message is not a line about the expression") from error
        return None
    rows = [match["number"] for match in attention.matches[0]]
    assert len(rows) == len(set(rows))
    assert set(rows) <= set(range(ROWS)), "a row was selected that is not there"
    return set(rows)


def _write_pieces(data: bytes) -> str:
    numbers = Bytes(data)
    return " ".join(numbers.choose(_PIECES) for _ in range(len(data)))
