"""A PDF is read in the order of its columns, without what runs on every page, with the places of its words."""

import io

import numpy as np
import pypdfium2
import pytest

from keywise.documents import Source, read_file
from keywise.documents.evidence import list_evidence, score_sentences
from keywise.documents.extract.pdf import extract
from keywise.documents.extract.pdf_layout import find_columns
from keywise.documents.extract.pdf_words import make_fragments, read_words
from keywise.documents.heads import ATTENTION, LEXICAL, Heads
from keywise.documents.scoring import EvidenceStats
from keywise.errors import FormatError
from tests.support.pdf import write_pages

LEFT = [
    "The ferry was built in Hull and",
    "sailed to the islands every day",
    "of the week except in winter. It",
    "burned in a storm near the har-",
]
RIGHT = [
    "bour in 1904, and nobody was",
    "hurt. A new ferry was ordered in",
    "the same year. It was faster and",
    "it had room for forty horses.",
]


def place(lines, left, top, step=12):
    return [(left, top - step * number, line) for number, line in enumerate(lines)]


def describe(extracted):
    return [(str(block.kind), block.text) for block in extracted.blocks]


def quote(extracted):
    return [each.text for each in Source("paper", extracted.text, extracted.blocks).quotes]


def test_columns_are_read_one_after_the_other_below_their_title():
    # As some programs write them: line by line across both columns.
    rows = [item for pair in zip(place(LEFT, 60, 700), place(RIGHT, 310, 700), strict=True) for item in pair]
    extracted = extract(
        write_pages([(60, 760, "Ferries of the Northern Islands and their Harbours", 18, "bold"), *rows])
    )
    assert quote(extracted) == [
        "Ferries of the Northern Islands and their Harbours",
        "The ferry was built in Hull and sailed to the islands every day of the week except in winter.",
        "It burned in a storm near the harbour in 1904, and nobody was hurt.",
        "A new ferry was ordered in the same year.",
        "It was faster and it had room for forty horses.",
    ]
    assert extracted.blocks[1].heading_path == ("Ferries of the Northern Islands and their Harbours",)


def test_running_headers_footers_and_page_numbers_are_left_out():
    pages = []
    for number in (1, 2, 3):
        body = place([f"On page {number} the ferry sails to the", "next island and back to the pier."], 60, 700)
        pages.append([(60, 800, f"Journal of Ferries {number}"), *body, (290, 40, f"Page {number} of 3")])
    assert quote(extract(write_pages(*pages))) == [
        f"On page {number} the ferry sails to the next island and back to the pier." for number in (1, 2, 3)
    ]


def test_a_sentence_goes_on_on_the_next_page():
    pages = [
        [
            *place(["The ferry left the pier at noon and", "then it sailed around the whole of the"], 60, 700),
            (290, 40, "7"),
        ],
        [
            *place(["northern island. It came back at ten.", "Everybody was asleep by that time."], 60, 700),
            (290, 40, "8"),
        ],
    ]
    extracted = extract(write_pages(*pages))
    assert "then it sailed around the whole of the northern island." in extracted.text
    source = Source("paper", extracted.text, extracted.blocks)
    assert [each.page for each in source.quotes] == [1, 2, 2]
    assert [box.page for box in source.quotes[0].boxes] == [1, 1, 2]


def test_a_table_becomes_rows_with_the_names_of_its_columns():
    prose = place(["The boats of the line and their size are listed", "below in the order of their age."], 60, 760)
    cells = [("Boat", "Built", "Seats"), ("Ida", "1904", "40"), ("Old Vera", "1931", "112")]
    rows = [
        (60 + 120 * column, 700 - 14 * row, cell) for row, line in enumerate(cells) for column, cell in enumerate(line)
    ]
    caption = [(60, 640, "Table 1: Boats of the line.")]
    assert describe(extract(write_pages([*prose, *rows, *caption])))[-4:] == [
        ("table header", "Boat; Built; Seats"),
        ("table row", "Boat: Ida; Built: 1904; Seats: 40"),
        ("table row", "Boat: Old Vera; Built: 1931; Seats: 112"),
        ("caption", "Table 1: Boats of the line."),
    ]


def test_headings_items_and_footnotes_are_blocks_of_their_own():
    page = [
        (60, 780, "2 Fares", 12, "bold"),
        *place(
            ["Fares are paid on board and not at the pier, as", "the pier has no office. They are listed here:"],
            60,
            760,
        ),
        *place(["• adults 4 pounds", "• children 2 pounds"], 60, 730),
        (60, 90, "1 Horses travel for free if they can swim.", 8),
    ]
    assert describe(extract(write_pages(page))) == [
        ("heading", "2 Fares"),
        ("paragraph", "Fares are paid on board and not at the pier, as the pier has no office. They are listed here:"),
        ("list item", "adults 4 pounds"),
        ("list item", "children 2 pounds"),
        ("footnote", "1 Horses travel for free if they can swim."),
    ]


