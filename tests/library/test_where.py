"""`where`: expressions are evaluated, anything else is refused, and errors name it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

import keywise as kw
from keywise.errors import DtypeError, FormatError, OptionError
from keywise.library.library import Library
from keywise.library.where import MAX_NESTING


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    library = kw.Library.open(tmp_path_factory.mktemp("where") / "library", "a")
    texts = ["one", "two; three", "it's", "a -- b", "(five", "/* six */"]
    library.add_keys(np.eye(6), number=np.arange(6), group=texts, **{"odd name": np.arange(6) % 2})
    return kw.Library.open(library.path)


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("number < 2", {0, 1}),
        ("group = 'two; three'", {1}),
        ("group = 'it''s' OR group = 'a -- b'", {2, 3}),
        ("group LIKE '(%' AND NOT (number IN (1, 2))", {4}),
        ("group = '/* six */'", {5}),
        ("`odd name` = 1", {1, 3, 5}),
        ("lower(group) = 'one' or abs(-number) = 4", {0, 4}),
        ("number BETWEEN 1 AND 2 AND group IS NOT NULL", {1, 2}),
        ("CAST(number AS DOUBLE) * 2.5e0 >= 10", {4, 5}),
        ("regexp_like(group, '^[a-z]+$')", {0}),
        ("  number\n=\n1  ", {1}),
        ("((((number = 2))))", {2}),
        ("number IN (" + ", ".join(map(str, range(3, 500))) + ")", {3, 4, 5}),
        (" OR ".join(f"number = {number}" for number in range(100)), set(range(6))),
    ],
)
def test_expressions_select_rows(library: Library, where: str, numbers: set[int]) -> None:
    attention = library.attend(np.zeros(6), where=where, top=6)
    assert {match["number"] for match in attention.matches[0]} == numbers


@pytest.mark.parametrize(
    "where",
    [
        "",
        "  ",
        ";",
        "number = 1;",
        "1=1; SELECT 1",
        "1=1; DROP TABLE x",
        "number = 1) OR (1 = 1",
        "number = 1 LIMIT 1",
        "number = 1 ORDER BY number",
        "number = 1 UNION SELECT 1",
        "number = 1 -- comment",
        "number = 1 /* comment */",
        "number = (SELECT 1)",
        "EXISTS (SELECT 1)",
        "number = $1",
        "number = ?",
        "number = 'open",
        "number = E'\\'' OR 1=1",
        "count(*) > 1",
        "number",
        "'text'",
        "number + 1",
        "colour = 1",
        "number = 1 AND",
        "\0",
        "number = 1 \ud800",
        "group = '\udce9'",
        "group = 'a\0b' = 3",
        "date_part('\0ar', cast('2020-01-01' as date)) = 2020",
        # Functions that could exhaust the memory.
        "array_repeat(1, 10000000000) IS NOT NULL",
        "repeat('a', 10000000000) = 'b'",
        '"array_repeat"(1, 10000000000) IS NOT NULL',
        "`repeat`('a', 10000000000) = 'b'",
        "REPEAT ('a', 10000000000) = 'b'",
        "lpad('a', 2000000000, 'b') = 'c'",
        "array_length(range(0, 10000000000)) > 1",
        "replace(replace(group, 'a', 'aaaaaaaa'), 'a', 'aaaaaaaa') = 'b'",
        "generate_series(1, 10000000000) IS NULL",
        # Errors on a row.
        "1/0 = 1",
        "number / 0 = 1",
        "CAST(group AS BIGINT) = 3",
        "number % 0 = 1",
        "regexp_like(group, '(')",
        "group > 5",
        # Depth that would exhaust the stack.
        "(" * 10_000 + "1=1" + ")" * 10_000,
        "NOT " * 10_000 + "true",
        "- " * 10_000 + "number = 1",
        " AND ".join(["number = 1"] * 20_000),
        "[" * (MAX_NESTING + 1),
    ],
)
def test_everything_else_is_refused_by_name(library: Library, where: str) -> None:
    with pytest.raises(OptionError, match="where must be") as error:
        library.attend(np.zeros(6), where=where)
    assert error.value.argument == "where"
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("where", [3, b"number = 1", ["number = 1"], True])
def test_other_types_are_refused(library: Library, where: object) -> None:
    with pytest.raises(DtypeError, match="where must be a text of Lance SQL"):
        library.attend(np.zeros(6), where=where)


def test_candidates_refuse_errors_of_rows_too(library: Library) -> None:
    writable = kw.Library.open(library.path, "a")
    writable.index(num_partitions=1)
    for where in ("CAST(group AS BIGINT) = 3", "1=1; SELECT 1"):
        with pytest.raises(OptionError, match="where must be"):
            writable.attend(np.ones(6), where=where, approximate=True, candidates=3)


FOREIGN = """
import sys, numpy as np, keywise as kw
library = kw.Library.open(sys.argv[1])
assert len(library.attend(np.ones(2), where="number < 2", top=3).matches[0]) == 2
for where in sys.argv[2:]:
    try:
        library.attend(np.ones(2), where=where)
    except kw.KeywiseError as error:
        print(error)
"""


def test_null_characters_of_another_tools_texts_are_refused(tmp_path: Path) -> None:
    """Lance would end the process: its message about the cast has the null character."""
    library = kw.Library.open(tmp_path / "library", "a")
    library.add_keys(np.eye(2), number=[0, 1], group=["1", "2"], note=["x", "y"])
    row = library.dataset.to_table().slice(0, 1).to_pylist()[0] | {"number": 2, "group": "c\0d"}
    lance.write_dataset(pa.Table.from_pylist([row], library.dataset.schema), library.path, mode="append")
    wheres = ["CAST(GROUP AS BIGINT) = 3", "group::bigint > 5", "number = 2 AND try_cast(group AS INT) IS NULL"]
    command = [sys.executable, "-c", FOREIGN, library.path, *wheres]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert all("without null characters in texts; column 'group' has one" in line for line in lines), lines


def test_null_characters_in_nested_columns_are_found(tmp_path: Path) -> None:
    library = kw.Library.open(tmp_path / "library", "a")
    library.add_keys(np.eye(2), number=[0, 1])
    tags = pa.array([[{"name": "a"}], [{"name": "b"}, {"name": "c\0"}]])
    library.dataset.add_columns(pa.table({"tags": tags}).to_reader())
    opened = kw.Library.open(library.path)
    assert opened.attend(np.ones(2), where="number = 1").rows.size
    with pytest.raises(FormatError, match="column 'tags' has one"):
        opened.attend(np.ones(2), where="array_length(tags) = 2")
