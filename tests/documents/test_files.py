"""Files become text with exact offsets, or a clear error; text becomes sentences that lose nothing."""

import io
import itertools
import random
import zipfile

import pytest

from keywise.documents.files import LONGEST_SENTENCE_CHARACTERS, Source, read_file, split_sentences
from keywise.errors import FormatError


def pdf_bytes(text: str) -> bytes:
    """Make a one-page PDF; without text its page is blank."""
    content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() if text else b""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    file, positions = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, start=1):
        positions.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(file)
    file += b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % position for position in positions)
    file += b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % table
    return bytes(file)


def docx_bytes(*paragraphs: str) -> bytes:
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    body = "".join(f"<w:p><w:r><w:t>{paragraph}</w:t></w:r></w:p>" for paragraph in paragraphs)
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="r1" Type="{office}/relationships/officeDocument" Target="word/document.xml"/>'
        "</Relationships>",
        "word/document.xml": f'<w:document xmlns:w="{word}"><w:body>{body}</w:body></w:document>',
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return buffer.getvalue()


HTML = """<html><head><meta charset="utf-8"><title>t</title><style>p { color: red }</style>
<script>var hidden = "not text";</script></head>
<body><h1>The café</h1><p>It opened in 1901. <b>Ana</b> ran it &amp; slept above it.</p></body></html>"""


