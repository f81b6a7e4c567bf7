"""A process of the command line on a terminal of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping

from tests.support.command_line import PROCESS, restore_control_c

WAITING_SECONDS = 60
_ESCAPES = re.compile(rb"\x1b(?:\[[0-9;?]*[a-zA-Z]|[=>]|\][^\x07]*\x07)")


class TerminalProcess:
    """A process of `keywise` whose input and output are a terminal.

    Attributes
    ----------
    shown
        What it has written, without the terminal's control sequences.
    """

    def __init__(self, *arguments: object, environment: Mapping[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        self.shown = ""
        self._process = subprocess.Popen(
            [*PROCESS, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **(environment or {})},
            start_new_session=True,
            preexec_fn=restore_control_c,  # noqa: PLW1509
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        """Type a text; ``"\\x04"`` is Ctrl-D."""
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Send the signal of Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def expect(self, text: str, seconds: float = WAITING_SECONDS) -> str:
        """Return what is written up to a text, and what follows until the process waits."""
        end = time.monotonic() + seconds
        written = b""
        while text not in _clean(written):
            assert time.monotonic() < end, f"{text!r} is not shown: {_clean(written)[-2000:]}"
            written += self._read_available(end)
        self.shown += _clean(written)
        return _clean(written)

    def wait(self, seconds: float = WAITING_SECONDS) -> int:
        """Return the exit code."""
        end = time.monotonic() + seconds
        written = b""
        while self._process.poll() is None:
            assert time.monotonic() < end, _clean(written)[-2000:]
            written += self._read_available(min(end, time.monotonic() + 0.2))
        self.shown += _clean(written)
        return self._process.returncode

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def _read_available(self, end: float) -> bytes:
        ready, _, _ = select.select([self._ours], [], [], max(end - time.monotonic(), 0))
        try:
            return os.read(self._ours, 65536) if ready else b""
        except OSError:  # the process has closed the terminal
            return b""


def _clean(written: bytes) -> str:
    return _ESCAPES.sub(b"", written).decode("utf-8", "replace").replace("\r", "")
