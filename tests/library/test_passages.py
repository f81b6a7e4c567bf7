"""A passage has the sentences that were added to the library."""

from __future__ import annotations

from pathlib import Path

import keywise as kw
from keywise.library.passages import choose_passages
from tests.support.library_tools import WordEncoder


def test_rows_of_a_passage_keep_their_header_and_headings(tmp_path: Path) -> None:
    table = "| region | units |\n| --- | --- |\n| North | 12 |\n| South | 7 |"
    text = f"# Sales\n\n{table}\n\nAll *other* regions sold nothing."
    (tmp_path / "sales.md").write_text(text, encoding="utf-8")
    library = kw.Library.open(tmp_path / "library", "a", encoder=WordEncoder())
    library.add([tmp_path / "sales.md"])
    passages = choose_passages(library, "units of region South", max_tokens=99, count_tokens=len)
    source = passages[0].source
    assert source.text == "| North | 12 |\n| South | 7 |"
    assert [quote.text for quote in source.quotes] == ["region: North; units: 12", "region: South; units: 7"]
    assert [source.text[start:end] for start, end in source.sentences] == ["| North | 12 |", "| South | 7 |"]
    assert {quote.block.heading_path for quote in source.quotes} == {("Sales",)}
    assert text[passages[0].start : passages[0].end] == source.text
    (last,) = choose_passages(library, "All other regions", max_tokens=40, count_tokens=len)
    assert last.text == "All *other* regions sold nothing."
    assert [quote.text for quote in last.source.quotes] == ["All other regions sold nothing."]
