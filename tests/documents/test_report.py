"""Reports: JSON with fixed keys, a table of any text, a self-contained page that escapes everything."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from keywise.documents import Ablation, Answer, AnswerWord, Evidence, Source
from keywise.documents.blocks import Box
from keywise.documents.files import read_content
from keywise.documents.report import (
    list_sources,
    make_evidence_table,
    make_quote,
    split_by_sources,
    to_html,
    to_json,
    write_html,
)
from keywise.errors import FormatError, OptionError

HOSTILE = 'It is <script>alert("x")</script> here. The [red]rest[/red] & more\n\n  is {{ 7 * 7 }}. Third.'
SOURCES = [Source('a"<b>.md', HOSTILE), Source("b.md", "Other file. Same start.")]


def evidence(text, start, end, source, share, rank):
    return Evidence(text, start, end, source, share, 0.2, 0.4, 0.3, share - 0.01, 0.1, 0.2, 0.5, 0.4, rank)


def ranked(sources):
    spans = [(source, start, end) for source in sources for start, end in source.sentences]
    shares = [1 / 2, 1 / 4, 1 / 8, 1 / 8, *[0.0] * len(spans)]
    return [
        evidence(source.text[start:end], start, end, source.name, shares[i], i + 1)
        for i, (source, start, end) in enumerate(spans)
    ]


ANSWER = Answer("<img src=x> it is.", ranked(SOURCES), "What <is> it?", "m&m", False, 12, 5)


class Page(HTMLParser):
    """Collects what a browser would load, run and show."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.texts, self.open_text, self.depth = [], [], [], False, 0
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.links += [values[name] for name in ("src", "href", "action", "data") if name in values]
        assert not [name for name in values if name.startswith("on")]
        if tag == "div":
            self.depth += self.open_text
            if "text" in (values.get("class") or "").split():
                self.open_text = True
                self.texts.append("")

    def handle_endtag(self, tag):
        if tag == "div" and self.open_text:
            self.open_text = False

    def handle_data(self, data):
        if self.open_text:
            self.texts[-1] += data


def test_json_has_fixed_keys_and_the_values_of_the_answer():
    report = json.loads(json.dumps(to_json(ANSWER, top=2)))
    numbers = [
        "answer_model",
        "document_tokens",
        "reused_tokens",
        "answer_tokens",
        "sentences",
        "tuned_on",
        "no_answer_share",
        "windows",
        "read_windows",
        "quote",
        "confidence",
    ]
    assert list(report) == ["question", "text", "complete", "model", *numbers, "where", "words", "evidence"]
    assert len(report["evidence"]) == 2
    first = report["evidence"][0]
    place = ["source", "start", "end", "page", "heading_path"]
    scores = [
        "attention",
        "matching",
        "copying",
        "mass",
        "lexical",
        "paragraph_lexical",
        "semantic",
        "paragraph_semantic",
    ]
    assert list(first) == ["rank", "share", *scores, *place, "text", "where", "boxes"]
    assert [first[name] for name in scores] == [0.2, 0.4, 0.3, 0.49, 0.1, 0.2, 0.5, 0.4]
    assert HOSTILE[first["start"] : first["end"]] == first["text"]
    assert len(to_json(ANSWER)["evidence"]) == len(ANSWER.evidence)


def test_json_lists_ablations():
    ablations = [Ablation(ANSWER.evidence[0], 7.5, control=False), Ablation(ANSWER.evidence[3], -0.5, control=True)]
    assert "ablation" not in to_json(ANSWER)
    assert to_json(ANSWER, ablations=ablations)["ablation"] == [
        {"rank": 1, "drop_nats": 7.5, "control": False},
        {"rank": 4, "drop_nats": -0.5, "control": True},
    ]


