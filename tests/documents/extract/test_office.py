"""Office documents become blocks without what they hide; the documents are made by their own libraries."""

import datetime
import io
import time
import zipfile

import docx
import openpyxl
import pptx
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from keywise.documents import read_file
from keywise.documents.extract import docx as docx_extract
from keywise.documents.extract import odt, rtf, xlsx
from keywise.documents.extract import pptx as pptx_extract
from keywise.documents.extract.extracted import UnreadableFileError
from keywise.errors import FormatError
from tests.support.packages import save_to_bytes, write_zip


def describe(extracted):
    return [(str(block.kind), block.text) for block in extracted.blocks]


def make_lease():
    document = docx.Document()
    document.add_heading("Lease", 0)
    document.add_heading("Rent", 1)
    paragraph = document.add_paragraph("The rent is 900 euros.")
    paragraph.add_run(" SECRET").font.hidden = True
    paragraph._p.append(parse_xml(f"<w:del {nsdecls('w')}><w:r><w:delText>SECRET</w:delText></w:r></w:del>"))
    paragraph._p.append(
        parse_xml(f"<w:ins {nsdecls('w')}><w:r><w:t xml:space='preserve'> It is due.</w:t></w:r></w:ins>")
    )
    document.add_paragraph("a bed", style="List Bullet")
    document.add_paragraph("first step", style="List Number")
    document.add_paragraph("second step", style="List Number")
    table = document.add_table(rows=3, cols=3)
    for row, cells in zip(table.rows, [("Room", "Size", "Fee"), ("Hall", "20", "5"), ("Attic", "9", "2")], strict=True):
        for cell, text in zip(row.cells, cells, strict=True):
            cell.text = text
    power = document.add_paragraph("10")
    power.add_run("6").font.superscript = True
    return save_to_bytes(document)


def test_docx_becomes_headings_paragraphs_lists_and_rows():
    extracted = docx_extract.extract(make_lease())
    assert describe(extracted) == [
        ("heading", "Lease"),
        ("heading", "Rent"),
        ("paragraph", "The rent is 900 euros. It is due."),
        ("list item", "a bed"),
        ("list item", "1. first step"),
        ("list item", "2. second step"),
        ("table header", "Room; Size; Fee"),
        ("table row", "Room: Hall; Size: 20; Fee: 5"),
        ("table row", "Room: Attic; Size: 9; Fee: 2"),
        ("paragraph", "10⁶"),
    ]
    assert extracted.blocks[2].heading_path == ("Lease", "Rent")


def test_formulas_and_contents_of_a_docx_are_kept():
    document = docx.Document()
    contents = document.styles.add_style("toc 1", docx.enum.style.WD_STYLE_TYPE.PARAGRAPH)
    document.add_paragraph("Ferries\t7", style=contents)
    paragraph = document.add_paragraph("It is ")
    math = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
    paragraph._p.append(parse_xml(f"<m:oMath {math}><m:r><m:t>E=mc</m:t></m:r></m:oMath>"))
    paragraph.add_run(".")
    assert describe(docx_extract.extract(save_to_bytes(document))) == [
        ("contents line", "Ferries 7"),
        ("paragraph", "It is E=mc."),
    ]


def test_a_text_box_in_an_empty_paragraph_or_a_heading_is_read_once():
    document = docx.Document()
    for paragraph in (document.add_paragraph(), document.add_heading("Piers", 1)):
        box = (
            f"<w:pict {nsdecls('w')}><w:txbxContent><w:p><w:r><w:t>In a box.</w:t></w:r></w:p></w:txbxContent></w:pict>"
        )
        paragraph.add_run()._r.append(parse_xml(box))
    assert describe(docx_extract.extract(save_to_bytes(document))) == [
        ("paragraph", "In a box."),
        ("heading", "Piers"),
        ("paragraph", "In a box."),
    ]


def test_pptx_becomes_titles_items_rows_and_notes():
    show = pptx.Presentation()
    slide = show.slides.add_slide(show.slide_layouts[1])
    slide.shapes.title.text = "Ferries"
    slide.placeholders[1].text = "Two boats\nOne pier"
    slide.notes_slide.notes_text_frame.text = "The pier is old. It leaks."
    table = slide.shapes.add_table(2, 2, 0, 0, 100, 100).table
    for (row, column), text in {(0, 0): "Boat", (0, 1): "Seats", (1, 0): "Ida", (1, 1): "40"}.items():
        table.cell(row, column).text = text
    hidden = show.slides.add_slide(show.slide_layouts[1])
    hidden.shapes.title.text = "SECRET"
    hidden.element.set("show", "0")
    extracted = pptx_extract.extract(save_to_bytes(show))
    assert sorted(describe(extracted)) == sorted([
        ("heading", "Ferries"),
        ("list item", "Two boats"),
        ("list item", "One pier"),
        ("table header", "Boat; Seats"),
        ("table row", "Boat: Ida; Seats: 40"),
        ("paragraph", "The pier is old. It leaks."),
    ])  # fmt: skip
    assert {block.page for block in extracted.blocks} == {1}


