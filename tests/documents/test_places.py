"""Places of sentences name the page, the heading and the line."""

import pytest

from keywise.documents import Evidence, Source, read_file
from keywise.documents.places import Places, is_file_text
from tests.support.pdf import write_pages


def make_evidence(source, number=-1):
    quote = source.quotes[number]
    scores = (1.0, 1.0, 1.0, 1.0, 0.4, 1.0, 1.0, None, None, 1)
    path = quote.block.heading_path
    return Evidence(quote.text, quote.begin, quote.end, source.name, *scores, quote.page, quote.boxes, path)


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.txt", b"It is dry.\n\nIt rains.", "line 3"),
        ("a.txt", b"It is dry.\r\n\r\nIt rains.", "line 3"),
        ("a.txt", b"It is dry.\r\rIt rains.", "line 3"),
        ("README", b"It rains.", "line 1"),
        ("a.md", b"# Weather\n\n## Rain\n\nIt rains.", "§ Rain, line 5"),
        ("a.csv", b"day,rain\nMonday,2 mm\nTuesday,5 mm\n", "line 3"),
        ("a.html", b"<p>It is dry.</p><p>It rains.</p>", "sentence 2"),
        ("a.html", b"<h1>Rain</h1><p>It is dry.</p><p>It rains.</p>", "§ Rain"),
        ("a.pdf", write_pages([(60, 700, "It is dry.")], [(60, 700, "It rains.")]), "page 2"),
    ],
)
def test_a_place_is_what_a_reader_of_the_file_can_find(tmp_path, name, content, place):
    path = tmp_path / name
    path.write_bytes(content)
    source = read_file(path)
    assert Places([Source("other", "x y"), source]).describe(make_evidence(source)) == f"{path}, {place}"


def test_a_sentence_of_an_unknown_text_is_named_by_its_characters():
    source = Source("note.md", "It is dry. It rains.")
    assert Places().describe(make_evidence(source)) == "note.md, characters 11 to 20"


def test_lines_are_counted_in_texts_of_files_only():
    assert [is_file_text(Source(name, "It is dry.")) for name in ("a.tsv", "a", "a.log", "a.docx", "a.JSON")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    passage = Source("a.md, characters 9 to 19", "It is dry.", ())
    assert not is_file_text(passage)
