"""Who may send a request: checks of host, origin and token, a limit of length and time, and headers of safety."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import parse_qs

from keywise.server.api_errors import ApiError
from keywise.server.settings import LOOPBACK_NAMES, ServerSettings, is_loopback

TOKEN_COOKIE: Final = "keywise_token"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFETY_HEADERS: Final = {
    b"content-security-policy": _POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
}

Scope = MutableMapping[str, Any]


class Guard:
    """Checks every request before the application sees it, and adds headers of safety to every response.

    Parameters
    ----------
    application
        The application, in ASGI.
    settings
        Who may send requests.
    """

    def __init__(self, application: Any, settings: ServerSettings) -> None:
        self._application = application
        self._settings = settings
        self._held = HeldBytes(settings.limits.bodies_bytes)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        if scope["type"] != "http":
            return
        headers = _collect_headers(scope)
        origin = headers.get("origin")
        allows_origin = origin in self._settings.allowed_origins
        extra = dict(_SAFETY_HEADERS)
        if not scope["path"].startswith("/static/"):
            extra[b"cache-control"] = b"no-store"
        if allows_origin and origin is not None:
            extra[b"access-control-allow-origin"] = origin.encode("latin-1")
            extra[b"vary"] = b"Origin"
            extra[b"cross-origin-resource-policy"] = b"cross-origin"

        async def send_safely(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name, value) for name, value in message.get("headers", []) if name.lower() not in extra]
                message = {**message, "headers": [*own, *extra.items()]}
            await send(message)

        try:
            self._check_host(headers)
            self._check_origin(scope, headers)
            if allows_origin and scope["method"] == "OPTIONS":
                await _send_preflight(headers, send_safely)
                return
            if await self._take_token_of_address(scope, send_safely):
                return
            self._check_token(headers)
            limited = BodyLimit(receive, self._settings, self._held)
            limited.check_length(headers)
        except ApiError as error:
            await send_error(error, scope, send_safely)
            return
        try:
            await self._application(scope, limited.receive, send_safely)
        finally:
            limited.release()

    def _check_host(self, headers: dict[str, str]) -> None:
        """Raise unless the request names this server: a page of another site may have let its name point here."""
        name = split_port(headers.get("host", ""))
        names = {self._settings.host, *self._settings.allowed_hosts, *LOOPBACK_NAMES}
        if name in names:
            return
        if not is_loopback(self._settings.host) and _is_address(name):
            return  # a name can be made to point anywhere, an address cannot
        raise ApiError(403, f"The host {name!r} is not one of this server; see --allow-host.", "Host", "host_refused")

    def _check_origin(self, scope: Scope, headers: dict[str, str]) -> None:
        """Raise if a page of another origin sent the request; following a link to a page is allowed."""
        origin = headers.get("origin")
        if origin is not None:
            if origin in self._settings.allowed_origins or origin == f"{scope['scheme']}://{headers.get('host', '')}":
                return
            raise ApiError(
                403, f"The origin {origin!r} may not use this server; see --allow-origin.", "Origin", "origin_refused"
            )
        site = headers.get("sec-fetch-site", "none")
        follows_link = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
        if site not in {"none", "same-origin"} and not (follows_link and headers.get("sec-fetch-dest") == "document"):
            raise ApiError(403, "Pages of other sites may not use this server.", "Sec-Fetch-Site", "origin_refused")

    def _check_token(self, headers: dict[str, str]) -> None:
        token = self._settings.token
        if not token:
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        candidates = [headers.get("x-api-key", ""), _find_cookie(headers.get("cookie", ""))]
        if scheme.lower() == "bearer":
            candidates.append(bearer.strip())
        if not any(equal_tokens(candidate, token) for candidate in candidates):
            message = "This server needs its token: send it as `Authorization: Bearer TOKEN`, or open /?token=TOKEN."
            raise ApiError(401, message, None, "invalid_api_key")

    async def _take_token_of_address(self, scope: Scope, send: Any) -> bool:
        """Move the token of an address into a cookie that scripts cannot read; return whether a response was sent."""
        token = self._settings.token
        if not token or scope["path"] != "/" or scope["method"] != "GET":
            return False
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if not any(equal_tokens(given, token) for given in query.get("token", [])):
            return False
        cookie = f"{TOKEN_COOKIE}={token}; HttpOnly; SameSite=Lax; Path=/"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return True


class HeldBytes:
    """Counts the bytes of the bodies that are in memory.

    Parameters
    ----------
    limit_bytes
        Most of them.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0

    def add(self, count: int) -> None:
        """Count bytes that came in, or a negative number that is gone.

        Raises
        ------
        ApiError
            There are too many.
        """
        if count > 0 and self._bytes + count > self._limit_bytes:
            message = f"The server holds as many requests as fit into {self._limit_bytes:,} bytes; try again soon."
            raise ApiError(503, message, None, "server_busy")
        self._bytes += count


