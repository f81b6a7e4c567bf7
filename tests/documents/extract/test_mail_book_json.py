"""Mails, books and JSON files become blocks."""

from email.message import EmailMessage

import pytest

from keywise.documents import read_file
from keywise.documents.extract import epub, json_records, mail
from keywise.errors import FormatError
from tests.support.packages import write_zip


def describe(extracted):
    return [(str(block.kind), block.text) for block in extracted.blocks]


def make_mail(subject, text, html=None, attachment=None):
    message = EmailMessage()
    message["From"] = "Zoë Low <zoe@ferry.example>"
    message["Date"] = "Mon, 03 Jun 2024 09:00:00 +0200"
    message["Subject"] = subject
    message.set_content(text)
    if html:
        message.add_alternative(html, subtype="html")
    if attachment:
        message.add_attachment(b"\0\1", maintype="image", subtype="png", filename=attachment)
    return message.as_bytes()


def test_a_mail_is_its_fields_and_its_plain_text():
    content = make_mail("Größe", "Hello,\nthe pier is\nopen. Zoë\n\n-- \nZoë Low\nPhone 5", "<p>SECRET</p>", "pier.png")
    assert describe(mail.extract(content)) == [
        ("heading", "Größe"),
        ("mail line", "From: Zoë Low <zoe@ferry.example>"),
        ("mail line", "Date: Mon, 03 Jun 2024 09:00:00 +0200"),
        ("paragraph", "Hello, the pier is open. Zoë"),
        ("line", "Zoë Low"),
        ("line", "Phone 5"),
        ("mail line", "Attachment: pier.png"),
    ]


def test_an_html_mail_is_read_as_html():
    message = EmailMessage()
    message["Subject"] = "Pier"
    message.set_content("<p>Open.</p><p hidden>SECRET</p>", subtype="html")
    assert describe(mail.extract(message.as_bytes())) == [("heading", "Pier"), ("paragraph", "Open.")]


def test_a_mail_in_utf_8_that_declares_another_encoding_is_read_as_utf_8():
    content = "Subject: Pier\nContent-Type: text/plain; charset=iso-8859-1\n\nI’m Zoë.\n".encode()
    assert mail.extract(content).blocks[1].text == "I’m Zoë."
    latin = "Subject: Pier\nContent-Type: text/plain; charset=iso-8859-1\n\nI am Zoë.\n".encode("latin-1")
    assert mail.extract(latin).blocks[1].text == "I am Zoë."


def test_mails_of_a_box_stand_under_their_subjects():
    box = b""
    for subject, text in (("Pier", "It is open."), ("Boat", "It leaks.\n\n>From the left.")):
        box += b"From MAILER Mon Jun  3 09:00:00 2024\n" + make_mail(subject, text) + b"\n"
    blocks = mail.extract(box).blocks
    assert [(block.heading_path, block.text) for block in blocks if block.kind == "paragraph"] == [
        (("Pier",), "It is open."),
        (("Boat",), "It leaks."),
        (("Boat",), "From the left."),
    ]


def make_book(chapters, encrypted=""):
    items = "".join(
        f'<item id="c{n}" href="c%20{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in reversed(range(len(chapters))))
    parts = {
        "META-INF/container.xml": '<container><rootfiles><rootfile full-path="text/book.opf"/></rootfiles></container>',
        "text/book.opf": f'<package><manifest>{items}<item id="toc" properties="nav" href="c%200.xhtml"/></manifest>'
        f'<spine><itemref idref="toc"/>{spine}</spine></package>',
        **{f"text/c {number}.xhtml": chapter for number, chapter in enumerate(chapters)},
    }
    if encrypted:
        uri = f'<e:CipherReference xmlns:e="http://www.w3.org/2001/04/xmlenc#" URI="{encrypted}"/>'
        parts["META-INF/encryption.xml"] = f"<encryption>{uri}</encryption>"
    return write_zip(parts)


CHAPTER = '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><body>{}</body></html>'


def test_chapters_of_a_book_come_in_the_order_of_its_spine():
    chapters = [CHAPTER.format("<h1>Last</h1><p>The end.</p>"), CHAPTER.format("<h1>First</h1><p>It rains é.</p>")]
    extracted = epub.extract(make_book(chapters, encrypted="fonts/a.otf"))
    assert [block.text for block in extracted.blocks] == ["First", "It rains é.", "Last", "The end."]


def test_protected_books_are_refused(tmp_path):
    path = tmp_path / "book.epub"
    path.write_bytes(make_book([CHAPTER.format("x")], encrypted="text/c0.xhtml"))
    with pytest.raises(FormatError, match="protected against copying"):
        read_file(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": {"b": 1.50, "c": true}, "d": null}', [("line", "a.b: 1.50"), ("line", "a.c: true")]),
        (
            '[{"n": "Ann", "tags": ["x", "y"]}, {"n": "Bo"}]',
            [("table row", "n: Ann; tags: x, y"), ("table row", "n: Bo")],
        ),
        ('{"n": 1}\n{"n": 2}\n', [("table row", "n: 1"), ("table row", "n: 2")]),
        ('{"rows": ["one", "two"]}', [("line", "rows: one"), ("line", "rows: two")]),
    ],
)
def test_json_becomes_lines_and_rows(text, expected):
    assert describe(json_records.extract(text.encode())) == expected


@pytest.mark.parametrize(("text", "message"), [('{"a": ', "line 1 is not valid"), ("[" * 100_000, "nested too deeply")])
def test_damaged_json_is_refused_with_the_line(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=message):
        read_file(path)


def test_halves_of_characters_are_joined_or_replaced(tmp_path):
    path = tmp_path / "halves.json"
    path.write_text('{"a": "\\ud83d\\ude00 smile", "b": "half \\ud83d of one"}')
    source = read_file(path)
    assert [quote.text for quote in source.quotes] == ["a: \U0001f600 smile", "b: half \ufffd of one"]
    assert [source.text[begin:end] for begin, end in source.sentences] == [quote.text for quote in source.quotes]
