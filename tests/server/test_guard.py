"""Hosts, origins, tokens, lengths and times of requests, and headers of safety."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from keywise.errors import OptionError
from keywise.server.guard import Guard, equal_tokens
from keywise.server.settings import Limits, ServerSettings


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with the length of the body, as an application would."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"public")]})
    await send({"type": "http.response.body", "body": str(length).encode()})


def ask(
    settings: ServerSettings | None = None,
    *,
    method: str = "GET",
    path: str = "/v1/models",
    query: str = "",
    host: str = "127.0.0.1:7345",
    parts: tuple[bytes, ...] = (b"",),
    delay_seconds: float = 0.0,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """Send a request through the guard and return status, headers and body."""
    lines = [(b"host", host.encode()), *((n.replace("_", "-").encode(), v.encode()) for n, v in headers.items())]
    scope = {
        "type": "http",
        "scheme": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": lines,
    }
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(delay_seconds)
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(Guard(echo, settings or ServerSettings())(scope, receive, send))
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, sent[1]["body"]


@pytest.mark.parametrize("host", ["127.0.0.1:7345", "localhost:7345", "LOCALHOST", "[::1]:7345", "127.0.0.1"])
def test_names_of_this_machine_are_served(host: str) -> None:
    assert ask(host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7345", "127.0.0.1.evil.example", "", "192.168.1.7:7345", "localhost.evil"]
)
def test_a_name_that_was_made_to_point_here_is_refused(host: str) -> None:
    status, _, body = ask(host=host)
    assert status == 403
    assert json.loads(body)["error"]["code"] == "host_refused"


def test_two_hosts_are_refused() -> None:
    scope_headers = {"Host": "evil.example"}
    assert ask(**scope_headers)[0] == 403


def test_a_server_on_the_network_is_reached_by_its_address_and_by_named_hosts() -> None:
    settings = ServerSettings("0.0.0.0", token="secret", allowed_hosts=("office",))
    token = {"authorization": "Bearer secret"}
    assert [ask(settings, host=host, **token)[0] for host in ("192.168.1.7:7345", "office:7345", "evil.example")] == [
        200,
        200,
        403,
    ]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1:7345"])
def test_pages_of_other_origins_are_refused(method: str, origin: str) -> None:
    status, headers, body = ask(method=method, origin=origin)
    assert status == 403
    assert json.loads(body)["error"]["code"] == "origin_refused"
    assert "access-control-allow-origin" not in headers


def test_the_own_origin_is_served() -> None:
    assert ask(method="POST", origin="http://127.0.0.1:7345")[0] == 200


def test_a_named_origin_is_served_and_may_read_the_answer() -> None:
    settings = ServerSettings(allowed_origins=("http://localhost:3000",))
    status, headers, _ = ask(settings, method="POST", origin="http://localhost:3000", sec_fetch_site="cross-site")
    assert (status, headers["access-control-allow-origin"]) == (200, "http://localhost:3000")
    status, headers, _ = ask(
        settings,
        method="OPTIONS",
        origin="http://localhost:3000",
        access_control_request_method="POST",
        access_control_request_headers="authorization, content-type",
    )
    assert (status, headers["access-control-allow-headers"]) == (204, "authorization, content-type")
    assert ask(settings, method="OPTIONS", origin="http://localhost:3001")[0] == 403


def test_other_sites_may_link_to_the_page_and_may_not_load_parts_of_it() -> None:
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert ask(path="/", **link)[0] == 200
    assert ask(path="/", **{**link, "sec_fetch_dest": "iframe"})[0] == 403
    assert ask(path="/static/main.js", sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403
    assert ask(path="/", sec_fetch_site="same-site", sec_fetch_mode="no-cors")[0] == 403
    assert ask(method="POST", path="/", **link)[0] == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer secret"}, 200),
        ({"authorization": "Basic secret"}, 401),
        ({"authorization": "Bearer secre"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"x_api_key": "secret"}, 200),
        ({"x_api_key": "sécret"}, 401),
        ({"cookie": "other=1; keywise_token=secret"}, 200),
        ({"cookie": "keywise_token=secret2"}, 401),
    ],
)
def test_a_token_is_needed_if_the_server_has_one(headers: dict[str, str], status: int) -> None:
    assert ask(ServerSettings(token="secret"), **headers)[0] == status


def test_the_token_of_an_address_becomes_a_cookie_that_scripts_cannot_read() -> None:
    settings = ServerSettings(token="secret")
    status, headers, _ = ask(settings, path="/", query="token=secret")
    assert (status, headers["location"]) == (303, "/")
    assert headers["set-cookie"] == "keywise_token=secret; HttpOnly; SameSite=Lax; Path=/"
    assert ask(settings, path="/", query="token=other")[0] == 401
    assert ask(settings, path="/v1/models", query="token=secret")[0] == 401


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(given: bytes, token: bytes) -> bool:
        compared.append((given, token))
        return given == token

    monkeypatch.setattr("keywise.server.guard.hmac.compare_digest", compare)
    assert equal_tokens("é", "é")
    assert ask(ServerSettings(token="secret"), authorization="Bearer guess")[0] == 401
    assert (b"guess", b"secret") in compared


def test_another_address_than_this_machine_s_needs_a_token() -> None:
    for host in ("0.0.0.0", "192.168.1.7", "::", "example.org"):
        with pytest.raises(OptionError, match="--token"):
            ServerSettings(host)
        assert ServerSettings(host, token="secret").host == host
    for host in ("127.0.0.1", "127.0.0.2", "localhost", "::1"):
        assert ServerSettings(host).token == ""


@pytest.mark.parametrize("token", ["with space", "höflich", "line\nend"])
def test_tokens_that_no_header_can_carry_are_refused(token: str) -> None:
    with pytest.raises(OptionError, match="token"):
        ServerSettings(token=token)


@pytest.mark.parametrize("origin", ["*", "localhost:3000", "http://localhost:3000/path", "file://x"])
def test_origins_that_are_none_are_refused(origin: str) -> None:
    with pytest.raises(OptionError, match="allow_origin"):
        ServerSettings(allowed_origins=(origin,))


def test_long_bodies_are_refused_by_their_header_and_by_their_length() -> None:
    settings = ServerSettings(limits=Limits(body_bytes=10))
    assert ask(settings, method="POST", content_length="11")[0] == 413
    assert ask(settings, method="POST", parts=(b"12345", b"67890"))[2] == b"10"


def test_a_body_that_grows_too_long_or_comes_too_slowly_is_an_error_of_the_api() -> None:
    from keywise.server.api_errors import ApiError

    with pytest.raises(ApiError) as caught:
        ask(ServerSettings(limits=Limits(body_bytes=10)), method="POST", parts=(b"123456", b"7890ab"))
    assert caught.value.status == 413
    with pytest.raises(ApiError) as caught:
        ask(ServerSettings(limits=Limits(body_seconds=0.05)), method="POST", parts=(b"a", b"b"), delay_seconds=0.1)
    assert caught.value.status == 408


def test_bodies_of_many_requests_at_once_fit_into_memory() -> None:
    from keywise.server.api_errors import ApiError

    async def send_two(limit_bytes: int) -> list[Any]:
        guard = Guard(echo, ServerSettings(limits=Limits(bodies_bytes=limit_bytes)))
        scope = {
            "type": "http",
            "scheme": "http",
            "method": "POST",
            "path": "/v1/files",
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1")],
        }

        async def send_one() -> bytes:
            parts = [b"12345", b"678"]
            sent: list[bytes] = []

            async def receive() -> dict[str, Any]:
                await asyncio.sleep(0.01)
                return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

            async def send(message: dict[str, Any]) -> None:
                sent.append(message.get("body", b""))

            await guard(scope, receive, send)
            return sent[-1]

        results = await asyncio.gather(send_one(), send_one(), return_exceptions=True)
        return [*results, await send_one()]  # the memory of the requests before is free again

    assert asyncio.run(send_two(16)) == [b"8", b"8", b"8"]
    first, second, third = asyncio.run(send_two(9))
    refused = [result for result in (first, second) if isinstance(result, ApiError)]
    assert [error.status for error in refused] == [503]
    assert third == b"8"


def test_every_response_has_the_headers_of_safety() -> None:
    for headers in (ask()[1], ask(host="evil.example")[1]):
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_errors_have_the_shape_of_the_api_that_was_called() -> None:
    refused = json.loads(ask(path="/v1/messages", host="evil.example")[2])
    assert refused["type"] == "error"
    assert refused["error"]["type"] == "permission_error"
    assert json.loads(ask(host="evil.example", anthropic_version="2023-06-01")[2])["type"] == "error"
    assert json.loads(ask(host="evil.example")[2])["error"]["type"] == "permission_error"
