"""Markdown files: text, or `FormatError`, within the limits of the conversion."""

from tests.fuzz.targets.conversions import convert


def make_seeds() -> list[bytes]:
    """Return files with headings, lists, tables, code, links, HTML and front matter."""
    return [
        b"---\ntitle: x\n---\n# Lamps\n\nRun `a\\_b` **now**, see [it](http://x 'y'), ![alt](z).\n\n1. one\n   - two\n",
        b"Set\n===\n\n| a | b |\n|---|:-:|\n| `1` | 2\\|3 |\n\n```py\nx = 1\n```\n\n    y = 2\n\n> quoted\n> * z\n",
        b"\xef\xbb\xbf<div hidden>no</div>\r\nA<br>b &amp; <http://x> ~~gone~~\\\r\n[r]: /u 'v'\r\n***\r\n",
    ]


def execute(data: bytes) -> None:
    """Convert a file."""
    convert(data, ".md")
