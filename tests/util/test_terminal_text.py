"""Text for a terminal: control characters never reach it, newlines and tabs do."""

from __future__ import annotations

import json

from keywise.util.terminal_text import format_json, replace_controls

CONTROLS = [chr(code) for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))]


def test_controls_are_replaced_except_newlines_and_tabs() -> None:
    for control in CONTROLS:
        expected = control if control in "\n\t" else "\ufffd"
        assert replace_controls(f"a{control}b") == f"a{expected}b", ascii(control)


def test_windows_newlines_become_newlines() -> None:
    assert replace_controls("a\r\nb\rc") == "a\nb\ufffdc"


def test_other_text_is_unchanged() -> None:
    text = "Überall \u20ac 漢字 \U0001f600 \u200b"
    assert replace_controls(text) == text


def test_json_escapes_every_control_and_parses_back() -> None:
    value = {"name": "".join(CONTROLS), "words": ["Über", 1, None, True]}
    text = format_json(value)
    assert json.loads(text) == value
    assert not set(CONTROLS) - {"\n"} & set(text)
    assert text.endswith("}\n")
    assert "Über" in text


def test_json_of_other_values_is_their_text() -> None:
    assert json.loads(format_json({"error": ValueError("x")})) == {"error": "x"}
