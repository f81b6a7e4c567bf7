"""Plain text becomes paragraphs, headings, lists, messages and rows by its lines."""

import time

import pytest

from keywise.documents import Source
from keywise.documents.extract.plain import find_blocks


def describe(text):
    return [(str(block.kind), block.text) for block in find_blocks(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The ferry was built in\n1904. It sank.", [("paragraph", "The ferry was built in 1904. It sank.")]),
        ("They sell it for\n12) pounds or for\n7. So be it.", [
            ("paragraph", "They sell it for 12) pounds or for 7. So be it."),
        ]),
        ("We need:\n1. bread\n2. milk", [
            ("paragraph", "We need:"), ("list item", "1. bread"), ("list item", "2. milk"),
        ]),
        ("- one\n  goes on\n* two", [("list item", "one goes on"), ("list item", "two")]),
        ("The har-\nbour is deep.", [("paragraph", "The harbour is deep.")]),
        ("A well-known port, a well-\nknown port.", [("paragraph", "A well-known port, a well-known port.")]),
        ("The pre-\nand post-war era.", [("paragraph", "The pre- and post-war era.")]),
        ("日本語は\n続く。", [("paragraph", "日本語は続く。")]),
        ("It is  very   wet.", [("paragraph", "It is very wet.")]),
        ("See _The Tempest_ and snake_case_name.", [("paragraph", "See The Tempest and snake_case_name.")]),
        ("> Quoted\n> words.", [("paragraph", "Quoted words.")]),
        ("---\ntitle: Lamps\ndate: 2024\n---\nIt is lit.", [
            ("line", "title: Lamps"), ("line", "date: 2024"), ("paragraph", "It is lit."),
        ]),
        ("Chair:    Ann Low\nPresent:  Bo Day,\n          Cy Fox\n", [
            ("line", "Chair: Ann Low"), ("line", "Present: Bo Day, Cy Fox"),
        ]),
        ("Part One ........ 7\nPart Two ....... 19", [
            ("contents line", "Part One ........ 7"), ("contents line", "Part Two ....... 19"),
        ]),
        ("town     people   height\nHull     267014   0\nYork     141685   17\nLeeds    536280   63", [
            ("table header", "town; people; height"),
            ("table row", "town: Hull; people: 267014; height: 0"),
            ("table row", "town: York; people: 141685; height: 17"),
            ("table row", "town: Leeds; people: 536280; height: 63"),
        ]),
        ("```\nx = 1\n\ny = 2\n```\nend", [("code", "x = 1"), ("code", "y = 2"), ("paragraph", "end")]),
        ("NAME\n       tar - an archiver\n", [("heading", "NAME"), ("paragraph", "tar - an archiver")]),
        ("SYNOPSIS\n       tar -c [FILE...]\n              [OPTION]\n       tar -x\n", [
            ("heading", "SYNOPSIS"), ("paragraph", "tar -c [FILE...] [OPTION]"), ("paragraph", "tar -x"),
        ]),
        ("  These terms are used in all of the rest of this long har-\n  bour.\n  blank  A space.\n"
         "  word   A sequence of characters that the shell takes\n         as one.\n", [
            ("paragraph", "These terms are used in all of the rest of this long harbour."),
            ("paragraph", "blank A space."),
            ("paragraph", "word A sequence of characters that the shell takes as one."),
        ]),
        ("for lamp in lamps:\n    lamp.light()\n    Low.sees(lamp)\nfinish()", [
            ("paragraph", "for lamp in lamps: lamp.light() Low.sees(lamp) finish()"),
        ]),
        ("They shall eat the goose,\n    And we will eat the roast,\nIn every land,\n    The land where we go.", [
            ("paragraph", "They shall eat the goose, And we will eat the roast, In every land, The land where we go."),
        ]),
        ("名前\n       tar - 書庫\n", [("heading", "名前"), ("paragraph", "tar - 書庫")]),
        ("Use it with all of the files\n--root or without it.", [
            ("paragraph", "Use it with all of the files --root or without it."),
        ]),
        ("Above the rule:\n------------------\nbelow it.", [
            ("heading", "Above the rule:"), ("paragraph", "below it."),
        ]),
        ("RULES OF THE CLUB\nBe kind.", [("heading", "RULES OF THE CLUB"), ("paragraph", "Be kind.")]),
    ],
)  # fmt: skip
def test_lines_become_blocks(text, expected):
    assert describe(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "[14.02.2023, 07:59:02] Zoë: up?\n[14.02.2023, 08:01:10] Ben: no\nreally not\n[14.02.2023, 08:02:44] Zoë: ok",
        "14/02/23, 7:59 am - Zoë: up?\n14/02/23, 8:01 am - Ben: no\nreally not\n14/02/23, 8:02 am - Zoë: ok",
        "[07:59] <zoe> are you up?\n[08:01] <ben> no\nreally not\n[08:02] <zoe> ok",
        "Zoë: are you up?\nBen: no\nZoë: come on\nBen: ok",
    ],
)
def test_a_message_of_a_chat_is_one_sentence_with_its_speaker(text):
    source = Source("chat", text)
    assert {quote.block.kind for quote in source.quotes} == {"chat line"}
    assert len(source.quotes) == text.count("\n") + 1 - text.count("\nreally")
    assert any("Ben" in quote.text or "ben" in quote.text for quote in source.quotes if "no" in quote.text)