def test_page_escapes_its_input_and_loads_nothing():
    page = Page(to_html(ANSWER, SOURCES))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "b" not in page.tags
    assert page.links
    assert all(link.startswith("#rank-") for link in page.links)
    text = to_html(ANSWER, SOURCES)
    assert "url(" not in text
    assert "@import" not in text
    assert "http:" not in text
    assert "https:" not in text
    style = re.search(r"<style>(.*)</style>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    assert " style=" not in text


def test_page_shows_the_documents_unchanged():
    assert Page(to_html(ANSWER, SOURCES)).texts == [source.text for source in SOURCES]


def test_page_replaces_control_and_bidirectional_characters():
    text = "A \u202enaf dnoces\u202c \x1b[31m\u2066x\u2069 rains."
    source = Source("note\u202e", text)
    page = to_html(Answer(text, [], text, "m\u202e", True, 9, 2), [source])
    assert not set(page) & set("\u202e\u202c\x1b\u2066\u2069")
    assert page.count("A \ufffdnaf dnoces\ufffd") >= 3


def list_tones(page):
    return {int(rank): tone for rank, tone in re.findall(r'<mark id="rank-(\d+)" class="sentence (\w+)"', page)}


def test_page_marks_cited_sentences_strongly_and_others_with_a_share_faintly():
    assert list_tones(to_html(ANSWER, SOURCES)) == dict.fromkeys([1, 2, 3, 4], "context")
    cited = replace(ANSWER, words=[AnswerWord(0, 4, (2,))])
    assert list_tones(to_html(cited, SOURCES)) == {1: "context", 2: "cited", 3: "context", 4: "context"}
    shares = [0.9, 0.09, 0.01, 0.0, *[0.0] * (len(ANSWER.evidence) - 4)]
    evidence = [replace(item, share=share) for item, share in zip(ANSWER.evidence, shares, strict=True)]
    assert list_tones(to_html(replace(ANSWER, evidence=evidence), SOURCES)) == {1: "context", 2: "context"}
    assert 'id="rank-3"' in to_html(replace(ANSWER, evidence=evidence), SOURCES)


def test_page_marks_nothing_if_no_sentence_answers():
    unsupported = replace(ANSWER, words=[AnswerWord(0, 4, (2,))], no_answer_share=0.6)
    page = to_html(unsupported, SOURCES)
    assert "<mark" not in page
    assert page.count('href="#rank-1"') == 1, "the list of sentences still leads to them"


def test_page_shows_the_structure_of_a_document():
    table = "| year | fee |\n| --- | --- |\n| 1862 | 3 |"
    text = f"# Fees\n\nThe **fee** rose.\n\n* one\n* two\n\n{table}\n\n```\nx = 1\n```\n"
    source = read_content(text.encode(), "fees.md")
    page = to_html(Answer("rose", [], "What?", "m", True, 9, 2), [source])
    tags = re.sub(r' [a-z-]+="[^"]*"', "", page.partition('<div class="text">')[2].partition("</section>")[0])
    assert tags.replace("<span>", "").replace("</span>", "") == (
        "<h3>Fees</h3><p>The fee rose.</p><ul><li>one</li><li>two</li></ul>"
        "<div><table><tr><th>year</th><th>fee</th></tr><tr><td>1862</td><td>3</td></tr></table></div>"
        "<pre>x = 1</pre></div>"
    )
    spans = [(int(start), int(end)) for start, end in re.findall(r'data-start="(\d+)" data-end="(\d+)"', page)]
    assert spans == list(source.sentences)


def test_a_page_that_cannot_be_written_leaves_no_file(tmp_path):
    path = tmp_path / "answer.html"
    write_html(path, ANSWER, SOURCES)
    assert path.read_text(encoding="utf-8") == to_html(ANSWER, SOURCES)
    assert list(tmp_path.iterdir()) == [path]
    folder = tmp_path / "folder.html"
    folder.mkdir()
    with pytest.raises(FormatError, match=r"folder\.html"):
        write_html(folder, ANSWER, SOURCES)
    with pytest.raises(FormatError, match=r"must name a file that can be written, got .*gone"):
        write_html(tmp_path / "gone" / "answer.html", ANSWER, SOURCES)
    with pytest.raises(FormatError) as caught:
        write_html(folder, ANSWER, SOURCES)
    assert ".keywise-" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [path, folder]


def test_table_draws_bars_by_share_and_ignores_markup():
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(make_evidence_table(ANSWER.evidence, top=3))
    drawn = console.file.getvalue()
    assert "[red]rest[/red]" in drawn
    assert f'[1] a"<b>.md, characters {ANSWER.evidence[0].start} to {ANSWER.evidence[0].end}' in drawn
    assert [line.count("█") for line in drawn.splitlines() if "%" in line] == [16, 8, 4]


def test_table_without_any_share_says_that_no_sentence_stands_out():
    nothing = [evidence("It rains.", 0, 9, "note", 0.0, 1)]
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(make_evidence_table(nothing))
    assert console.file.getvalue() == "no sentence stands out\n"
    assert "note" in to_html(Answer("?", nothing, "?", "m", True, 1, 1), [Source("note", "It rains.")])


def test_table_leaves_out_sentences_without_share():
    shares = [0.997, 0.003, 0.0, 0.0]
    items = [evidence(f"No {i}.", i, i + 1, "note", share, i + 1) for i, share in enumerate(shares)]
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(make_evidence_table(items))
    assert [line.split()[0] for line in console.file.getvalue().splitlines() if "%" in line] == ["100%", "<1%"]


def test_table_replaces_control_characters_of_a_document():
    from keywise.util.terminal_text import replace_controls

    assert replace_controls("a\x1b[31m\x07\x9b\x7f\r\n\tb é😀") == "a\ufffd[31m\ufffd\ufffd\ufffd\n\tb é😀"
    hostile = [evidence("Red \x1b[31mtext\x07.", 0, 15, "no\x1bte\x9b", 1.0, 1)]
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(make_evidence_table(hostile))
    assert not [c for c in console.file.getvalue() if c != "\n" and (c < " " or "\x7f" <= c <= "\x9f")]


def test_words_of_an_answer_are_marked_with_their_sources():
    words = [AnswerWord(0, 3, (1,)), AnswerWord(4, 7, (1,)), AnswerWord(8, 11, ()), AnswerWord(12, 16, (2, 1))]
    two = replace(ANSWER, text="Ann Low and <Jo>!.", words=words)
    assert split_by_sources(two) == [("Ann Low", (1,)), (" and", ()), (" <Jo>", (2, 1)), ("!.", ())]
    assert list_sources(two, top=2) == [1, 2]
    assert list_sources(two, top=1) == [1]
    page = to_html(two, SOURCES)
    assert 'href="#rank-1" title="from sentence 1">Ann Low<sup>1</sup></a> and' in page
    assert 'title="from sentence 2, sentence 1"> &lt;Jo&gt;<sup>2</sup><sup>1</sup></a>!.' in page
    assert list_sources(ANSWER, top=5) == []


def test_a_page_warns_of_a_doubtful_answer():
    assert "no heads are tuned for model m&amp;m" in to_html(ANSWER, SOURCES)
    tuned = replace(ANSWER, tuned_on="questions", no_answer_share=0.4)
    assert 'class="doubt"' not in to_html(tuned, SOURCES)
    assert "probably not in the document" in to_html(replace(tuned, no_answer_share=0.6), SOURCES)


def test_a_top_below_1_is_refused():
    with pytest.raises(OptionError, match=r"top must be .* got 0"):
        to_json(ANSWER, top=0)
    with pytest.raises(OptionError, match=r"top must be .* got -1"):
        make_evidence_table(ANSWER.evidence, top=-1)


def test_json_and_table_name_places_in_words():
    report = to_json(ANSWER, sources=SOURCES)
    assert report["where"] == 'a"<b>.md, line 1'
    assert [item["where"] for item in report["evidence"]][:3] == [
        'a"<b>.md, line 1',
        *['a"<b>.md, line 3'] * 2,
    ]
    box = Box(0, 4, 2, 72.0, 700.0, 96.0, 712.0)
    first = replace(ANSWER.evidence[0], source="a.pdf", page=2, boxes=(box,), heading_path=("Rain",))
    item = to_json(replace(ANSWER, evidence=[first]))["evidence"][0]
    assert item["boxes"] == [{"page": 2, "left": 72.0, "bottom": 700.0, "right": 96.0, "top": 712.0}]
    assert (item["page"], item["heading_path"], item["where"]) == (2, ("Rain",), "a.pdf, page 2")
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(make_evidence_table(ANSWER.evidence, sources=SOURCES))
    assert '[3] a"<b>.md, line 3' in console.file.getvalue()
    assert "characters" not in console.file.getvalue()


def test_the_quoted_words_stand_out_in_their_sentence():
    sentence = evidence("The lamp\nwas lit by [red] Ann\x1b Low.", 0, 36, "note", 0.6, 2)
    answer = replace(
        ANSWER,
        text="Ann\x1b Low",
        evidence=[evidence("Rain.", 40, 45, "note", 0.7, 1), sentence],
        words=[AnswerWord(0, 4, (2,)), AnswerWord(5, 8, (2,))],
        sentences=1,
        quote=sentence.text,
    )
    quote = make_quote(answer)
    assert quote.plain == "“The lamp was lit by [red] Ann\ufffd Low.” note, characters 0 to 36"
    assert [quote.plain[span.start : span.end] for span in quote.spans if "bold" in str(span.style)] == [
        "Ann\ufffd Low"
    ]
    whole = make_quote(replace(answer, text=sentence.text))
    assert whole.plain == "note, characters 0 to 36", "a sentence as the answer is not repeated"
    written = make_quote(replace(answer, sentences=0, text="Somebody."))
    assert written.plain.endswith("note, characters 40 to 45")
    assert make_quote(replace(answer, evidence=[])) is None


def test_the_document_comes_first_on_a_phone_and_shading_is_printed():
    page = to_html(ANSWER, SOURCES)
    assert page.index('<div class="text') < page.index("<aside>")
    assert not re.search(r"[ {]order:", page)
    (printed,) = re.findall(r"^.* print-color-adjust: exact; }$", page, re.MULTILINE)
    assert ".sentence.cited" in printed
    assert ".boxes" in printed
    assert "@media print" in page