def test_boxes_surround_the_words_of_a_sentence():
    extracted = extract(write_pages([(60, 700, "It is dry. Rain comes."), (60, 500, "Far below.")]))
    source = Source("page", extracted.text, extracted.blocks)
    first, second = (each.boxes[0] for each in source.quotes[:2])
    assert 59 < first.left < 61
    assert first.right < second.left
    assert first.bottom < 700 < first.top
    assert [len(each.boxes) for each in source.quotes] == [1, 1, 1]


def test_pages_without_text_are_named(tmp_path):
    content = write_pages([(60, 700, "Only this page has words that can be read.")], [], [])
    assert extract(content).warnings == ()  # empty pages are no scans
    path = tmp_path / "scan.pdf"
    path.write_bytes(make_scan(text_pages=1, scanned_pages=2))
    source = read_file(path)
    assert "pages 2-3 without text" in source.warnings[0]
    assert "ocrmypdf" in source.warnings[0]
    path.write_bytes(make_scan(text_pages=0, scanned_pages=1))
    with pytest.raises(FormatError, match="ocrmypdf"):
        read_file(path)


def make_scan(*, text_pages, scanned_pages):
    """Return a PDF with pages of text and pages that show a picture."""
    words = write_pages(*[[(60, 700, "Only this page has words that can be read.")]] * max(text_pages, 1))
    document = pypdfium2.PdfDocument(words)
    if not text_pages:
        del document[0]
    for _ in range(scanned_pages):
        page = document.new_page(200, 200)
        image = pypdfium2.PdfImage.new(document)
        image.set_bitmap(pypdfium2.PdfBitmap.new_native(8, 8, pypdfium2.raw.FPDFBitmap_BGR))
        image.set_matrix(pypdfium2.PdfMatrix().scale(200, 200))
        page.insert_obj(image)
        page.gen_content()
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def test_lines_of_the_contents_are_told_from_prose():
    page = [
        (60, 780, "Contents", 12, "bold"),
        *place(["1. Boats ............. 3", "2. Piers ............. 14"], 60, 750),
    ]
    assert [kind for kind, _ in describe(extract(write_pages(page)))] == ["heading", "contents line", "contents line"]


def test_pages_without_spaces_are_named():
    lines = ["Theferrywasbuiltinhullandsailedtotheislands", "everydayoftheweekexceptinwinterwhenitburned"] * 3
    extracted = extract(write_pages([(60, 700, "It is dry.")], place(lines, 60, 700)))
    assert "page 2 whose text cannot be trusted" in extracted.warnings[0]


def test_prose_in_one_column_has_no_gutter():
    lines = [
        "The ferry was built in Hull and sailed to the islands.",
        "It burned in a storm near the harbour in 1904.",
    ] * 4
    text_page = pypdfium2.PdfDocument(write_pages(place(lines, 60, 700)))[0].get_textpage()
    assert len(find_columns(make_fragments(read_words(text_page).words))) == 1


def test_evidence_names_the_page_the_heading_and_the_place_of_a_sentence():
    pages = [
        [(60, 760, "Boats", 16, "bold"), (60, 700, "It is dry. Rain comes.")],
        [(60, 700, "Far below is the sea.")],
    ]
    extracted = extract(write_pages(*pages))
    source = Source("paper", extracted.text, extracted.blocks)
    count = len(source.quotes)
    stats = EvidenceStats(np.ones((1, count)), np.ones((1, count)))
    text_scores = {"lexical": np.ones(count) / count, "paragraph_lexical": np.ones(count) / count}
    powers = {"matching": 1.0}
    heads = Heads(((0, 0),), ((0, 0),), {LEXICAL: powers, ATTENTION: powers}, {}, 1, None)
    scores = score_sentences(stats, text_scores, heads)
    evidence = list_evidence([source], scores, np.argsort(-scores.share, kind="stable"))
    by_text = {item.text: item for item in evidence}
    assert by_text["Far below is the sea."].page == 2
    assert by_text["Rain comes."].heading_path == ("Boats",)
    assert by_text["Rain comes."].boxes == source.quotes[2].boxes


def test_a_turned_page_is_read_along_its_lines_and_keeps_its_places():
    lines = ["The ferry was built in Hull and", "sailed to the islands every day."]
    extracted = extract(write_pages([(100 + 12 * number, 60, line, "turned") for number, line in enumerate(lines)]))
    assert quote(extracted) == ["The ferry was built in Hull and sailed to the islands every day."]
    first = extracted.blocks[0].boxes[0]
    # Upright on the page, the word is a column of letters above its baseline's left end.
    assert first.top - first.bottom > first.right - first.left
    assert (first.left < 100 < first.right + 5, first.bottom) == (True, pytest.approx(60, abs=1))