def test_paragraphs_with_colons_and_times_are_no_chat():
    text = "Note: the shop opens at 9:00. Come early.\n\nIt rains.\n\nThe end: now."
    assert "chat line" not in {kind for kind, _ in describe(text)}


def test_log_lines_are_sentences():
    text = "2024-03-01 10:00:01 start. Ready.\n2024-03-01 10:00:02 disk full\n2024-03-01 10:00:03 stop\n"
    assert describe(text) == [("line", line) for line in text.splitlines()]


def test_fields_of_a_mail_are_sentences_and_its_text_is_prose():
    text = "From: Ann Low\nTo: Bo Day\nSubject: Lamp\n\nDear Bo,\nthe lamp is lit. Come and see it."
    assert [kind for kind, _ in describe(text)] == ["mail line"] * 3 + ["paragraph"]


def test_blocks_know_the_headings_they_stand_under():
    blocks = find_blocks("# Ships\n\n## Ferries\n\nOne sank.\n\n# Ports\n\nAll are deep.")
    assert [block.heading_path for block in blocks if block.kind == "paragraph"] == [("Ships", "Ferries"), ("Ports",)]


def test_spoken_lines_and_sentences_are_no_headings():
    text = "“Who is there?”\n\nNobody answered the old woman, so that she went to bed.\n\n(A pause.)\n\nThen it rang."
    assert all(kind == "paragraph" for kind, _ in describe(text))


def test_spans_point_to_the_characters_that_are_shown():
    text = "\ufeffThe  ship_yard is an\r\nold  _ship_-\r\nyard. It is  dry.\r\n\r\n* First  item\r\n"
    source = Source("note", text)
    assert [quote.text for quote in source.quotes][-2:] == ["It is dry.", "First item"]
    for quote in source.quotes:
        assert text[quote.begin : quote.end] == text[quote.begin : quote.end].strip("\ufeff \r\n")
    for block in find_blocks(text):
        for position, character in enumerate(block.text):
            if not character.isspace():
                assert text[block.locate(position, position + 1)[0]] == character


def test_time_grows_with_the_length_of_a_text():
    """Twenty times the text takes less than sixty times as long."""
    unit = "The lamp of the old tower was lit again, and the ships came home. \n"

    def measure(repetitions: int) -> float:
        start = time.process_time()
        assert len(Source("text", unit * repetitions).sentences) == repetitions
        return time.process_time() - start

    short = min(measure(300) for _ in range(3))
    assert measure(6000) < 60 * short + 0.5
