"""Files become text with exact offsets or are refused; text becomes sentences without loss."""

import io
import itertools
import os
import random
import zipfile

import pytest

from keywise.documents import files
from keywise.documents.files import Source, read_file
from keywise.documents.sentences import MAX_SENTENCE_CHARACTERS, split_sentences
from keywise.errors import FormatError, MissingFileError
from tests.support.pdf import write_pdf


def pdf_bytes(text: str, to_unicode: bytes = b"<< >>") -> bytes:
    """Make a one-page PDF; without text its page is blank. An object can say which letters its font shows."""
    content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() if text else b""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 6 0 R >>",
        to_unicode,
    ]
    return write_pdf(objects)


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
            ["- one", "- two is here. And more", "1. First. Second."],
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
def test_text_is_split_into_sentences(text, expected):
    assert sentences(text) == expected


def test_text_without_end_marks_is_cut_at_spaces():
    text = "word " * 1000
    parts = sentences(text)
    assert len(parts) > 1
    assert all(len(part) <= MAX_SENTENCE_CHARACTERS for part in parts)
    assert " ".join(parts).split() == text.split()
    assert [len(sentence) for sentence in sentences("x" * 2500)] == [1000, 1000, 500]


def test_sentences_contain_every_letter_and_do_not_overlap():
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
        inside = "".join(text[start:end] for start, end in spans)
        assert [c for c in inside if c.isalnum()] == [c for c in text if c.isalnum()], seed
        assert all(text[start:end] == text[start:end].strip() for start, end in spans), seed


def test_a_text_file_keeps_its_characters(tmp_path):
    content = "\ufeffOne é.\r\nTwo 😀 here.\r\n".encode()
    path = tmp_path / "note.txt"
    path.write_bytes(content)
    source = read_file(path)
    assert source == Source(str(path), content.decode("utf-8"))
    assert [source.text[start:end] for start, end in source.sentences] == ["One é.", "Two 😀 here."]


@pytest.mark.parametrize("suffix", [".txt", ".md", ".MD", ".rst", ""])
def test_other_suffixes_are_read_as_text(tmp_path, suffix):
    path = tmp_path / f"note{suffix}"
    path.write_text("It is dry.", encoding="utf-8")
    assert read_file(str(path)).text == "It is dry."


@pytest.mark.parametrize("suffix", [".html", ".htm", ".xhtml"])
def test_html_is_converted_without_scripts(tmp_path, suffix):
    path = tmp_path / f"page{suffix}"
    path.write_text(HTML, encoding="utf-8")
    source = read_file(path)
    texts = [source.text[start:end] for start, end in source.sentences]
    assert texts == ["The café", "It opened in 1901.", "Ana ran it & slept above it."]
    assert "hidden" not in source.text


def test_html_in_latin_1_is_decoded(tmp_path):
    path = tmp_path / "page.html"
    path.write_bytes(HTML.replace("utf-8", "iso-8859-1").encode("iso-8859-1"))
    assert "The café" in read_file(path).text


def test_html_in_utf16_is_decoded(tmp_path):
    path = tmp_path / "page.html"
    path.write_bytes(HTML.replace("utf-8", "utf-16").encode("utf-16"))
    assert "The café" in read_file(path).text


def test_pdf_is_converted_to_sentences(tmp_path):
    path = tmp_path / "paper.PDF"
    path.write_bytes(pdf_bytes("The lamp was lit. Ann kept it."))
    source = read_file(path)
    assert [source.text[start:end] for start, end in source.sentences] == ["The lamp was lit.", "Ann kept it."]


def test_null_characters_of_a_pdf_do_not_reach_the_text(tmp_path):
    path = tmp_path / "a.pdf"
    letters = b"begincmap 1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfchar <77> <0000> endbfchar endcmap"
    stream = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(letters), letters)
    path.write_bytes(pdf_bytes("The lamp w is lit.", to_unicode=stream))
    assert "\0" not in read_file(path).text


