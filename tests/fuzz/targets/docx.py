"""DOCX files: text, or `FormatError`, within the limits of the conversion."""

import zipfile

from tests.fuzz.targets.packages import convert_part, pack

OFFICE = "http://schemas.openxmlformats.org/"
PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{OFFICE}package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Override PartName="/word/document.xml" ContentType="application/'
    'vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{OFFICE}package/2006/relationships"><Relationship Id="r1" '
    f'Type="{OFFICE}officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>',
}
DOCUMENT = "word/document.xml"
XML = (
    f'<w:document xmlns:w="{OFFICE}wordprocessingml/2006/main"><w:body>'
    "<w:p><w:r><w:t>The lamp is lit.</w:t></w:r></w:p>"
    "<w:tbl><w:tr><w:tc><w:p><w:r><w:rPr><w:b/></w:rPr><w:t>a</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
    "</w:body></w:document>"
)


def make_seeds() -> list[bytes]:
    """Return the XML of a document, and a whole file."""
    parts = {**PARTS, DOCUMENT: XML}
    return [XML.encode(), pack(parts), pack(parts, zipfile.ZIP_DEFLATED)]


def execute(data: bytes) -> None:
    """Convert a file, or a file with this XML as its document."""
    convert_part(data, ".docx", PARTS, DOCUMENT)
