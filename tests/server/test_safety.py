"""Safety of a running server: hosts, origins, lengths, names, HTML, hostile files, the network."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.documents.test_conversion import nested_forms
from tests.support.server import ServerProcess, send


def send_json(server: ServerProcess, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    content = None if body is None else json.dumps(body).encode()
    status, _, text = send(server, method, path, content, content_type="application/json", **headers)
    return status, json.loads(text)


def upload(server: ServerProcess, name: str, content: bytes, **headers: str) -> tuple[int, Any]:
    head = f'--cut\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--cut--\r\n"
    status, _, text = send(
        server, "POST", "/api/documents", body, content_type="multipart/form-data; boundary=cut", **headers
    )
    return status, json.loads(text)


def send_raw(server: ServerProcess, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request)
        # An answer may arrive in several parts; the server closes the connection after an error.
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_server_listens_on_this_machine_alone(server: ServerProcess) -> None:
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    addresses = [address.split(":")[0] for address in listening if int(address.split(":")[1], 16) == server.port]
    assert addresses == ["0100007F"]


def test_other_hosts_and_origins_are_refused(server: ServerProcess) -> None:
    assert send(server, "GET", "/v1/models", host="evil.example")[0] == 403
    assert send(server, "POST", "/v1/chat/completions", b"{}", origin="http://evil.example")[0] == 403
    assert upload(server, "a.txt", b"The lamp.", origin="http://evil.example")[0] == 403
    assert send(server, "GET", "/static/main.js", sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403
    assert send(server, "GET", "/v1/models")[0] == 200
    _, headers, _ = send(server, "GET", "/v1/models")
    assert not [name for name in headers if name.startswith("access-control")]


def test_a_form_of_another_site_cannot_ask(server: ServerProcess) -> None:
    """A form can send any text as text/plain without a question of the browser."""
    headers = {"content_type": "text/plain", "origin": "null", "sec_fetch_site": "cross-site"}
    assert send(server, "POST", "/v1/chat/completions", b'{"model": "x"}', **headers)[0] == 403


def test_a_request_that_is_too_long_is_refused_before_it_is_read(server: ServerProcess) -> None:
    head = b"POST /api/documents HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=c\r\n"
    answer = send_raw(server, head + b"Content-Length: 200000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"request_too_large" in answer


def test_a_body_of_unknown_length_is_refused_where_it_grows_too_long(server: ServerProcess) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        answer = b""
        try:
            for _ in range(120):
                connection.sendall(chunk)
            connection.sendall(b"0\r\n\r\n")
        except OSError:
            pass  # the server closed the connection, which is its right
        try:
            answer = connection.recv(65536)
        except OSError:
            answer = b"closed"
    assert answer == b"closed" or answer.startswith(b"HTTP/1.1 413")
    assert send(server, "GET", "/v1/models")[0] == 200


def test_a_file_that_is_too_long_is_refused(server: ServerProcess) -> None:
    status, body = upload(server, "long.txt", b"The lamp is lit. " * (65 * (1 << 20) // 17))
    assert (status, body["error"]["code"]) == (413, "file_too_large")


@pytest.mark.parametrize("name", ["../../evil.txt", "/etc/cron.d/evil.txt", "..%2f..%2fevil.txt", "evil\\..\\x.txt"])
def test_names_of_files_are_never_paths(server: ServerProcess, name: str) -> None:
    status, document = upload(server, name, f"The lamp {name} is lit.".encode())
    assert status == 200
    assert "/" not in document["name"]
    kept = [path for path in (server.folder / "data").rglob("*") if path.is_file() and "evil" in path.name]
    assert kept == []


@pytest.mark.parametrize(
    "path",
    [
        "/static/../settings.py",
        "/static/..%2f..%2fsettings.py",
        "/static/%2e%2e/settings.py",
        "/static//etc/passwd",
        "/static/index.html",
        "/api/documents/..%2f..%2fetc/view",
        "/api/documents/file-0/pages/1",
        "/v1/files/..%2f..%2f..%2fetc%2fpasswd/content",
    ],
)
def test_paths_lead_nowhere_else(server: ServerProcess, path: str) -> None:
    status, _, body = send(server, "GET", path)
    assert status == 404
    assert b"error" in body


def test_a_file_is_handed_out_as_a_download_alone(server: ServerProcess) -> None:
    _, document = upload(
        server, "page.html", b"<html><body><p>The lamp <b>is</b> lit.</p><script>1</script></body></html>"
    )
    _, headers, _ = send(server, "GET", f"/v1/files/{document['id']}/content")
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"] == "attachment"
    assert headers["x-content-type-options"] == "nosniff"


def test_the_view_of_a_document_escapes_its_html(server: ServerProcess) -> None:
    text = b'The lamp <script>alert(1)</script> is lit. <img src=x onerror=alert(2)> "It" & more.'
    _, document = upload(server, "note.txt", text)
    _, headers, view = send(server, "GET", f"/api/documents/{document['id']}/view")
    assert b"<script" not in view
    assert b"<img" not in view
    assert b"&lt;script&gt;alert(1)" in view
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]


def test_a_hostile_pdf_holds_up_nobody_else_and_the_next_file_is_read(server: ServerProcess) -> None:
    outcome: list[Any] = []
    sender = threading.Thread(target=lambda: outcome.append(upload(server, "forms.pdf", nested_forms(9))))
    sender.start()
    time.sleep(0.3)
    started = time.monotonic()
    assert send(server, "GET", "/v1/models")[0] == 200
    assert time.monotonic() - started < 2
    sender.join(120)
    ((status, body),) = outcome
    assert status == 400
    assert body["error"]["code"] == "invalid_file"
    assert upload(server, "after.txt", b"The lamp is still lit.")[0] == 200


def test_malformed_requests_get_errors_and_the_server_stays(server: ServerProcess) -> None:
    deep = b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for body in (b"", b"{", b"\xff", b"null", b"[]", deep, b'{"model": "\\ud800"}'):
        status, _, text = send(server, "POST", "/v1/chat/completions", body, content_type="application/json")
        assert status in {400, 404}, body[:20]
        assert json.loads(text)["error"]["message"]
    assert send(server, "POST", "/v1/files", b"--x", content_type="multipart/form-data; boundary=x")[0] == 400
    assert send(server, "GET", "/v1/models")[0] == 200


def test_nothing_leaves_the_machine(server: ServerProcess) -> None:
    """The process writes down whom it contacts; here it has answered, converted and drawn."""
    _, models = send_json(server, "GET", "/v1/models")
    body = {"model": models["data"][0]["id"], "messages": [{"role": "user", "content": "Who kept the light?"}]}
    assert send_json(server, "POST", "/v1/chat/completions", body)[0] == 200
    assert server.contacts.read_text(encoding="utf-8") == ""


def test_contacts_are_written_down(server: ServerProcess, tmp_path: Path) -> None:
    contacts = tmp_path / "contacts"
    code = f"import socket; socket.create_connection(('127.0.0.1', {server.port})).close()"
    environment = {**os.environ, "PYTHONPATH": str(server.folder / "watcher"), "CONTACTS": str(contacts)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert f"('127.0.0.1', {server.port})" in contacts.read_text(encoding="utf-8")
