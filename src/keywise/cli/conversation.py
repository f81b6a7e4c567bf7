"""A conversation about documents on a terminal."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from keywise.cli.command import describe_option
from keywise.cli.replies import Reply, write_ablations, write_reply, write_sources
from keywise.cli.session import Session
from keywise.cli.terminal import print_notice, write
from keywise.documents.report import to_html, write_text_file
from keywise.errors import KeywiseError
from keywise.util.optional_imports import require_modules
from keywise.util.paths import locate_cache_folder

if TYPE_CHECKING:
    from prompt_toolkit.history import History

HISTORY_FILE = "questions"
PROMPT = "> "
HELP = """\
Ask a question; one such as "And when was that?" refers to the one before.
/sources     all ranked sentences of the last answer, with their places
/ablate      how much less likely the last answer is without each of its best sentences
/open        show the last answer and the documents in a browser
/model NAME  answer with another model
/help        this text
/quit        leave, as Ctrl-D does
"""


class Conversation:
    """Questions, answers and commands, one after the other.

    Parameters
    ----------
    session
        What is asked.
    html
        A page that is written after every answer, or None.

    Attributes
    ----------
    replies : list of Reply
        The answers so far.
    """

    def __init__(self, session: Session, *, html: str | None = None) -> None:
        self.replies: list[Reply] = []
        self._session = session
        self._html = html
        self._commands: dict[str, Callable[[str], None]] = {
            "/sources": self._show_sources,
            "/ablate": self._ablate,
            "/open": self._open,
            "/model": self._load_model,
            "/help": self._show_help,
        }

    def run(self, read_line: Callable[[], str]) -> None:
        """Answer lines until their end.

        Parameters
        ----------
        read_line
            Returns the next line. It raises EOFError at the end and KeyboardInterrupt for Ctrl-C.
        """
        while True:
            try:
                line = read_line().strip()
            except KeyboardInterrupt:
                continue  # as in a shell: Ctrl-C clears the line
            except EOFError:
                return
            if line == "/quit":
                return
            if not line:
                continue
            try:
                self.answer_line(line)
            except KeyboardInterrupt:
                print_notice("interrupted")
            except KeywiseError as error:
                print_notice(error.describe(describe_option(error.argument)))

    def answer_line(self, line: str) -> None:
        """Answer a question or do what a command says.

        Raises
        ------
        KeywiseError
            That fails.
        """
        name, _, argument = line.partition(" ")
        if name in self._commands:
            self._commands[name](argument.strip())
        elif name.startswith("/") and "/" not in name[1:]:
            print_notice(f"there is no command {name}; /help lists them")
        else:
            self._answer(line)

    def _answer(self, question: str) -> None:
        session = self._session
        reply = session.ask(question, replies=self.replies, on_token=write)
        self.replies.append(reply)
        write_reply(reply, session.console, session.options, has_table=False, is_written=True)
        if self._html is not None:
            write_text_file(self._html, make_page(reply))

    def _show_sources(self, _argument: str) -> None:
        reply = self._find_last()
        if reply is not None:
            write_sources(reply, self._session.console, top=None)

    def _ablate(self, _argument: str) -> None:
        reply = self._find_last()
        if reply is not None:
            write_ablations(self._session.ablate(reply))

    def _open(self, _argument: str) -> None:
        reply = self._find_last()
        if reply is None:
            return
        page = make_page(reply)
        # The folder is private: the page has the text of the documents.
        path = Path(tempfile.mkdtemp(prefix="keywise-")) / "answer.html"
        write_text_file(path, page)
        fragment = "box-1" if 'id="box-1"' in page else "rank-1"
        if webbrowser.open(f"{path.as_uri()}#{fragment}"):
            self._session.notify(f"Opened {path}")
        else:
            self._session.notify(f"There is no browser here; the page is {path}")

    def _load_model(self, name: str) -> None:
        if not name:
            write(f"{self._session.model}\n")
            return
        self._session.load(name)
        self._session.read()

    def _show_help(self, _argument: str) -> None:
        write(HELP)

    def _find_last(self) -> Reply | None:
        if not self.replies:
            print_notice("ask a question first")
            return None
        return self.replies[-1]


def make_page(reply: Reply) -> str:
    """Return the report page of an answer."""
    # A library's documents are not here: the page has the passages that were read.
    return to_html(reply.answer, reply.document.sources)


def converse(session: Session, *, html: str | None, reads_documents: bool) -> None:
    """Hold a conversation on the terminal until Ctrl-D or /quit.

    Parameters
    ----------
    session
        What is asked.
    html
        A page that is written after every answer, or None.
    reads_documents
        Whether the documents are read before the first question.

    Raises
    ------
    ModelError
        The package for the prompt is not installed.
    """
    require_modules("app", "prompt_toolkit")
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - needed on terminals only
    from prompt_toolkit.output import create_output  # noqa: PLC0415

    if reads_documents:
        session.read()
    # Standard output has the answers alone if it is a file.
    output = create_output(sys.stdout if sys.stdout.isatty() else sys.stderr)
    prompt: PromptSession[str] = PromptSession(PROMPT, history=open_history(session), output=output)
    write("Ask a question; /help lists the commands, Ctrl-D leaves.\n")
    Conversation(session, html=html).run(prompt.prompt)


def open_history(session: Session) -> History:
    """Return the history of questions: a file that only its owner can read, or memory where none is kept."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory  # noqa: PLC0415

    if not session.options.keep:
        return InMemoryHistory()
    path = locate_cache_folder() / HISTORY_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_private_file(path)
    except OSError as error:
        session.notify(f"Questions are not kept: {path} cannot be written: {error.strerror}")
        return InMemoryHistory()
    return FileHistory(path)


def make_private_file(path: Path) -> None:
    """Make sure that a file exists and that only its owner can read it.

    Raises
    ------
    OSError
        It cannot be made, or something else has its name.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise FileExistsError(None, "it is not a regular file", os.fspath(path))
        os.fchmod(handle, 0o600)
    finally:
        os.close(handle)
