"""Text for a terminal: control characters never reach it, newlines and tabs do."""

from __future__ import annotations

import json

from keywise.util.terminal_text import format_json, replace_controls

CONTROLS = [chr(code) for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))]

TURNS = [chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))]


def test_controls_are_replaced_except_newlines_and_tabs() -> None:
    for control in CONTROLS:
        expected = control if control in "\n\t" else "\ufffd"
        assert replace_controls(f"a{control}b") == f"a{expected}b", ascii(control)


def test_bidirectional_controls_and_surrogates_are_replaced() -> None:
    for control in (*TURNS, "\u2028", "\u2029", "\udcff"):
        assert replace_controls(f"a{control}b") == "a\ufffdb", ascii(control)


def test_marks_of_scripts_from_right_to_left_are_unchanged() -> None:
    text = "\u05d0\u200e1\u200f \u0627\u061c2 \u0645\u06cc\u200c\u062e"
    assert replace_controls(text) == text


def test_windows_newlines_become_newlines() -> None:
    assert replace_controls("a\r\nb\rc") == "a\nb\ufffdc"


def test_other_text_is_unchanged() -> None:
    text = "Überall \u20ac 漢字 \U0001f600 \u200b"
    assert replace_controls(text) == text


def test_json_escapes_every_control_and_parses_back() -> None:
    unsafe = [*CONTROLS, *TURNS, "\u2028", "\u2029", "\udcff"]
    value = {"name": "".join(unsafe), "words": ["Über", 1, None, True]}
    text = format_json(value)
    assert json.loads(text) == value
    assert not (set(unsafe) - {"\n"}) & set(text)
    assert text.endswith("}\n")
    assert "Über" in text


def test_json_of_other_values_is_their_text() -> None:
    assert json.loads(format_json({"error": ValueError("x")})) == {"error": "x"}
