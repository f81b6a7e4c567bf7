"""Answers quoted from short texts of several kinds."""

from __future__ import annotations

import pytest

from keywise.documents import Reader, Source
from keywise.documents.answer import is_yes_no_question
from keywise.documents.blocks import BlockKind
from keywise.documents.extract import tables


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(keep=False)


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("The house was built in 1907. In winter the cellar is at -7.5 degrees.", "How cold is the cellar?", "-7.5"),
        ("The tool is called Lantern. It is written in F# by two people.", "What language is it written in?", "F#"),
        ("The office opens at nine. Its number is 0161 496 0000.", "What is the office's number?", "0161 496 0000"),
        (
            "\u56fe\u4e66\u9986\u5efa\u4e8e1907\u5e74\u3002\u9986\u957f\u662f\u738b\u6d77\u3002",
            "\u56fe\u4e66\u9986\u5efa\u4e8e\u54ea\u4e00\u5e74\uff1f",
            "1907",
        ),
    ],
)
def test_facts_are_quoted_whole(reader: Reader, text: str, question: str, answer: str) -> None:
    assert answer in reader.read(text).ask(question).text


def test_a_question_in_the_text_is_answered_by_the_line_after_it(reader: Reader) -> None:
    document = reader.read(
        "Q: Who painted the boat?\nA: Ida Holm painted it.\n\nQ: How long is the boat?\nA: It is 14 metres long.\n"
    )
    who = document.ask("Who painted the boat?")
    assert who.text == "Ida Holm"
    assert who.evidence[0].text.endswith("Ida Holm painted it.")
    length = document.ask("How long is the boat?")
    assert length.text == "14 metres"
    assert sum(item.share for item in length.evidence) + length.no_answer_share == pytest.approx(1.0)


def test_a_line_that_ends_with_a_colon_leads_to_the_next(reader: Reader) -> None:
    document = reader.read(
        "The prices of the boats per day are:\n\n- Kayak 12 euros\n\nThe harbour is shut in winter.\n"
    )
    assert document.evidence("What are the prices of the boats?")[0].text == "Kayak 12 euros"


def test_a_question_for_yes_or_no_is_answered_by_the_sentence(reader: Reader) -> None:
    answer = reader.read("3. Dogs must stay outside at all times.\n\n4. The bar closes at ten.\n").ask(
        "Are dogs allowed inside?"
    )
    assert answer.text == "Dogs must stay outside at all times."
    assert answer.quote.endswith(answer.text)
    assert answer.confidence is None
    assert answer.complete


def test_a_sentence_of_one_word_is_quoted_with_the_next(reader: Reader) -> None:
    text = "Can I sail in a storm?\n\nNo. Stay in the harbour until the wind drops.\n\nFuel is sold at the pier.\n"
    answer = reader.read(text).ask("Can I sail in a storm?")
    assert "Stay in the harbour" in answer.text


def test_marks_of_parts_are_no_answers(reader: Reader) -> None:
    text = (
        "2.4 The owner may end the contract if the guest (a) does not pay for two weeks; (b) damages the boat; or (c) "
        "sails at night.\n\n2.5 The harbour is shut in winter.\n"
    )
    answer = reader.read(text).ask("In which cases may the owner end the contract?")
    assert len(answer.text) > 10


def test_a_span_without_confidence_gives_way_to_its_sentence(reader: Reader) -> None:
    text = "Send the forms to office.k@pier.example before Friday at noon.\n\nThe cook is called Jo."
    for question in ("Where do I send the forms?", "Who is the cook?", "When do I send the forms?"):
        answer = reader.read(text).ask(question)
        assert answer.confidence is None or answer.confidence >= 0.018
        assert answer.confidence is not None or answer.text == answer.quote == answer.evidence[0].text


def test_a_row_is_answered_as_a_whole_unless_a_cell_is_sure(reader: Reader) -> None:
    rows = "Boat,Maker,Year,Lent to\nHeron,Aldous,1974,Ida Holm\nTern,Berthon,1981,Jo Bell\nGull,Camper,1990,Al Reed\n"
    source = Source("boats.csv", rows, tables.find_blocks(rows))
    for question in ("Who made the Tern?", "Which year is the Gull from?", "To whom is the Heron lent?"):
        answer = reader.read(source).ask(question)
        assert answer.evidence[0].kind == BlockKind.TABLE_ROW
        assert answer.confidence is None or answer.confidence >= 0.6
        assert answer.text in answer.quote


def test_a_quoted_answer_has_its_sentence_and_its_probability(reader: Reader) -> None:
    answer = reader.read("The mill was built by Jon Holm. It burned down in 1911.").ask("Who built the mill?")
    assert answer.text == "Jon Holm"
    assert answer.quote == "The mill was built by Jon Holm."
    assert answer.confidence is not None
    assert 0 < answer.confidence <= 1


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("May I smoke here?", True),
        ("Darf ich rauchen?", True),
        ("\u8fd9\u91cc\u53ef\u4ee5\u5438\u70df\u5417\uff1f", True),
        ("Is it tea or coffee?", False),
        ("Who may smoke?", False),
        ("Isabel Low is who?", False),
    ],
)
def test_questions_for_yes_or_no_begin_with_a_verb(question: str, expected: bool) -> None:
    assert is_yes_no_question(question) is expected
