"""Documents as they are shown: structure, spans, cells, marks."""

from __future__ import annotations

import pytest

from keywise.documents import Answer, AnswerWord, Evidence, Source
from keywise.documents.blocks import render_row
from keywise.documents.files import read_content
from keywise.documents.shading import find_cited_ranks, make_shading
from keywise.documents.view import make_view, split_row


def rank(text: str, start: int, share: float, number: int) -> Evidence:
    scores = (share, 1.0, 1.0, 1.0, 0.4, 1.0, 1.0, None, None, number)
    return Evidence(text, start, start + len(text), "note", *scores)


@pytest.mark.parametrize("text", ["", "It rains.", "  One.\n\n\tTwo.  \n", "# Not a heading. Text", "a\r\nb\r\n"])
def test_a_text_without_structure_is_shown_as_it_stands(text: str) -> None:
    (group,) = make_view(Source("note", text)).groups
    assert group.kind == "plain"
    assert "".join(piece.text for piece in group.items[0]) == text


def test_a_plain_text_whose_blocks_are_known_is_shown_as_it_stands_too() -> None:
    text = "TITLE\n\nIt  rains.\nIt is dry.\n"
    source = read_content(text.encode(), "note.txt", isolated=True)
    assert source.blocks
    (group,) = make_view(source).groups
    assert "".join(piece.text for piece in group.items[0]) == text


def test_blocks_of_a_kind_are_a_group() -> None:
    text = "# A\n\nOne. Two.\n\n## B\n\n- x\n- y\n\n| n | m |\n| - | - |\n| 1 | 2 |\n\n```\ncode\n```\n"
    view = make_view(read_content(text.encode(), "note.md"))
    assert [(group.kind, group.level, len(group.items)) for group in view.groups] == [
        ("heading", 3, 1),
        ("paragraph", 0, 1),
        ("heading", 4, 1),
        ("list", 0, 2),
        ("table", 0, 2),
        ("code", 0, 1),
    ]
    assert [row[0].cells for row in view.groups[4].items] == [("n", "m"), ("1", "2")]
    assert [piece.text for piece in view.groups[1].items[0]] == ["One.", "Two."]


@pytest.mark.parametrize(
    ("cells", "header"),
    [
        (["North", "2,100", ""], ["region", "sales", "note"]),
        (["", "x: y; z"], ["a", "b"]),
        (["a; b", "c"], ["first", "second"]),
        (["only"], ["one"]),
    ],
)
def test_cells_of_a_row_are_found_again(cells: list[str], header: list[str]) -> None:
    assert split_row(render_row(cells, header), header) == tuple(cells)


@pytest.mark.parametrize("header", [[], ["same", "same"], ["", "b"], ["other", "names"]])
def test_a_row_whose_cells_are_not_clear_has_none(header: list[str]) -> None:
    assert split_row("region: North; sales: 2", header) == ()


def test_two_tones() -> None:
    evidence = [rank("a", 0, 0.7, 1), rank("b", 2, 0.2, 2), rank("c", 4, 0.001, 3), rank("d", 6, 0.0, 4)]
    words = [AnswerWord(0, 1, (2,)), AnswerWord(2, 3, (3,))]
    answer = Answer("b c", evidence, "What?", "m", True, 9, 2, words=words)
    shading = make_shading(answer)
    assert [shading.describe_tone(number) for number in (1, 2, 3, 4)] == ["context", "cited", "cited", None]
    assert find_cited_ranks(answer) == [2, 3]
    unsupported = Answer("b c", evidence, "What?", "m", True, 9, 2, words=words, no_answer_share=0.51)
    assert make_shading(unsupported).marked == frozenset()
    assert find_cited_ranks(unsupported) == []
