"""RTF files: text, or `FormatError`, within the limits of the conversion."""

from tests.fuzz.targets.conversions import convert


def make_seeds() -> list[bytes]:
    """Return files with styles, lists, tables, notes, hidden text and characters of code pages."""
    return [
        rb"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0\fcharset128 M;}}{\stylesheet{\s1\outlinelevel0 heading 1;}}"
        rb"\pard\s1 Lamps\par\pard It is {\v not }lit\'e9.{\footnote A note.}\u8364?\par}",
        rb"{\rtf1\ansi{\*\listtable{\list\listid1}}{\listtext\'b7\tab}one\par\trowd\cellx9\intbl a\cell b\cell\row}",
        rb"{\rtf1\uc2\u-10179??\u-8704??{\pict\bin4 abcd}{\field{\*\fldinst HYPERLINK}{\fldrslt link}}\bin-1\'}",
    ]


def execute(data: bytes) -> None:
    """Convert a file."""
    convert(data, ".rtf")
