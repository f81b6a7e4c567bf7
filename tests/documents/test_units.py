"""Units that a quotation keeps whole."""

from __future__ import annotations

import pytest

from keywise.documents.units import find_marker_end, find_markers, find_units, has_unspaced_script


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("It fell to -7.5 overnight.", "-7.5"),
        ("The floor is at \u221212 here.", "\u221212"),
        ("Allow for \u00b10.2 mm more.", "\u00b10.2 mm"),
        ("Sales rose 12.75% then.", "12.75%"),
        ("It was 21 \u00b0C inside.", "21 \u00b0C"),
        ("The fare is \u20ac3.80 now.", "\u20ac3.80"),
        ("He paid US$5 for it.", "$5"),
        ("It costs 3 million euros.", "3 million euros"),
        ("The mast is 44 feet high.", "44 feet"),
        ("Written in F# mostly.", "F#"),
        ("Written in C++ mostly.", "C++"),
        ("Edit the .profile first.", ".profile"),
        ("Ping 10.0.254.33 twice.", "10.0.254.33"),
        ("It owes 98.765,43 there.", "98.765,43"),
        ("Call 0161 496 0000 today.", "0161 496 0000"),
        ("ISBN 978-0-306-40615-7 again.", "978-0-306-40615-7"),
        ("See https://example.org/a/b.html#c.", "https://example.org/a/b.html#c"),
        ("Write to jo.low+news@example.org now.", "jo.low+news@example.org"),
        ("Rene\u0301 Low came.", "Rene\u0301"),
        ("\u0938\u0940\u0924\u093e \u0926\u0947\u0935\u0940 \u0925\u0940\u0902\u0964", "\u0938\u0940\u0924\u093e"),
        ("Start run_all-tests.py now.", "run_all-tests.py"),
        ("The fee is _5_ here.", "5"),
        ("In 1914\u20131918 it was shut.", "1914\u20131918"),
    ],
)
def test_numbers_names_and_addresses_stay_whole(text: str, unit: str) -> None:
    assert unit in [text[found.start : found.end] for found in find_units(text)]


def test_words_end_before_punctuation_and_possessives() -> None:
    text = 'He said "Low\u2019s lamp" (new), twice.'
    units = [(text[unit.start : unit.word_end], text[unit.start : unit.end]) for unit in find_units(text)]
    assert units[2:] == [("Low", "Low\u2019s"), ("lamp", "lamp"), ("new", "new"), ("twice", "twice")]


def test_scripts_without_spaces_may_be_quoted_from_any_character() -> None:
    text = "\u5efa\u4e8e1862\u5e74"
    assert [text[unit.start : unit.end] for unit in find_units(text)] == ["\u5efa", "\u4e8e", "1862", "\u5e74"]
    assert has_unspaced_script(text)
    assert not has_unspaced_script("\u0938\u0940\u0924\u093e 1862")


@pytest.mark.parametrize(
    ("sentence", "rest"),
    [
        ("7. Dogs stay out.", " Dogs stay out."),
        ("(c) Dogs stay out.", " Dogs stay out."),
        ("12.3 Dogs stay out.", " Dogs stay out."),
        ("A: Dogs stay out.", " Dogs stay out."),
        ("1862 was a wet year.", "1862 was a wet year."),
        ("No. It is shut.", "No. It is shut."),
    ],
)
def test_numbers_of_clauses_are_no_part_of_the_sentence(sentence: str, rest: str) -> None:
    assert sentence[find_marker_end(sentence) :] == rest


def test_letters_of_clauses_within_a_sentence_are_markers() -> None:
    sentence = "7.1 He may (i) sell or (b) burn it (see above)."
    assert [sentence[start:end] for start, end in find_markers(sentence)] == ["7.1", "(i)", "(b)"]
