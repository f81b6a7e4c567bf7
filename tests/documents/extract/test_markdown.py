"""Markdown becomes blocks whose text has no marks and whose spans point into the file."""

import pytest

from keywise.documents import Source, read_file
from keywise.documents.extract.markdown import find_blocks

MANUAL = """\ufeff---
title: Pump
---

# Pump *P-7*

Run `make_all` and **do not** touch [the valve](https://valve.example/a "b c").
It is\\_hot &amp; ~~cold~~ loud. ![A pump](pump.png)

| Part | Price |
| ---- | ----: |
| `seal` | £4 \\| 5 |

4. four
5. five
   - nested _item_

> Never
> open it.

```sh
pump --start
```
<!-- hidden words -->
"""


def test_text_has_no_marks():
    assert [(str(block.kind), block.text) for block in find_blocks(MANUAL)] == [
        ("line", "title: Pump"),
        ("heading", "Pump P-7"),
        ("paragraph", "Run make_all and do not touch the valve. It is_hot & cold loud. A pump"),
        ("table header", "Part; Price"),
        ("table row", "Part: seal; Price: £4 | 5"),
        ("list item", "4. four"),
        ("list item", "5. five"),
        ("list item", "nested item"),
        ("paragraph", "Never open it."),
        ("code", "pump --start"),
    ]


def test_spans_point_into_the_file(tmp_path):
    path = tmp_path / "manual.md"
    path.write_bytes(MANUAL.replace("\n", "\r\n").encode())
    source = read_file(path)
    assert source.text == MANUAL.replace("\n", "\r\n")
    spans = {quote.text: source.text[quote.begin : quote.end] for quote in source.quotes}
    assert spans["It is_hot & cold loud."] == "It is\\_hot &amp; ~~cold~~ loud."
    assert spans["Pump P-7"] == "# Pump *P-7*"
    assert spans["Part: seal; Price: £4 | 5"] == "| `seal` | £4 \\| 5 |"
    assert spans["nested item"] == "- nested _item_"
    assert spans["Never open it."] == "> Never\r\n> open it."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**One.** _Two._ Three.", ["One.", "Two.", "Three."]),
        ("Paid by [Ltd.](x) in Hull. Good.", ["Paid by Ltd. in Hull.", "Good."]),
        ("In the year\n1904. It sank.", ["In the year 1904.", "It sank."]),
        ("a<br>b", ["a b"]),
        ("<https://ferry.example/a_b> is the page.", ["https://ferry.example/a_b is the page."]),
    ],
)
def test_sentences_are_shown_without_marks(text, expected):
    source = Source("note", text, find_blocks(text))
    assert [quote.text for quote in source.quotes] == expected
    letters = "".join(text[begin:end] for begin, end in source.sentences)
    assert all(word.strip(".") in letters for quote in expected for word in quote.split() if word != "b")


def test_deeply_nested_marks_are_read_in_time(tmp_path):
    path = tmp_path / "deep.md"
    path.write_text("> " * 3000 + "deep\n\n" + "[" * 5000 + "a" + "*a_" * 5000 + "\n\nThe end.", encoding="utf-8")
    assert read_file(path).quotes[-1].text == "The end."
