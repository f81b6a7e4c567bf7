"""Plain text files of every shape: text, or `FormatError`; all letters stand in a sentence."""

from keywise.documents import Source
from tests.fuzz.targets.conversions import convert


def make_seeds() -> list[bytes]:
    """Return prose, a manual page, a chat, a mail, a log, a table, lists, and text of other scripts."""
    return [
        b"RULES\n\nThe lamp was lit in\n1904. It sank. Dr. Low left.\n\n1. one\n   goes on\n- two\n\n> quoted\n",
        b"TAR(1)  Manual  TAR(1)\n\nNAME\n       tar - an archiver\n\n   Tests\n       -a     all\n       -b     two\n",
        b"[14.02.2023, 07:59] Zoe: up?\n[14.02.2023, 08:01] Ben: no\n[14.02.2023, 08:02] Zoe: ok\n",
        b"From: Ann\nDate: Monday\n\nIt is lit.\n\n2024-01-01 10:00:00 ERROR a\n2024-01-01 10:00:01 INFO b\n",
        b"town   people\nHull   267014\nYork   141685\n\n---\ntitle: x\n---\n| a | b |\n|---|---|\n| 1 | 2 |\n",
        "灯塔建于一八六二年。「是的」と言った。\n\nनमस्ते।\u2028\x85\x0b\x1b[1m…\n```\nx = 1\n".encode(),
    ]


def execute(data: bytes) -> None:
    """Convert a file, and split what is UTF-8 into sentences as a text."""
    convert(data, ".txt")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    source = Source("text", text)
    shown = set().union(*(range(start, end) for start, end in source.sentences))
    lost = [place for place, character in enumerate(text) if character.isalnum() and place not in shown]
    assert not lost, f"characters {lost[:5]} stand in no sentence"
