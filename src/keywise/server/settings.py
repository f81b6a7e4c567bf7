"""Settings of the server, and the limits of what it accepts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from keywise.errors import OptionError

MEBIBYTE = 1 << 20
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """Most of what the server accepts and keeps.

    Attributes
    ----------
    file_bytes
        Size of a document.
    body_bytes
        Size of a request; documents in JSON are a third longer than the file.
    bodies_bytes
        Size of all requests that are being received or answered.
    body_seconds
        Time in which a request has to arrive.
    files_per_request
        Number of files in one request.
    documents
        Number of documents that are kept.
    sent_documents
        Number of documents that came inside a question and are kept; the oldest are removed.
    pages
        Number of pages of a PDF.
    characters
        Length of a document's text.
    question_characters
        Length of a question.
    messages
        Number of messages of a conversation in one request.
    conversations
        Number of conversations that are kept; the oldest are removed.
    responses
        Number of responses that `previous_response_id` can name; the oldest are forgotten.
    waiting_requests
        Number of requests that wait for the model.
    prefilled_documents, prefilled_tokens
        Number of documents whose keys and values stay in memory, and their tokens; the longest unused leave first.
    answer_tokens
        Longest answer.
    attention_tokens
        Longest prompt of which attention statistics are computed.
    attention_numbers
        Numbers in an answer with attention statistics.
    """

    file_bytes: int = 64 * MEBIBYTE
    body_bytes: int = 96 * MEBIBYTE
    bodies_bytes: int = 256 * MEBIBYTE
    body_seconds: float = 120.0
    files_per_request: int = 32
    documents: int = 1000
    sent_documents: int = 200
    pages: int = 3000
    characters: int = 5_000_000
    question_characters: int = 20_000
    messages: int = 400
    conversations: int = 500
    responses: int = 500
    waiting_requests: int = 256
    prefilled_documents: int = 16
    prefilled_tokens: int = 16_384
    answer_tokens: int = 2048
    attention_tokens: int = 2048
    attention_numbers: int = 2_000_000


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens, and who may use it.

    Attributes
    ----------
    host
        Address to listen on.
    port
        Port; 0 for a free one.
    token
        Secret that every request has to bring; "" for none.
    allowed_hosts
        Names under which the server is reached, besides its address.
    allowed_origins
        Web origins whose pages may call the APIs.
    open_webui_sources
        Whether streams of chat completions have the events that fill the citation panel of Open WebUI.
    limits
        Most of what is accepted.

    Raises
    ------
    OptionError
        The address is not of this machine alone and there is no token, or an origin is none.

    Examples
    --------
    >>> ServerSettings().host
    '127.0.0.1'
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str = ""
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    open_webui_sources: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            remedy = "others could read your documents: name a secret with --token"
            raise OptionError(
                "host", "must be an address of this machine, such as 127.0.0.1", got=self.host, remedy=remedy
            )
        if self.token and (not self.token.isascii() or not self.token.isprintable() or " " in self.token):
            raise OptionError("token", "must be of ASCII characters without spaces")
        for origin in self.allowed_origins:
            scheme, separator, rest = origin.partition("://")
            if scheme not in {"http", "https"} or not separator or not rest or "/" in rest:
                raise OptionError("allow_origin", "must be an origin such as http://localhost:3000", got=origin)


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine alone.

    Parameters
    ----------
    host
        A name or an address.

    Examples
    --------
    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
