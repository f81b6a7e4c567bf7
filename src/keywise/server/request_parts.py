"""Parts that requests of several APIs have: conversations, sampling, and this server's own options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from keywise.documents.follow_up import Turn
from keywise.documents.generation import Sampling
from keywise.server.api_errors import ApiError


class RequestModel(BaseModel):
    """A part of a request; fields that nobody knows are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class KeywiseOptions(RequestModel):
    """Options of this server, in the field ``keywise`` of a request.

    Attributes
    ----------
    documents
        Identifiers of the documents to ask.
    library
        Whether to ask the server's library.
    sentences
        Number of best sentences to quote from; 0 writes the answer from the whole document.
    open_webui_sources
        Whether a stream has an event that fills the citation panel of Open WebUI; None as the server was started.
    """

    documents: list[str] = []
    library: bool = False
    sentences: Annotated[int, Field(ge=0, le=20)] | None = None
    open_webui_sources: bool | None = None


@dataclass(frozen=True)
class Message:
    """A message of a conversation.

    Attributes
    ----------
    role
        ``"user"`` or ``"assistant"``.
    text
        Its text.
    documents
        Identifiers of the documents that came with it.
    """

    role: str
    text: str
    documents: tuple[str, ...] = ()


def split_conversation(messages: Sequence[Message], param: str) -> tuple[str, tuple[Turn, ...], tuple[str, ...]]:
    """Return the question of a conversation, the turns before it, and the documents of all messages.

    Parameters
    ----------
    messages
        The messages, in order.
    param
        What the API calls them.

    Raises
    ------
    ApiError
        There is no message, the first is not the user's, or the last is not.

    Examples
    --------
    >>> said = [Message("user", "Who?"), Message("assistant", "Ann"), Message("user", "And when?")]
    >>> split_conversation(said, "messages")
    ('And when?', (Turn(question='Who?', answer='Ann'),), ())
    """
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1].role == message.role:
            last = joined[-1]
            text = "\n".join(filter(None, [last.text, message.text]))
            joined[-1] = Message(last.role, text, (*last.documents, *message.documents))
        else:
            joined.append(message)
    if not joined:
        raise ApiError(400, "There must be at least one message of the role user.", param, "empty_conversation")
    if joined[0].role != "user":
        raise ApiError(400, "The first message must be of the role user.", param, "invalid_role_order")
    if joined[-1].role != "user":
        raise ApiError(400, "The last message must be of the role user.", param, "invalid_role_order")
    turns = tuple(
        Turn(question.text, answer.text) for question, answer in zip(joined[:-1:2], joined[1::2], strict=True)
    )
    documents = tuple(dict.fromkeys(document for message in joined for document in message.documents))
    return joined[-1].text, turns, documents


def make_sampling(
    temperature: float | None, top_p: float | None, *, top_k: int | None = None, seed: int | None = None
) -> Sampling | None:
    """Return how to choose an answer's tokens; None for a quoted answer, which is deterministic.

    An answer is sampled where a temperature above 0 is asked for.

    Parameters
    ----------
    temperature, top_p, top_k, seed
        As clients send them; None if they do not.

    Raises
    ------
    KeywiseError
        A value is out of range.
    """
    sampling = Sampling(
        temperature if temperature else 1.0,
        1.0 if top_p is None else top_p,
        0 if top_k is None else top_k,
        seed,
    )
    return sampling if temperature else None


def list_stops(stop: str | list[str] | None) -> tuple[str, ...]:
    """Return the texts that end an answer."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def refuse_unsupported(fields: dict[str, Any], neutral: dict[str, tuple[Any, ...]]) -> None:
    """Raise if a request asks for something that this server does not do.

    Parameters
    ----------
    fields
        Fields of the request that were sent.
    neutral
        For each field that is not supported the values that ask for nothing.

    Raises
    ------
    ApiError
        A field has another value.
    """
    for name, values in neutral.items():
        if name in fields and fields[name] not in values:
            raise ApiError(400, f"This server does not support {name}.", name, "unsupported_parameter")
