"""ODT files: text, or `FormatError`, within the limits of the conversion."""

import zipfile

from tests.fuzz.targets.packages import convert_part, pack

NAMESPACE = "urn:oasis:names:tc:opendocument:xmlns:"
PARTS = {
    "mimetype": "application/vnd.oasis.opendocument.text",
    "content.xml": f'<o:document-content xmlns:o="{NAMESPACE}office:1.0" xmlns:t="{NAMESPACE}text:1.0" '
    f'xmlns:b="{NAMESPACE}table:1.0" xmlns:s="{NAMESPACE}style:1.0" xmlns:d="{NAMESPACE}drawing:1.0">'
    '<o:automatic-styles><s:style s:name="H"><s:text-properties t:display="none"/></s:style></o:automatic-styles>'
    '<o:body><o:text><t:h t:outline-level="1">Lamps</t:h><t:p>It is <t:span t:style-name="H">not </t:span>lit.<t:s/>'
    "<t:note><t:note-body><t:p>A note.</t:p></t:note-body></t:note><t:line-break/>Wet.</t:p>"
    "<t:list><t:list-item><t:p>one</t:p></t:list-item></t:list><b:table><b:table-row>"
    '<b:table-cell b:number-columns-repeated="2"><t:p>fee</t:p></b:table-cell></b:table-row></b:table>'
    "<t:p><d:frame><d:text-box><t:p>A box.</t:p></d:text-box></d:frame></t:p></o:text></o:body></o:document-content>",
}


def make_seeds() -> list[bytes]:
    """Return the XML of a document, and whole files."""
    return [PARTS["content.xml"].encode(), pack(PARTS), pack(PARTS, zipfile.ZIP_DEFLATED)]


def execute(data: bytes) -> None:
    """Convert a file, or a file with this XML as its content."""
    convert_part(data, ".odt", PARTS, "content.xml")
