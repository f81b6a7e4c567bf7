"""Time to the first token of a further question: ``python -m tests.support.server_latency``."""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from keywise.documents import Document, Reader, Source
from keywise.models.loading import load_model
from tests.support.server import ServerProcess, send

TOKENS = 4150
ROUNDS = 9
QUESTIONS = ("Who is the keeper of house 31?", "Who is the keeper of house 7?")


def make_text(tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Return a text of so many tokens, a keeper in each of its lines."""
    lines: list[str] = []
    while count_tokens("\n".join(lines)) < tokens:
        number = len(lines)
        height, keeper = number + 9, f"Ann Low {number}"
        lines.append(f"House {number} stands by the harbour and is {height} metres tall. Its keeper is {keeper}.")
    return "\n".join(lines)


def time_library(document: Document, question: str) -> float:
    """Return the seconds to the first token of an answer."""
    started = time.perf_counter()
    seconds: list[float] = []
    document.ask(question, on_token=lambda _text: seconds.append(time.perf_counter() - started))
    return seconds[0]


def time_server(server: ServerProcess, model: str, question: str) -> float:
    """Return the seconds to the first token of an answer of the server."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    started = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    for line in response:
        if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
            seconds = time.perf_counter() - started
            response.read()
            connection.close()
            return seconds
    raise AssertionError("the answer has no text")


def main() -> None:
    """Print both times and their ratio."""
    reader = Reader(load_model(pack_linear=True), keep=False)
    text = make_text(TOKENS, lambda text: len(reader.evidence_model.prompt.encode_text(text)[0]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "houses.txt"
        path.write_text(text, encoding="utf-8")
        document = reader.read(Source("houses.txt", text))
        with ServerProcess(Path(folder), path, "--no-cache") as server:
            model = json.loads(send(server, "GET", "/v1/models")[2])["data"][0]["id"]
            time_server(server, model, QUESTIONS[1])  # the first question waits for the document
            time_library(document, QUESTIONS[1])
            library, served = [], []
            for _ in range(ROUNDS):
                library.append(time_library(document, QUESTIONS[0]))
                served.append(time_server(server, model, QUESTIONS[0]))
    medians = statistics.median(library), statistics.median(served)
    sys.stdout.write(
        f"{document.tokens} tokens: library {medians[0] * 1000:.0f} ms, server {medians[1] * 1000:.0f} ms, "
        f"ratio {medians[1] / medians[0]:.2f} (medians of {ROUNDS})\n"
    )


if __name__ == "__main__":
    main()