def test_text_beside_the_lines_of_a_page_is_left_out():
    body = place(["The ferry was built in Hull and", "sailed to the islands every day."], 60, 700)
    assert quote(extract(write_pages([*body, (30, 300, "Margin", "turned")]))) == [
        "The ferry was built in Hull and sailed to the islands every day."
    ]


def test_words_from_right_to_left_stay_whole_and_in_order():
    # Each letter is placed by itself, from the right; the second word stands to the left of the first.
    letters = [
        (500 - 6 * number - (8 if number > 2 else 0), 700, letter, "hebrew") for number, letter in enumerate("abcdeh")
    ]
    assert quote(extract(write_pages(letters))) == ["אבג דהח"]


def test_lines_of_a_font_of_fixed_pitch_are_code():
    prose = place(
        ["The ferry is started by this small", "program, which the keeper runs at", "noon of every day."], 60, 700
    )
    code = [(80, 650, "def start(ferry):", "fixed"), (104, 638, "return ferry + 1", "fixed")]
    after = place(["It takes an hour until the ferry has", "left the pier and is on its way."], 60, 610)
    assert describe(extract(write_pages([*prose, *code, *after])))[1:2] == [
        ("code", "def start(ferry):\n    return ferry + 1")
    ]


def test_a_typed_document_has_no_code():
    lines = ["The ferry was built in Hull and", "sailed to the islands every day."]
    page = [(60, 700 - 12 * number, line, "fixed") for number, line in enumerate(lines)]
    assert describe(extract(write_pages(page))) == [("paragraph", " ".join(lines))]


def test_numbers_of_lines_are_left_out():
    lines = ["THE COURT", "Mr. Low, the ferry was", "built in Hull, as you say.", *["It sailed every day."] * 9]
    page = [
        item
        for number, line in enumerate(lines, start=1)
        for item in ((90 if number < 10 else 84, 760 - 26 * number, number), (130, 760 - 26 * number, line))
    ]
    assert not any(map(str.isdigit, extract(write_pages(page)).text))


def test_bullets_and_numbers_that_stand_apart_are_marks_of_items():
    page = [(60, 700, "You need the following things."), (78, 686, "•"), (110, 686, "a lamp"), (78, 672, "•"),
            (110, 672, "a rope"), (60, 650, "Then do this"), (78, 636, "1."), (110, 636, "light it"), (78, 622, "2."),
            (110, 622, "wait")]  # fmt: skip
    assert describe(extract(write_pages(page))) == [
        ("paragraph", "You need the following things."),
        ("list item", "a lamp"),
        ("list item", "a rope"),
        ("paragraph", "Then do this"),
        ("list item", "1. light it"),
        ("list item", "2. wait"),
    ]


def test_contents_without_dots_are_no_table():
    page = [(60, 760, "Contents", 16, "bold")]
    for number, (title, leaf) in enumerate([("Ferries", 2), ("Piers", 2), ("Harbours", 7)], start=1):
        page += [(60, 740 - 14 * number, number), (90, 740 - 14 * number, title), (500, 740 - 14 * number, leaf)]
    assert describe(extract(write_pages(page))) == [
        ("heading", "Contents"),
        ("contents line", "1 Ferries 2"),
        ("contents line", "2 Piers 2"),
        ("contents line", "3 Harbours 7"),
    ]


def test_cells_of_a_wide_table_are_no_columns_of_text():
    page = [(60, 760, "Expenses of the Office of Ferries in the Year", 12)]
    for number in range(12):
        top = 720 - 12 * number
        page += [
            (60, top, f"Keeper Ann Low {chr(65 + number)}"),
            (250, top, "clerk of the pier"),
            (450, top, f"{number}5.00"),
        ]
    rows = [text for kind, text in describe(extract(write_pages(page))) if kind.startswith("table")]
    assert rows[0] == "Keeper Ann Low A; clerk of the pier; 05.00"
    assert len(rows) == 12


def test_a_footnote_mark_belongs_to_its_line():
    page = [
        (100, 705, "1", 6),
        (104, 700, "New Hull University, Hull"),
        (60, 680, "The ferry was built in Hull in 1904."),
    ]
    assert describe(extract(write_pages(page)))[0][1].startswith("1 New Hull University")


def test_words_of_fonts_without_letters_are_left_out():
    body = place(["The ferry was built in Hull and", "sailed to the islands every day."], 60, 700)
    # The map of this font has no letters for digits.
    figure = [(60 + 60 * number, 600, "0123456", "hebrew") for number in range(3)]
    extracted = extract(write_pages([*body, *figure]))
    assert extracted.text.startswith("The ferry was built in Hull and sailed")


def test_gaps_of_justified_text_are_no_columns():
    page = [(60, 700, "The task description of the"), (190, 700, "ferry"), (224, 700, "can be found below."),
            (60, 688, "http://ferry.example/tasks,"), (191, 688, "and"), (224, 688, "the plan of it.")]  # fmt: skip
    assert [kind for kind, _ in describe(extract(write_pages(page)))] == ["paragraph"]