def test_xlsx_rows_carry_their_header_and_hidden_ones_are_left_out():
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Shop"
    sheet.append(["Prices of May"])
    sheet.append(["Item", "Price", "Since", "Share"])
    for row in (["lamp", 4.5, None, 0.25], ["SECRET", 1, None, None], ["rope", -2, None, 1]):
        sheet.append(row)
    sheet["C3"] = datetime.date(2024, 5, 1)
    sheet["D3"].number_format = "0%"
    sheet.row_dimensions[4].hidden = True
    book.create_sheet("SECRET").sheet_state = "hidden"
    extracted = xlsx.extract(save_to_bytes(book))
    assert describe(extracted) == [
        ("heading", "Shop"),
        ("paragraph", "Prices of May"),
        ("table header", "Item; Price; Since; Share"),
        ("table row", "Item: lamp; Price: 4.5; Since: 2024-05-01; Share: 25 %"),
        ("table row", "Item: rope; Price: -2; Share: 1"),
    ]


def test_names_of_columns_above_an_empty_row_belong_to_the_table_below():
    book = openpyxl.Workbook()
    rows = [["Sales by zone"], ["in CHF", None, "2023", "2023"], ["Zone", None, "first half", "second half"], []]
    for row in [*rows, ["North", None, 12, 13], ["South", None, 7, 1234567890123456]]:
        book.active.append(row)
    book.active["A5"].font = openpyxl.styles.Font(bold=True)
    assert describe(xlsx.extract(save_to_bytes(book)))[1:] == [
        ("paragraph", "Sales by zone"),
        ("table header", "in CHF Zone; 2023 first half; 2023 second half"),
        ("table row", "in CHF Zone: North; 2023 first half: 12; 2023 second half: 13"),
        ("table row", "in CHF Zone: South; 2023 first half: 7; 2023 second half: 1234567890123456"),
    ]


def test_a_sheet_whose_formats_reach_to_its_last_column_is_read_at_once():
    book = openpyxl.Workbook()
    for row in range(1, 41):
        book.active.cell(row, 1, f"keeper {row}")
        book.active.cell(row, 16384).font = openpyxl.styles.Font(bold=True)
    content = save_to_bytes(book)
    begin = time.process_time()
    extracted = xlsx.extract(content)
    assert len(extracted.blocks) == 41
    assert time.process_time() - begin < 2.0


def test_formulas_without_values_are_told():
    book = openpyxl.Workbook()
    book.active.append(["a", "=1+1"])
    assert "1 formulas without a stored value" in xlsx.extract(save_to_bytes(book)).warnings[0]


ODT = """<office:document-content xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"
 xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0" xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0"
 xmlns:style="urn:oasis:names:tc:opendocument:xmlns:style:1.0"><office:automatic-styles>
<style:style style:name="off"><style:text-properties text:display="none"/></style:style></office:automatic-styles>
<office:body><office:text><text:tracked-changes><text:p>SECRET</text:p></text:tracked-changes>
<text:h text:outline-level="1">Inn</text:h>
<text:p>It has <text:span>six</text:span><text:s/>rooms<text:span text:style-name="off">SECRET</text:span>.<text:note>
<text:note-citation>1</text:note-citation><text:note-body><text:p>Seven in May.</text:p></text:note-body></text:note></text:p>
<text:list><text:list-item><text:p>a bed</text:p></text:list-item></text:list>
<table:table><table:table-header-rows><table:table-row><table:table-cell><text:p>Room</text:p></table:table-cell>
<table:table-cell><text:p>Fee</text:p></table:table-cell></table:table-row></table:table-header-rows>
<table:table-row><table:table-cell><text:p>Hall</text:p></table:table-cell><table:table-cell><text:p>5</text:p>
</table:table-cell></table:table-row></table:table></office:text></office:body></office:document-content>"""


