"""PPTX files: text, or `FormatError`, within the limits of the conversion."""

import zipfile

from tests.fuzz.targets.packages import convert_part, pack

OFFICE = "http://schemas.openxmlformats.org/"
DRAWING = f"{OFFICE}drawingml/2006/main"
MAIN = f"{OFFICE}presentationml/2006/main"
RELATION = f"{OFFICE}officeDocument/2006/relationships"
TYPE = "application/vnd.openxmlformats-officedocument.presentationml"
SLIDE = "ppt/slides/slide1.xml"
LAYOUT = "ppt/slideLayouts/slideLayout1.xml"
PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{OFFICE}package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/ppt/presentation.xml" ContentType="{TYPE}.presentation.main+xml"/>'
    f'<Override PartName="/{SLIDE}" ContentType="{TYPE}.slide+xml"/>'
    f'<Override PartName="/{LAYOUT}" ContentType="{TYPE}.slideLayout+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{OFFICE}package/2006/relationships"><Relationship Id="r1" '
    f'Type="{RELATION}/officeDocument" Target="ppt/presentation.xml"/></Relationships>',
    "ppt/_rels/presentation.xml.rels": f'<Relationships xmlns="{OFFICE}package/2006/relationships"><Relationship '
    f'Id="r1" Type="{RELATION}/slide" Target="slides/slide1.xml"/></Relationships>',
    "ppt/presentation.xml": f'<p:presentation xmlns:p="{MAIN}" xmlns:r="{RELATION}"><p:sldIdLst><p:sldId id="256" '
    'r:id="r1"/></p:sldIdLst></p:presentation>',
    "ppt/slides/_rels/slide1.xml.rels": f'<Relationships xmlns="{OFFICE}package/2006/relationships"><Relationship '
    f'Id="r1" Type="{RELATION}/slideLayout" Target="../slideLayouts/slideLayout1.xml"/></Relationships>',
    LAYOUT: f'<p:sldLayout xmlns:p="{MAIN}"><p:cSld><p:spTree><p:nvGrpSpPr/><p:grpSpPr/></p:spTree></p:cSld>'
    "</p:sldLayout>",
    SLIDE: f'<p:sld xmlns:p="{MAIN}" xmlns:a="{DRAWING}"><p:cSld><p:spTree><p:nvGrpSpPr/><p:grpSpPr/>'
    '<p:sp><p:nvSpPr><p:cNvPr id="2" name="t"/><p:cNvSpPr/><p:nvPr><p:ph type="title"/></p:nvPr></p:nvSpPr><p:spPr/>'
    "<p:txBody><a:bodyPr/><a:p><a:r><a:t>Lamps</a:t></a:r></a:p></p:txBody></p:sp>"
    '<p:sp><p:nvSpPr><p:cNvPr id="3" name="b"/><p:cNvSpPr/><p:nvPr/></p:nvSpPr><p:spPr><a:xfrm><a:off x="1" y="2"/>'
    '<a:ext cx="3" cy="4"/></a:xfrm></p:spPr><p:txBody><a:bodyPr/><a:p><a:pPr lvl="1"><a:buAutoNum '
    'type="arabicPeriod"/></a:pPr><a:r><a:t>It is lit.</a:t></a:r><a:br/><a:r><a:t>Wet.</a:t></a:r></a:p></p:txBody>'
    '</p:sp><p:graphicFrame><p:nvGraphicFramePr><p:cNvPr id="4" name="g"/><p:cNvGraphicFramePr/><p:nvPr/>'
    '</p:nvGraphicFramePr><p:xfrm/><a:graphic><a:graphicData uri="http://schemas.openxmlformats.org/drawingml/2006/table">'
    '<a:tbl><a:tblPr firstRow="1"/><a:tblGrid><a:gridCol w="1"/></a:tblGrid><a:tr h="1"><a:tc gridSpan="2"><a:txBody>'
    "<a:bodyPr/><a:p><a:r><a:t>fee</a:t></a:r></a:p></a:txBody></a:tc></a:tr></a:tbl></a:graphicData></a:graphic>"
    "</p:graphicFrame></p:spTree></p:cSld></p:sld>",
}


def make_seeds() -> list[bytes]:
    """Return the XML of a slide, and whole files."""
    return [PARTS[SLIDE].encode(), pack(PARTS), pack(PARTS, zipfile.ZIP_DEFLATED)]


def execute(data: bytes) -> None:
    """Convert a file, or a file with this XML as its slide."""
    convert_part(data, ".pptx", PARTS, SLIDE)