def sentences(text):
    return [text[start:end] for start, end in split_sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("Dr. Low came on Jan. 5th. It cost 3.5 pounds.", ["Dr. Low came on Jan. 5th.", "It cost 3.5 pounds."]),
        ("# Title\nRight below. More.", ["# Title", "Right below.", "More."]),
        ("Title\n=====\nBelow it.", ["Title\n=====", "Below it."]),
        (
            "- one\n- two is here. And more\n1. First. Second.",
            ["- one", "- two is here.", "And more", "1. First.", "Second."],
        ),
        ("One line\ngoes on. Next.", ["One line\ngoes on.", "Next."]),
        ("One.\r\n\r\nNo mark at its end\r\n\r\nThree.\r\n", ["One.", "No mark at its end", "Three."]),
        ("| a | b |\n| --- | --- |\n| 1. x | Y. Z. |\nafter it", ["| a | b |", "| 1. x | Y. Z. |", "after it"]),
        ("日本語です。これは文です。", ["日本語です。", "これは文です。"]),
        ("مرحبا. كيف حالك؟ أنا بخير.", ["مرحبا.", "كيف حالك؟", "أنا بخير."]),
        ("यह एक है। यह दो है।", ["यह एक है।", "यह दो है।"]),
        ("A 😀 smiles. B does not.", ["A 😀 smiles.", "B does not."]),
        ("\ufeffMarked. Text.", ["Marked.", "Text."]),
        ("---\n\n***", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_long_runs_are_cut_at_spaces():
    text = "word " * 1000
    found = sentences(text)
    assert len(found) > 1
    assert all(len(sentence) <= LONGEST_SENTENCE_CHARACTERS for sentence in found)
    assert " ".join(found).split() == text.split()
    assert [len(sentence) for sentence in sentences("x" * 2500)] == [1000, 1000, 500]


def test_no_letter_is_lost_and_no_span_overlaps():
    chunks = [
        "# ",
        "- ",
        "12. ",
        "| a |",
        "Mr. X",
        "ok. ",
        "No",
        "\n",
        "\r\n",
        "\n\n",
        " ",
        "!",
        "…",
        "。",
        "字",
        "😀",
        "e\u0301",
        "> ",
    ]
    for seed in range(300):
        text = "".join(random.Random(seed).choices(chunks, k=40))
        spans = list(split_sentences(text))
        assert all(start < end for start, end in spans), seed
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), seed
        kept = "".join(text[start:end] for start, end in spans)
        assert [c for c in kept if c.isalnum()] == [c for c in text if c.isalnum()], seed
        assert all(text[start:end] == text[start:end].strip() for start, end in spans), seed


def test_text_keeps_its_characters(tmp_path):
    content = "\ufeffOne é.\r\nTwo 😀 here.\r\n".encode()
    path = tmp_path / "note.txt"
    path.write_bytes(content)
    source = read_file(path)
    assert source == Source(str(path), content.decode("utf-8"))
    assert [source.text[start:end] for start, end in source.sentences] == ["One é.", "Two 😀 here."]


@pytest.mark.parametrize("suffix", [".txt", ".md", ".MD", ".rst", ""])
def test_text_files_by_any_name(tmp_path, suffix):
    path = tmp_path / f"note{suffix}"
    path.write_text("It is dry.", encoding="utf-8")
    assert read_file(str(path)).text == "It is dry."


@pytest.mark.parametrize("suffix", [".html", ".htm", ".xhtml"])
def test_html(tmp_path, suffix):
    path = tmp_path / f"page{suffix}"
    path.write_text(HTML, encoding="utf-8")
    source = read_file(path)
    found = [source.text[start:end] for start, end in source.sentences]
    assert found == ["# The café", "It opened in 1901.", "**Ana** ran it & slept above it."]
    assert "hidden" not in source.text


def test_html_in_another_encoding(tmp_path):
    path = tmp_path / "page.html"
    path.write_bytes(HTML.replace("utf-8", "iso-8859-1").encode("iso-8859-1"))
    assert "The café" in read_file(path).text


def test_html_in_utf16(tmp_path):
    path = tmp_path / "page.html"
    path.write_bytes(HTML.replace("utf-8", "utf-16").encode("utf-16"))
    assert "The café" in read_file(path).text


def test_pdf(tmp_path):
    path = tmp_path / "paper.PDF"
    path.write_bytes(pdf_bytes("The lamp was lit. Ann kept it."))
    source = read_file(path)
    assert [source.text[start:end] for start, end in source.sentences] == ["The lamp was lit.", "Ann kept it."]


def test_docx(tmp_path):
    path = tmp_path / "letter.docx"
    path.write_bytes(docx_bytes("The lamp was lit. Ann kept it.", "Second paragraph"))
    source = read_file(path)
    found = [source.text[start:end] for start, end in source.sentences]
    assert found == ["The lamp was lit.", "Ann kept it.", "Second paragraph"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("blank.pdf", pdf_bytes(""), "no text in it; it may be scanned"),
        ("broken.pdf", pdf_bytes("text")[:200], "is not a PDF that can be read; is it whole"),
        ("broken.docx", docx_bytes("text")[:300], "is not a DOCX that can be read; is it whole"),
        ("other.docx", b"PK but no archive", "is not a DOCX that can be read"),
        ("blank.html", b"<html><body><script>x</script></body></html>", "no text in it"),
        ("empty.txt", b"", "is empty"),
        ("empty.pdf", b"", "is empty"),
        ("spaces.md", b" \n\t\n", "no text in it"),
        ("zeros.txt", b"text\0text", "binary file"),
        ("picture.png", b"\x89PNG\r\n\x1a\n\0\0", "binary file"),
        ("renamed.txt", pdf_bytes("text"), "binary file"),
        ("latin.txt", "caf\u00e9".encode("latin-1"), "not UTF-8 (byte 3 is 0xe9)"),
        ("wide.txt", "wide".encode("utf-16"), "in UTF-16; save it as UTF-8"),
        ("noise.html", random.Random(1).randbytes(3000), "binary file"),
        ("noise.htm", random.Random(1).randbytes(3000).replace(b"\0", b"x"), "binary file"),
        ("noise.md", random.Random(1).randbytes(3000), "binary file"),
        ("noise.pdf", random.Random(1).randbytes(3000), "is not a PDF"),
        ("controls.txt", b"ab\1\2\3" * 99, "binary file"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError, match=name) as caught:
        read_file(path)
    assert message in str(caught.value)
    assert "Converter" not in str(caught.value)


def test_missing_file_folder_and_impossible_name(tmp_path):
    with pytest.raises(FormatError, match=r"gone\.txt.*no such file"):
        read_file(tmp_path / "gone.txt")
    with pytest.raises(FormatError, match="is a folder"):
        read_file(tmp_path)
    with pytest.raises(FormatError, match="cannot be opened"):
        read_file("nul\0name.txt")