def test_docx_is_converted_to_sentences(tmp_path):
    path = tmp_path / "letter.docx"
    path.write_bytes(docx_bytes("The lamp was lit. Ann kept it.", "Second paragraph"))
    source = read_file(path)
    texts = [source.text[start:end] for start, end in source.sentences]
    assert texts == ["The lamp was lit.", "Ann kept it.", "Second paragraph"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("blank.pdf", pdf_bytes(""), "a scanned PDF needs text recognition"),
        ("broken.pdf", pdf_bytes("text")[:200], "must be a PDF file that can be read"),
        ("broken.docx", docx_bytes("text")[:300], "must be a DOCX file that can be read"),
        ("other.docx", b"PK but no archive", "must be a DOCX file that can be read"),
        ("blank.html", b"<html><body><script>x</script></body></html>", "must be a file with text in it"),
        ("empty.txt", b"", "the file is empty"),
        ("empty.pdf", b"", "the file is empty"),
        ("spaces.md", b" \n\t\n", "must be a file with text in it"),
        ("zeros.txt", b"text\0text", "binary"),
        ("picture.png", b"\x89PNG\r\n\x1a\n\0\0", "binary"),
        ("renamed.txt", pdf_bytes("text"), "binary"),
        ("noise.html", random.Random(1).randbytes(3000), "binary"),
        ("noise.htm", random.Random(1).randbytes(3000).replace(b"\0", b"x"), "binary"),
        ("noise.md", random.Random(1).randbytes(3000), "binary"),
        ("noise.pdf", random.Random(1).randbytes(3000), "must be a PDF"),
        ("controls.txt", b"ab\1\2\3" * 99, "binary"),
    ],
)
def test_unreadable_files_are_refused_with_the_reason(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError, match=name) as caught:
        read_file(path)
    assert caught.value.argument == "path"
    assert message in str(caught.value)
    assert "Converter" not in str(caught.value)


def test_missing_files_folders_and_impossible_names_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"path must name an existing file, got '.*gone\.txt'") as caught:
        read_file(tmp_path / "gone.txt")
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.describe("FILE").startswith("FILE must name an existing file")
    with pytest.raises(FormatError, match="it is a folder"):
        read_file(tmp_path)
    with pytest.raises(FormatError, match="path must name a file that can be opened"):
        read_file("nul\0name.txt")


def test_pipes_devices_and_loops_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    for path in (tmp_path / "pipe.txt", tmp_path / "loop.txt", "/dev/zero", "/dev/null"):
        with pytest.raises(FormatError, match="path must name a file that can be opened"):
            read_file(path)


def test_pipe_that_the_shell_opened_is_read():
    reading, writing = os.pipe()
    os.write(writing, b"The lamp is lit.")
    os.close(writing)
    assert read_file(f"/dev/fd/{reading}").text == "The lamp is lit."
    os.close(reading)


def test_file_larger_than_the_limit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "huge.log"
    with path.open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(FormatError, match=r"must have at most [\d,]+ bytes on this machine, got 4,398,046,511,104"):
        read_file(path)
    monkeypatch.setattr(files, "measure_available_memory", lambda: 100)
    path.write_bytes(b"The lamp is lit. " * 2)
    with pytest.raises(FormatError, match="at most 25 bytes"):
        read_file(path)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Das Café über der Brücke öffnet früh, und die Gäste essen gerne süße Brötchen. " * 3, "cp1252"),
        ("Маяк был построен на скале. Его смотрителем была Анна, которая жила там много лет. " * 3, "cp1251"),
        ("灯台は岩の上に建てられた。番人は長い間そこに住んでいたアンである。" * 5, "shift_jis"),
        ("The lamp is lit. Ann kept it.", "utf-16"),
        ("The lamp is lit. Ann kept it.", "utf-32"),
    ],
)
def test_the_encoding_of_a_text_is_found_and_named(tmp_path, text, encoding):
    path = tmp_path / "note.txt"
    path.write_bytes(text.encode(encoding))
    source = read_file(path)
    assert source.text == text
    assert source.encoding.replace("cp932", "shift_jis") == encoding
    assert len(source.warnings) == (not encoding.startswith("utf"))
    assert not source.warnings or source.encoding in source.warnings[0]


def test_a_short_text_in_latin_1_is_read(tmp_path):
    path = tmp_path / "note.txt"
    path.write_bytes("Café au lait.".encode("latin-1"))
    assert read_file(path).text == "Café au lait."


@pytest.mark.parametrize("address", ["https://ferry.example/a.pdf", "http:/ferry.example", "FTP://ferry.example/a.txt"])
def test_addresses_are_refused_because_nothing_is_fetched(address):
    with pytest.raises(FormatError, match="keywise fetches nothing from the network"):
        read_file(address)


def test_an_encrypted_pdf_is_refused_with_the_reason(tmp_path):
    content = pdf_bytes("The lamp is lit.")
    # A password of the standard handler that is not empty.
    handler = b"<</Filter/Standard/V 1/R 2/P -4/O<%s>/U<%s>>>" % (b"ab" * 32, b"cd" * 32)
    content = content.replace(b"/Root 1 0 R", b"/Root 1 0 R/ID[<00><00>]/Encrypt %s" % handler)
    path = tmp_path / "locked.pdf"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="it is encrypted: save a copy without a password"):
        read_file(path)


def test_a_csv_file_with_a_broken_quote_is_read_or_refused(tmp_path):
    path = tmp_path / "broken.csv"
    path.write_text('name,age\n"Ann,41\nBo,12\n', encoding="utf-8")
    assert "Ann" in read_file(path).quotes[-1].text
