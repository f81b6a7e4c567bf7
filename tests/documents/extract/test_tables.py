"""A record of a CSV file is a sentence with the names of its columns."""

import pytest

from keywise.documents import Source
from keywise.documents.extract.tables import find_blocks, find_delimiter, has_header, names_columns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name,age\nAnn,41\nBo,\n", ["name; age", "name: Ann; age: 41", "name: Bo"]),
        ("name;price\nlamp;4,50\n", ["name; price", "name: lamp; price: 4,50"]),
        ("a\tb\nx y\t2\n", ["a; b", "a: x y; b: 2"]),
        ('\ufeff"q","a"\r\n"Who, me?","No.\nYou."\r\n', ["q; a", "q: Who, me?; a: No. You."]),
        ("1,2\n3,4\n", ["1; 2", "3; 4"]),
        ("town,2019,2020\nHull,5,6\n", ["town; 2019; 2020", "town: Hull; 2019: 5; 2020: 6"]),
    ],
)
def test_records_carry_the_names_of_their_columns(text, expected):
    source = Source("table", text, find_blocks(text))
    assert [quote.text for quote in source.quotes] == expected
    assert "".join(text[begin:end] for begin, end in source.sentences).replace("\n", "") == text.strip(
        "\ufeff"
    ).replace("\r\n", "").replace("\n", "")


def test_the_delimiter_is_found_outside_of_quoted_cells():
    assert find_delimiter('"a,b,c";1\n"d,e,f";2\n') == ";"


def test_numbers_are_no_header():
    assert not has_header([["1", "2"], ["3", "4"]])
    assert not has_header([["lamp", "red"]])
    assert not has_header([["x", "x"], ["1", "2"]])


def test_the_first_of_two_columns_names_the_rows_unless_all_values_are_numbers():
    assert names_columns([["Month", "Sales"], ["May", "10"], ["June", "12"]])
    assert not names_columns([["Name", "Ann"], ["Age", "30"], ["Fee", "5"]][1:])
    assert not names_columns([["Town", "Hull"], ["Owner", "Ann"], ["Fee", "5"]])
    assert names_columns([["Town", "Fee", "Owner"], ["Hull", "5", "Ann"]])
