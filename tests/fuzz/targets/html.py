"""HTML files: text, or `FormatError`, within the limits of the conversion."""

from tests.fuzz.targets.conversions import convert


def make_seeds() -> list[bytes]:
    """Return pages with tables, lists, links, entities and hidden parts."""
    return [
        b"<html><head><meta charset='utf-8'><title>t</title><style>p{}</style></head><body><h1>The lamp</h1><p>It is "
        b"<b>lit</b> &amp; warm.</p><ul><li>one<li>two</ul></body></html>",
        b"<table><tr><th colspan=3>a<td rowspan=2>b</table><a href='http://x/?q=1#f'>link</a><img alt=x src=data:,>",
        b"<!DOCTYPE html><p>a<!-- b --><pre>  c </pre><script>d</script><svg><text>e</text></svg><br><hr>&#x1F600;",
    ]


def execute(data: bytes) -> None:
    """Convert a page."""
    convert(data, ".html")