def test_odt_becomes_blocks():
    assert describe(odt.extract(write_zip({"content.xml": ODT}))) == [
        ("heading", "Inn"),
        ("paragraph", "It has six rooms."),
        ("list item", "a bed"),
        ("table header", "Room; Fee"),
        ("table row", "Room: Hall; Fee: 5"),
        ("footnote", "Seven in May."),
    ]


def test_shapes_of_an_odt_are_paragraphs_of_their_own():
    shape = (
        '<text:p>Before <draw:frame xmlns:draw="urn:oasis:names:tc:opendocument:xmlns:drawing:1.0"><svg:title '
        'xmlns:svg="urn:oasis:names:tc:opendocument:xmlns:svg-compatible:1.0">SECRET</svg:title><draw:text-box>'
        "<text:p>In a box.</text:p></draw:text-box></draw:frame>after.</text:p>"
    )
    content = ODT.replace("<text:list>", f"{shape}<text:list>")
    assert describe(odt.extract(write_zip({"content.xml": content})))[2:4] == [
        ("paragraph", "Before after."),
        ("paragraph", "In a box."),
    ]


def test_headings_items_and_footnotes_of_an_rtf_are_told_from_paragraphs():
    content = (
        rb"{\rtf1\ansi{\stylesheet{\s0 Normal;}{\s1\b\fs32 heading 1;}}\pard\s1 Ferries\par\pard It is "
        rb"open.{\footnote\pard In {\i May}.\par}\par{\pard\outlinelevel1 Piers\par}"
        rb"{\listtext\'b7\tab}Pier 1\par{\pntext 2.\tab}Pier 2\par\pard Closed\par\pard It rains on all of the piers\par{\*\datastore 00}}"
    )
    extracted = rtf.extract(content)
    assert describe(extracted) == [
        ("heading", "Ferries"),
        ("paragraph", "It is open."),
        ("heading", "Piers"),
        ("list item", "Pier 1"),
        ("list item", "2. Pier 2"),
        ("paragraph", "Closed"),
        ("paragraph", "It rains on all of the piers"),
        ("footnote", "In May."),
    ]
    assert extracted.blocks[3].heading_path == ("Ferries", "Piers")


def test_rtf_becomes_blocks():
    content = rb"""{\rtf1\ansi\ansicpg1252 Caf\'e9 Nord\par It is {\b open}. {\v SECRET}\v SECRET\v0  It is 5 \u8364?.\par
\trowd\cellx1\cellx2\cellx3 Room\cell Fee\cell Bed\cell\row\trowd\cellx1\cellx2\cellx3 Hall\cell 5\cell 1\cell\row}"""
    extracted = rtf.extract(content)
    assert "SECRET" not in extracted.text
    assert "Café Nord" in extracted.text
    assert "It is 5 €." in extracted.text
    assert "Room: Hall; Fee: 5; Bed: 1" in extracted.text


@pytest.mark.parametrize("suffix", ["docx", "pptx", "xlsx", "odt", "epub"])
def test_encrypted_old_and_damaged_packages_are_refused_with_the_reason(tmp_path, suffix):
    archive = write_zip({"content.xml": ODT})
    cases = {
        "old": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "encrypted, or in the format of Office before 2007"),
        "cut": (archive[:-40], "cut off"),
        "locked": (_set_encrypted(archive), "it is encrypted"),
        "text": (b"only text", "of another format"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(content)
        with pytest.raises(FormatError, match=message) as refused:
            read_file(path)
        assert path.name in str(refused.value)


def test_a_package_that_unpacks_to_gigabytes_is_refused_at_once():
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("content.xml", "w", force_zip64=True) as part,
    ):
        for _ in range(600):
            part.write(bytes(1 << 20))
    with pytest.raises(UnreadableFileError, match="larger than 512 MiB when it is unpacked"):
        odt.extract(buffer.getvalue())


def test_entities_of_xml_are_not_expanded(tmp_path):
    bomb = '<!DOCTYPE b [<!ENTITY a "SECRET">' + "".join(
        f'<!ENTITY a{number + 1} "&a{number or ""};&a{number or ""};">' for number in range(30)
    )
    path = tmp_path / "bomb.odt"
    path.write_bytes(write_zip({"content.xml": f"{bomb}]>{ODT.replace('six', 'six&a30;')}"}))
    assert "SECRET" not in read_file(path).text


def _set_encrypted(archive):
    """Set the flag of encryption of the only part, in its header and in the list of parts."""
    changed = bytearray(archive)
    changed[6] |= 1
    changed[archive.index(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)
