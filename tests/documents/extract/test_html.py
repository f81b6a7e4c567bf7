"""Of a page of HTML the text is read that a browser shows, in blocks."""

import pytest

from keywise.documents.extract.html import extract


def describe(html):
    return [(str(block.kind), block.text) for block in extract(html.encode()).blocks]


@pytest.mark.parametrize(
    "hidden",
    [
        "<p hidden>SECRET</p>",
        "<p style='color:red; DISPLAY : none'>SECRET</p>",
        "<p style='visibility:hidden'>SECRET</p>",
        "<div aria-hidden='true'><p>SECRET</p></div>",
        "<template><p>SECRET</p></template>",
        "<script>SECRET</script>",
        "<noscript>SECRET</noscript>",
        "<dialog>SECRET</dialog>",
        "<style>.off, p { color: red } .off { display: none }</style><p class='x off'>SECRET</p>",
        "<nav><ul><li>SECRET</li></ul></nav>",
        "<ul class='main-menu nav'><li><a href='/'>SECRET</a></li></ul>",
        "<div role='navigation'>SECRET</div>",
        "<div id='cookieConsent'>SECRET <button>OK</button></div>",
        "<button>SECRET</button>",
        "<!-- SECRET -->",
        "<svg><text>SECRET</text></svg>",
        "<a href='#main' class='x'>Skip to main content</a>",
        "<math><annotation>SECRET</annotation></math>",
    ],
)
def test_hidden_text_and_furniture_are_left_out(hidden):
    assert describe(f"<h1>Inn</h1>{hidden}<p>Open.</p>") == [("heading", "Inn"), ("paragraph", "Open.")]


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>one<p>two", [("paragraph", "one"), ("paragraph", "two")]),
        ("<p>12 High St<br>Hull<br>England</p>", [
            ("paragraph", "12 High St"), ("paragraph", "Hull"), ("paragraph", "England"),
        ]),
        ("<p>It goes<br>on.</p>", [("paragraph", "It goes on.")]),
        ("<p>It runs on Hull,<br>York, Leeds and all the towns that lie by the northern sea and<br>Whitby.</p>", [
            ("paragraph", "It runs on Hull, York, Leeds and all the towns that lie by the northern sea and Whitby."),
        ]),
        ("<p>Hyphen&shy;ated, bro&#8203;ken.</p>", [("paragraph", "Hyphenated, broken.")]),
        ("<h2>Piers<a href='#p'>¶</a></h2><p>x</p>", [("heading", "Piers"), ("paragraph", "x")]),
        ("<ol><li><div><p>one</p><p>more</p></div><li>two</ol>", [
            ("list item", "1. one"), ("list item", "more"), ("list item", "2. two"),
        ]),
        ("<p>If <math><mi>x</mi><mo>=</mo><mn>2</mn></math>.</p>", [("paragraph", "If x=2.")]),
        ("<table><tr><th colspan=2>Duck<tr><th>Class<td>Aves<tr><th>Order<td>Goose</table>", [
            ("caption", "Duck"), ("table row", "Class; Aves"), ("table row", "Order; Goose"),
        ]),
        ("<table><tr><td>Town<td>Hull<tr><td>Owner<td>Ann</table>", [
            ("table row", "Town; Hull"), ("table row", "Owner; Ann"),
        ]),
        ("<table><tr><td>Pier<td>Fee<td>Depth<tr><td>1<td>2<td>3</td></tr><center><tr><td>4<td>5<td>6</center></table>", [
            ("table header", "Pier; Fee; Depth"), ("table row", "Pier: 1; Fee: 2; Depth: 3"),
            ("table row", "Pier: 4; Fee: 5; Depth: 6"),
        ]),
        (f"<table><tr><td>{'It is wet. ' * 50}<br>It is dry.</table>", [
            ("paragraph", " ".join(["It is wet."] * 50)), ("paragraph", "It is dry."),
        ]),
        (f"<pre>RULES\n\nThe lamp was lit in\n1904. {'It sank. ' * 130}</pre>", [
            ("heading", "RULES"), ("paragraph", f"The lamp was lit in 1904. {' '.join(['It sank.'] * 130)}"),
        ]),
        ("<ol start=3><li>c<li>d<ul><li>e</ul></ol>", [
            ("list item", "3. c"), ("list item", "4. d"), ("list item", "e"),
        ]),
        ("<select><option>red<option>blue</select>", [("list item", "red"), ("list item", "blue")]),
        ("<details><summary>Size</summary>It is 3 m.</details>", [("heading", "Size"), ("paragraph", "It is 3 m.")]),
        ("<dl><dt>Weight:<dd>2 kg<dt>Is it wet?<dd>Yes.</dl>", [
            ("line", "Weight: 2 kg"), ("heading", "Is it wet?"), ("paragraph", "Yes."),
        ]),
        ("<p>10<sup>-6</sup> m, H<sub>2</sub>O, the 5<sup>th</sup></p>", [("paragraph", "10⁻⁶ m, H2O, the 5th")]),
        ("<pre>x = 1\n  y = 2\n\nz</pre>", [("code", "x = 1\n  y = 2"), ("code", "z")]),
        ("<p>wh<b>ol</b>e <i>word</i>s</p>", [("paragraph", "whole words")]),
        ("<p>a_b * c \\ d</p>", [("paragraph", "a_b * c \\ d")]),
        ("<table><caption>Fees</caption><tr><th>Age<th>Fee<tr><td>9<td>£1<tr><td>10<td>£2</table>", [
            ("caption", "Fees"), ("table header", "Age; Fee"),
            ("table row", "Age: 9; Fee: £1"), ("table row", "Age: 10; Fee: £2"),
        ]),
        ("<table><tr><th>Age<td>9<tr><th>Fee<td>£1</table>", [("table row", "Age; 9"), ("table row", "Fee; £1")]),
        ("<table><tr><th>A<th colspan=2>B<tr><td rowspan=2>x<td>1<td>2<tr><td>3<td>4</table>", [
            ("table header", "A; B; B"), ("table row", "A: x; B: 1; B: 2"), ("table row", "A: x; B: 3; B: 4"),
        ]),
        ("<table><tr><td><h2>Left</h2><p>One.</p><td><p>Two.</p></table>", [
            ("heading", "Left"), ("paragraph", "One."), ("paragraph", "Two."),
        ]),
    ],
)  # fmt: skip
def test_elements_become_blocks(html, expected):
    assert describe(html) == expected


def test_blocks_stand_under_their_headings_or_the_title():
    blocks = extract(b"<title>Inn</title><h2>Rooms</h2><p>Six.</p><h2>Food</h2><p>Good.</p>").blocks
    assert [block.heading_path for block in blocks if block.kind == "paragraph"] == [("Inn", "Rooms"), ("Inn", "Food")]


def test_deep_nesting_ends():
    assert "deep" in extract(b"<div>" * 1000 + b"deep" + b"</div>" * 1000).text


def test_a_page_in_utf_8_that_declares_another_encoding_is_read_as_utf_8():
    page = '<meta charset="iso-8859-1"><p>Café – “open”'.encode()
    assert extract(page).text == "Café – “open”"
    assert extract('<meta charset="iso-8859-1"><p>Café'.encode("latin-1")).text == "Café"
