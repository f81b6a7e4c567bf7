"""Text and JSON for a terminal: no character that a terminal would execute."""

import json
import unicodedata

from keywise.util.terminal_text import format_json, replace_controls

HARMLESS = "\n\t"


def make_seeds() -> list[bytes]:
    """Return texts with escapes and bidirectional controls."""
    texts = ("a \x1b[31mred\x07 word\r\n", "naf \u202ednoces\u202c \u2066five\u2069", "\u2028 \x85 \ud800")
    return [text.encode("utf-8", "surrogatepass") for text in texts]


def execute(data: bytes) -> None:
    """Replace controls, and write the text as JSON."""
    text = data.decode("utf-8", "surrogateescape")
    safe = replace_controls(text)
    written = format_json({"text": text})
    for shown in (safe, written):
        shown.encode()
        for letter in shown:
            is_control = unicodedata.category(letter) == "Cc" and letter not in HARMLESS
            turns = unicodedata.bidirectional(letter) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
            assert not is_control, f"{letter!r} reaches a terminal"
            assert not turns, f"{letter!r} reaches a terminal"
    assert json.loads(written) == {"text": text}
