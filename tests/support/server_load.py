"""Load on a server: many clients at once, each with a document and questions of its own.

``python -m tests.support.server_load --clients 50 --seconds 60`` starts a server and prints what happened.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.server import LIGHTHOUSE, ServerProcess, send

NAMES = ("Ann", "Bea", "Dan", "Eve", "Fay", "Gus", "Ida", "Jon", "Kim", "Lou")


@dataclass
class Load:
    """What happened under load.

    Attributes
    ----------
    answers
        Number of answers.
    wrong
        Answers that belong to another client.
    errors
        Responses that were no answers.
    seconds
        Time of each answer, waiting in the queue included.
    memory_mebibytes
        Resident memory of the server, a few times.
    """

    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory_mebibytes: list[float] = field(default_factory=list)

    def describe(self) -> str:
        """Return the figures in a line."""
        memory = ", ".join(f"{each:.0f}" for each in self.memory_mebibytes)
        median = statistics.median(self.seconds) if self.seconds else 0.0
        return (
            f"{self.answers} answers, {len(self.errors)} errors, {len(self.wrong)} mixed; "
            f"median {median:.1f} s in the queue and after; memory in MiB: {memory}"
        )


def run_load(server: ServerProcess, *, clients: int, seconds: float) -> Load:
    """Let clients ask at the same time, each about its own document.

    Parameters
    ----------
    server
        A running server.
    clients
        Number of clients.
    seconds
        How long they begin new questions.
    """
    load, lock = Load(), threading.Lock()
    model = json.loads(send(server, "GET", "/v1/models")[2])["data"][0]["id"]
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        keeper = f"{NAMES[number % len(NAMES)]} {chr(65 + number // len(NAMES))}{number}son"
        text = f"The lamp of house {number} is red. The keeper of house {number} is {keeper}. It rains there."
        document = [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}}]
        question = {"type": "text", "text": f"Who is the keeper of house {number}?"}
        body = json.dumps(
            {"model": model, "max_tokens": 30, "messages": [{"role": "user", "content": [*document, question]}]}
        ).encode()
        while time.monotonic() < end:
            started = time.monotonic()
            status, _, answer = send(server, "POST", "/v1/messages", body, content_type="application/json")
            _judge(load, lock, status, answer, keeper, time.monotonic() - started)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(max(0.5, seconds / 6))
        load.memory_mebibytes.append(measure_memory(server))
    for thread in threads:
        thread.join()
    return load


def measure_memory(server: ServerProcess) -> float:
    """Return the resident memory of a server in MiB."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def _judge(load: Load, lock: Any, status: int, answer: bytes, keeper: str, seconds: float) -> None:
    with lock:
        if status != 200:
            load.errors.append(f"{status} {answer[:200]!r}")
            return
        text = "".join(block["text"] for block in json.loads(answer)["content"])
        load.answers += 1
        load.seconds.append(seconds)
        if keeper.split()[1] not in text and "house" not in text:
            load.wrong.append(f"{keeper}: {text}")


def main() -> None:
    """Start a server and print what happens to it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ServerProcess(Path(folder), LIGHTHOUSE, "--no-cache") as server:
        load = run_load(server, clients=options.clients, seconds=options.seconds)
    print(load.describe())  # noqa: T201 - a command
    for line in (load.errors + load.wrong)[:10]:
        print(line)  # noqa: T201


if __name__ == "__main__":
    main()
