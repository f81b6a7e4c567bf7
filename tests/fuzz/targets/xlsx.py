"""XLSX files: text, or `FormatError`, within the limits of the conversion."""

import zipfile

from tests.fuzz.targets.packages import convert_part, pack

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/"
TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
RELATION = f"{OFFICE}officeDocument/2006/relationships"
SHEET = "xl/worksheets/sheet1.xml"
PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{OFFICE}package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{TYPE}.sheet.main+xml"/>'
    f'<Override PartName="/{SHEET}" ContentType="{TYPE}.worksheet+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{OFFICE}package/2006/relationships"><Relationship Id="r1" '
    f'Type="{RELATION}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{OFFICE}package/2006/relationships"><Relationship Id="r1" '
    f'Type="{RELATION}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{RELATION}"><sheets>'
    '<sheet name="Lamps" sheetId="1" r:id="r1"/></sheets></workbook>',
    SHEET: f'<worksheet xmlns="{MAIN}"><cols><col min="3" max="3" hidden="1"/></cols><sheetData>'
    '<row r="1"><c r="A1" t="inlineStr"><is><t>lamp</t></is></c><c r="B1" t="str"><v>fee</v></c></row>'
    '<row r="2"><c r="A2"><v>1</v></c><c r="B2"><f>A2*2</f><v>2.50</v></c><c r="C2" t="b"><v>1</v></c></row>'
    '<row r="4" hidden="1"><c r="A4" t="e"><v>#DIV/0!</v></c></row></sheetData>'
    '<mergeCells><mergeCell ref="A1:B1"/></mergeCells></worksheet>',
}


def make_seeds() -> list[bytes]:
    """Return the XML of a sheet, and whole files."""
    return [PARTS[SHEET].encode(), pack(PARTS), pack(PARTS, zipfile.ZIP_DEFLATED)]


def execute(data: bytes) -> None:
    """Convert a file, or a file with this XML as its sheet."""
    convert_part(data, ".xlsx", PARTS, SHEET)