class BodyLimit:
    """Limits the length of a request's body, and the time in which it arrives.

    Parameters
    ----------
    receive
        Returns the next message of the client.
    settings
        The limits.
    held
        The bytes of all bodies.
    """

    def __init__(self, receive: Any, settings: ServerSettings, held: HeldBytes) -> None:
        self._receive = receive
        self._limits = settings.limits
        self._held = held
        self._received_bytes = 0
        self._is_complete = False
        self._deadline: float | None = None

    def check_length(self, headers: dict[str, str]) -> None:
        """Raise if the request says that it is too long."""
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limits.body_bytes:
            raise self._make_error()

    async def receive(self) -> Any:
        """Return the next message.

        Raises
        ------
        ApiError
            The body is too long, or does not arrive in time.
        """
        if self._is_complete:
            return await self._receive()
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + self._limits.body_seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"The request did not arrive in {self._limits.body_seconds:g} seconds.") from None
        if message["type"] == "http.request":
            count = len(message.get("body", b""))
            self._held.add(count)
            self._received_bytes += count
            self._is_complete = not message.get("more_body", False)
            if self._received_bytes > self._limits.body_bytes:
                raise self._make_error()
        return message

    def release(self) -> None:
        """Count the body as gone: its request was answered."""
        self._held.add(-self._received_bytes)

    def _make_error(self) -> ApiError:
        limit = self._limits.body_bytes
        return ApiError(413, f"The request must have at most {limit:,} bytes.", None, "request_too_large")


def equal_tokens(given: str, token: str) -> bool:
    """Return whether two secrets are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), token.encode())


def split_port(host: str) -> str:
    """Return the name or address in a ``Host`` header, without its port, in lower case.

    Examples
    --------
    >>> split_port("LocalHost:8000"), split_port("[::1]:8000")
    ('localhost', '::1')
    """
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name


async def send_error(error: ApiError, scope: Scope, send: Any) -> None:
    """Send an error in the shape of the API that was called."""
    body = json.dumps(error.to_anthropic() if is_anthropic(scope) else error.to_openai()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def is_anthropic(scope: Scope) -> bool:
    """Return whether a request is one of Anthropic's API."""
    return scope["path"].startswith("/v1/messages") or any(name == b"anthropic-version" for name, _ in scope["headers"])


async def _send_preflight(headers: dict[str, str], send: Any) -> None:
    asked = headers.get("access-control-request-headers", "")
    allowed = [
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", asked.encode("latin-1")),
        (b"access-control-max-age", b"600"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": allowed})
    await send({"type": "http.response.body", "body": b""})


def _collect_headers(scope: Scope) -> dict[str, str]:
    """Return the headers by name; of several with one name the last, but two hosts count as none."""
    headers: dict[str, str] = {}
    hosts = 0
    for name, value in scope["headers"]:
        headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        hosts += name.lower() == b"host"
    if hosts != 1:
        headers["host"] = ""
    return headers


def _find_cookie(cookies: str) -> str:
    for cookie in cookies.split(";"):
        name, _, value = cookie.strip().partition("=")
        if name == TOKEN_COOKIE:
            return value
    return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
