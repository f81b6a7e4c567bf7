"""Documents: words that reading a file keeps, compared with a plain extraction, its blocks, and its time."""

# ruff: noqa: PLC0415  (the libraries of other formats are not needed to print a table)

from __future__ import annotations

import email
import email.policy
import io
import json
import mailbox
import re
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from benchmarks.markdown import format_number, format_table
from benchmarks.results import Run
from keywise.documents import Source, read_file
from keywise.documents.blocks import BlockKind
from keywise.documents.extract.encodings import decode_markup, decode_text
from keywise.documents.extract.plain import find_blocks
from keywise.errors import FormatError, MissingFileError

_WORD: Final = re.compile(r"[^\W_]+")
_UNSPACED: Final = re.compile("([\u0e00-\u0eff\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af])")
_BROKEN: Final = re.compile(r"(?<=\w)(?:[-\u00ad\u2010][ \t]*\r?\n\s*|[\u0002\ufffe]\s*)(?=\w)")
_MARKDOWN_LINK: Final = re.compile(
    r"\]\([^)\n]*\)|\]\[[^\]\n]*\]|<[^>\n]+>|^\[[^\]\n]+\]:.*$|\{[#.][^}\n]*\}", re.MULTILINE
)
_SHEET_LINE_ENDS: Final = ("p", "br", "tab", "tr", "h", "line-break", "s")
MEGABYTE: Final = 1_000_000
LINES_PER_PAGE: Final = 60
LINES_PER_SLIDE: Final = 100
LINE_END, PARAGRAPH_GAP, PARAGRAPH_MARK = "\n", "\n\n", "\\par\n"
CHARSETS: Final = {b"0": "cp1252", b"128": "cp932", b"204": "cp1251", b"238": "cp1250"}
"""Encodings of the charsets of RTF's fonts."""


def find_documents(folder: Path) -> list[Path]:
    """Return the files of a folder and of the folders in it, by their names.

    Parameters
    ----------
    folder
        The folder.

    Raises
    ------
    MissingFileError
        There is no such folder, or it has no files.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not paths:
        raise MissingFileError("folder", "must be a folder with documents", got=str(folder))
    return paths


def judge_documents(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Read documents, and compare the words of each with those of a plain extraction.

    The results have no text of the documents.

    Parameters
    ----------
    paths
        The documents.

    Yields
    ------
    dict
        ``name, format, bytes`` of a document, and ``refused``, or ``characters, words, kept, sentences, blocks,
        seconds``. ``words`` are those of the plain extraction, and ``kept`` those of them that were read too.
    """
    warmed: set[str] = set()
    for path in paths:
        suffix = path.suffix.lower()
        result: dict[str, Any] = {"name": path.name, "format": suffix[1:], "bytes": path.stat().st_size}
        try:
            if suffix not in warmed:  # starts the process that converts, and imports what it needs
                warmed.add(suffix)
                read_file(path)
            start = perf_counter()
            source = read_file(path)
            quotes = source.quotes
            seconds = perf_counter() - start
        except FormatError as error:
            yield {**result, "refused": str(error).rsplit("; ", 1)[-1]}
            continue
        blocks = find_blocks(source.text) if source.blocks is None else source.blocks
        expected = count_words(extract_plainly(path))
        found = count_words("\n".join(quote.text for quote in quotes))
        yield {
            **result,
            "characters": len(source.text),
            "words": expected.total(),
            "kept": (expected & found).total(),
            "sentences": len(quotes),
            "blocks": dict(Counter(str(block.kind) for block in blocks)),
            "seconds": round(seconds, 4),
        }


def time_lengths(megabytes: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Time the sentences of texts whose lengths ascend.

    Parameters
    ----------
    megabytes
        The lengths.

    Yields
    ------
    dict
        ``format, megabytes, seconds, sentences``.
    """
    for suffix, write in WRITERS.items():
        for number in megabytes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"text{suffix}"
                path.write_bytes(write(int(number * MEGABYTE)))
                read_file(path)
                start = perf_counter()
                source: Source = read_file(path)
                sentences = len(source.quotes)
                seconds = perf_counter() - start
            size = len(source.text.encode()) / MEGABYTE
            yield {
                "format": suffix[1:],
                "megabytes": round(size, 2),
                "seconds": round(seconds, 3),
                "sentences": sentences,
            }


def count_words(text: str) -> Counter[str]:
    r"""Return how often each word stands in a text, without regard to case and to breaks at line ends.

    A character of a script without spaces is a word.

    Parameters
    ----------
    text
        The text.

    Examples
    --------
    >>> from benchmarks.documents import count_words
    >>> sorted(count_words("The har-\nbour. The lamp").items())
    [('harbour', 1), ('lamp', 1), ('the', 2)]
    """
    text = unicodedata.normalize("NFKC", _BROKEN.sub("", text)).casefold().replace("\u00ad", "")
    return Counter(_WORD.findall(_UNSPACED.sub(r" \1 ", text)))


def extract_plainly(path: Path) -> str:
    """Return the text of a document as another library or a few lines extract it, in any order.

    Parameters
    ----------
    path
        The document.
    """
    content = path.read_bytes()
    extract = _EXTRACTORS.get(path.suffix.lower())
    return extract(content) if extract else decode_text(content)[0]


def _extract_markdown(content: bytes) -> str:
    return _MARKDOWN_LINK.sub(" ", decode_text(content)[0])


def _extract_html(content: bytes) -> str:
    from lxml import html

    markup = re.sub(r"<\?xml[^>]*\?>", "", decode_markup(content)).encode("utf-8", "replace")
    root = html.document_fromstring(markup, parser=html.HTMLParser(encoding="utf-8", huge_tree=True))
    hidden = " or ".join(f"ancestor::{name}" for name in ("script", "style", "head", "noscript", "template"))
    return " ".join(root.xpath(f"//text()[not({hidden})]"))


def _extract_pdf(content: bytes) -> str:
    import pypdfium2

    return "\n".join(page.get_textpage().get_text_range() for page in pypdfium2.PdfDocument(content))


def _extract_mails(content: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mails"
        path.write_bytes(content if content.startswith(b"From ") else b"From keywise\n" + content)
        mails = mailbox.mbox(path, factory=None, create=False)
        messages = [email.message_from_bytes(mail.as_bytes(), policy=email.policy.default) for mail in mails]
        mails.close()
    return "\n".join(part for message in messages for part in _iterate_mail(message))


def _iterate_mail(message: Any) -> Iterator[str]:
    for name in ("Subject", "From", "To", "Cc", "Date"):
        try:
            yield str(message.get(name, ""))
        except (ValueError, LookupError, AttributeError, IndexError, TypeError):  # a damaged field
            continue
    has_plain = any(part.get_content_type() == "text/plain" for part in message.walk())
    for part in message.walk():
        payload = part.get_payload(decode=True)
        if part.get_content_disposition() == "attachment" or not isinstance(payload, bytes):
            continue
        if part.get_content_type() == "text/plain":
            charset = part.get_content_charset() or "utf-8"
            try:
                yield payload.decode(charset)
            except (LookupError, UnicodeError):
                yield decode_text(payload)[0]
        elif part.get_content_type() == "text/html" and not has_plain:
            yield _extract_html(payload)


def _extract_json(content: bytes) -> str:
    text = decode_text(content)[0].removeprefix("\ufeff")
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text).replace("\\n", " ")


def _extract_rtf(content: bytes) -> str:
    """Return the characters of an RTF file that are no control words, without groups that are not shown."""
    declared = re.search(rb"\\ansicpg(\d+)", content)
    encoding = f"cp{declared[1].decode()}" if declared and declared[1] != b"0" else "cp1252"
    encodings = {
        font: CHARSETS[charset]
        for font, charset in re.findall(rb"\\f(\d+)[^;{}]{0,200}?\\fcharset(\d+)", content)
        if charset in CHARSETS
    }
    parts: list[str] = []
    skipped: list[bool] = [False]
    pending = bytearray()
    left_out = re.compile(
        rb"\s*\\(?:\*|fonttbl|colortbl|stylesheet|info|pict|object|v\b|listtext|pntext|header|footer|latentstyles|mmathPr"
        rb"|themedata|datastore|colorschememapping|xmlnstbl)"
    )
    token = re.compile(
        rb"\\'([0-9a-fA-F]{2})|\\u(-?\d+)\s?\??|\\([a-zA-Z]+)(-?\d*)\s?|\\([^a-zA-Z])|([{}])|([^\\{}]+)", re.DOTALL
    )
    for match in token.finditer(content):
        hexadecimal, unicode_value, word, number, symbol, brace, text = match.groups()
        if brace == b"{":
            skipped.append(skipped[-1] or left_out.match(content, match.end()) is not None)
        elif brace == b"}":
            skipped.pop() if len(skipped) > 1 else None
        if hexadecimal and not skipped[-1]:
            pending.append(int(hexadecimal, 16))
            continue
        parts.append(pending.decode(encoding, "replace"))
        pending.clear()
        if word == b"f":
            encoding = encodings.get(number, encoding)
        if skipped[-1]:
            continue
        if unicode_value:
            parts.append(chr(int(unicode_value) % 65536))
        elif word:
            parts.append("\n" if word in (b"par", b"line", b"cell", b"row", b"tab", b"sect") else "")
        elif symbol in (b"~", b"\n", b"\r"):
            parts.append(" ")
        elif text:
            parts.append(re.sub(rb"[\r\n]", b"", text).decode(encoding, "replace"))
    return "".join(parts)


def _make_package_extractor(pattern: str, left_out: str) -> Callable[[bytes], str]:
    """Return a function that returns the text of the XML parts of a package, a line end behind each paragraph."""

    def extract(content: bytes) -> str:
        from lxml import etree

        parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True, huge_tree=True)
        texts: list[str] = []
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                if re.fullmatch(pattern, name) and archive.read(name).strip():
                    root = etree.fromstring(archive.read(name), parser)
                    texts.extend(_iterate_xml(root, re.compile(left_out)))
                    texts.append("\n")
        return "".join(texts)

    return extract


def _iterate_xml(element: Any, left_out: re.Pattern[str]) -> Iterator[str]:
    if not isinstance(element.tag, str):
        return
    name = element.tag.rsplit("}", 1)[-1]
    if left_out.fullmatch(name):
        return
    yield element.text or ""
    for child in element:
        yield from _iterate_xml(child, left_out)
        yield child.tail or ""
    if name in _SHEET_LINE_ENDS:
        yield "\n"


def _extract_workbook(content: bytes) -> str:
    """Return the texts and values of the sheets' XML; numbers of styles and of shared texts are left out."""
    from lxml import etree

    texts: list[str] = []
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        shared: list[str] = []
        if "xl/sharedStrings.xml" in names:
            for item in etree.fromstring(archive.read("xl/sharedStrings.xml")).iterfind("{*}si"):
                shared.append(
                    "".join(text.text or "" for text in item.iter("{*}t") if text.getparent().tag[-3:] != "rPh")
                )
        for name in names:
            if not re.fullmatch(r"xl/worksheets/[^/]+\.xml", name):
                continue
            for cell in etree.fromstring(archive.read(name)).iter("{*}c"):
                value = cell.findtext("{*}v") or ""
                if cell.get("t") == "s" and value:
                    texts.append(shared[int(value)])
                elif cell.get("t") in ("str", "inlineStr"):
                    texts.append(value or "".join(cell.itertext()))
    return "\n".join(texts)


def _extract_book(content: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if re.search(r"\.x?html?$", name) and "nav" not in name.lower()]
        return "\n".join(_extract_html(archive.read(name)) for name in names)


_EXTRACTORS: Final[dict[str, Callable[[bytes], str]]] = {
    ".md": _extract_markdown,
    ".html": _extract_html,
    ".htm": _extract_html,
    ".xhtml": _extract_html,
    ".pdf": _extract_pdf,
    ".eml": _extract_mails,
    ".mbox": _extract_mails,
    ".json": _extract_json,
    ".jsonl": _extract_json,
    ".rtf": _extract_rtf,
    ".docx": _make_package_extractor(
        r"word/(?:document|footnotes|endnotes)\.xml",
        "instrText|delText|Fallback|del|moveFrom|fldData|posOffset|pos[HV]|pct.*",
    ),
    ".pptx": _make_package_extractor(r"ppt/(?:slides|notesSlides)/[^/]+\.xml", "fld|attrName|v|pct.*|tableStyleId"),
    ".odt": _make_package_extractor(
        r"content\.xml", "automatic-styles|scripts|font-face-decls|tracked-changes|desc|title|annotation"
    ),
    ".xlsx": _extract_workbook,
    ".epub": _extract_book,
}


def _make_sentences(size: int) -> str:
    lines = []
    length = number = 0
    while length < size:
        lines.append(
            f"Keeper {number} lit lamp {number * 7 % 1000} at dusk. It burned until Dr. Low put it out at 5.30 a.m."
        )
        length += len(lines[-1]) + 1
        number += 1
    return "\n".join(lines)


def _write_paragraphs(size: int) -> str:
    return re.sub(r"(\n(?:.*\n){4})", r"\1\n", _make_sentences(size))


def _write_docx(size: int) -> bytes:
    import docx

    document = docx.Document()
    for line in _make_sentences(size).split("\n"):
        document.add_paragraph(line)
    return _save(document)


def _write_xlsx(size: int) -> bytes:
    import openpyxl

    workbook = openpyxl.Workbook(write_only=True)
    sheet = workbook.create_sheet("Lamps")
    for number, line in enumerate(_make_sentences(size).split("\n")):
        sheet.append([number, *line.split(". ", 1)])
    return _save(workbook)


def _write_pptx(size: int) -> bytes:
    import pptx

    show = pptx.Presentation()
    for lines in _iterate_groups(_make_sentences(size), LINES_PER_SLIDE):
        slide = show.slides.add_slide(show.slide_layouts[1])
        slide.placeholders[1].text = "\n".join(lines)
    return _save(show)


def _save(document: Any) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def _write_odt(size: int) -> bytes:
    namespace = "urn:oasis:names:tc:opendocument:xmlns:"
    paragraphs = "".join(f"<t:p>{line}</t:p>" for line in _make_sentences(size).split("\n"))
    content = (
        f'<o:document-content xmlns:o="{namespace}office:1.0" xmlns:t="{namespace}text:1.0">'
        f"<o:body><o:text>{paragraphs}</o:text></o:body></o:document-content>"
    )
    return _pack({"content.xml": content})


def _write_epub(size: int) -> bytes:
    items = '<item id="a" href="a.xhtml" media-type="application/xhtml+xml"/>'
    return _pack(
        {
            "META-INF/container.xml": '<container><rootfiles><rootfile full-path="b.opf"/></rootfiles></container>',
            "b.opf": f'<package><manifest>{items}</manifest><spine><itemref idref="a"/></spine></package>',
            "a.xhtml": _write_html(size),
        }
    )


def _pack(parts: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _write_html(size: int) -> str:
    return f"<html><body><p>{_write_paragraphs(size).replace(PARAGRAPH_GAP, '<p>')}</body></html>"


def _write_pdf(size: int) -> bytes:
    """Return pages of lines in Helvetica, each object with its number."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for lines in _iterate_groups(_make_sentences(size), LINES_PER_PAGE):
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        content = f"BT /F1 9 Tf 12 TL 60 780 Td {shown} ET"
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents {len(objects) + 2} 0 R"
            "/Resources<</Font<</F1 3 0 R>>>>>>"
        )
        objects.append(f"<</Length {len(content)}>>\nstream\n{content}\nendstream")
    objects[1] = f"<</Type/Pages/Kids[{' '.join(kids)}]/Count {len(kids)}>>"
    # PDFium finds the objects without a table of their places.
    body = "".join(f"{number} 0 obj\n{text}\nendobj\n" for number, text in enumerate(objects, start=1))
    return f"%PDF-1.4\n{body}trailer\n<</Root 1 0 R>>\n%%EOF\n".encode()


def _iterate_groups(text: str, count: int) -> Iterator[list[str]]:
    lines = text.split("\n")
    for begin in range(0, len(lines), count):
        yield lines[begin : begin + count]


WRITERS: Final[dict[str, Callable[[int], bytes]]] = {
    ".txt": lambda size: _write_paragraphs(size).encode(),
    ".md": lambda size: _write_paragraphs(size).encode(),
    ".csv": lambda size: _make_sentences(size).replace(". ", ".,").encode(),
    ".json": lambda size: json.dumps([{"text": line} for line in _make_sentences(size).split("\n")]).encode(),
    ".html": lambda size: _write_html(size).encode(),
    ".eml": lambda size: f"Subject: Lamps\n\n{_write_paragraphs(size)}".encode(),
    ".rtf": lambda size: f"{{\\rtf1 {_make_sentences(size).replace(LINE_END, PARAGRAPH_MARK)}}}".encode(),
    ".docx": _write_docx,
    ".xlsx": _write_xlsx,
    ".pptx": _write_pptx,
    ".odt": _write_odt,
    ".epub": _write_epub,
    ".pdf": _write_pdf,
}
"""Functions that write a file of sentences of a length in bytes, per suffix."""


def format_tables(runs: Sequence[Run]) -> str:
    """Format a table of formats, one of their blocks, and one of lengths.

    Parameters
    ----------
    runs
        Runs of the kind ``"documents"``.
    """
    results = [result for run in runs for result in run.results]
    read: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if "words" in result:
            read.setdefault(result["format"], []).append(result)
    rows = []
    block_rows = []
    for name in sorted(read):
        members = read[name]
        words = sum(each["words"] for each in members)
        shares = [each["kept"] / each["words"] for each in members if each["words"]]
        text = sum(each["characters"] for each in members) / MEGABYTE
        rows.append(
            [
                name,
                str(len(members)),
                f"{words:,}",
                f"{sum(each['kept'] for each in members) / max(words, 1):.3f}",
                f"{min(shares, default=1.0):.3f}",
                f"{sum(each['sentences'] for each in members):,}",
                format_number(sum(each["seconds"] for each in members) / max(text, 1e-9)),
            ]
        )
        blocks: Counter[str] = Counter()
        for each in members:
            blocks.update(each["blocks"])
        block_rows.append([name, *(f"{blocks[kind]:,}" if blocks[kind] else "" for kind in BlockKind)])
    parts = []
    if rows:
        columns = ["format", "files", "words", "kept", "least of a file", "sentences", "s per MB of text"]
        parts += [format_table(columns, rows), format_table(["blocks", *map(str, BlockKind)], block_rows)]
    refused = [f"{result['name']} ({result['refused']})" for result in results if "refused" in result]
    if refused:
        parts.append(f"Refused: {'; '.join(refused)}.")
    lengths = [
        [
            each["format"],
            f"{each['megabytes']:.2f}",
            f"{each['seconds']:.2f}",
            format_number(each["seconds"] / each["megabytes"]),
        ]
        for each in results
        if "megabytes" in each
    ]
    if lengths:
        parts.append(format_table(["one file", "MB of text", "s", "s per MB"], lengths))
    return "\n\n".join(parts)
