"""What the endpoints share: the state of the server, and answers as events, whole or for a client that may leave."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request
from fastapi.sse import EventSourceResponse, format_sse_event

from keywise.errors import KeywiseError
from keywise.server.answering import AnsweringService, Question
from keywise.server.api_errors import ApiError, ClientLeftError, convert_error
from keywise.server.conversation_store import ConversationStore
from keywise.server.document_store import SENT, DocumentStore, StoredDocument
from keywise.server.model_queue import Event, Finished, Job, ModelQueue
from keywise.server.settings import ServerSettings
from keywise.server.unsupported import note_unsupported

if TYPE_CHECKING:
    from keywise.server.page_pictures import PagePictures

Result = TypeVar("Result")
PING = b": waiting\n\n"


@dataclass(frozen=True)
class Service:
    """The state of the server.

    Attributes
    ----------
    settings
        Where it listens, and its limits.
    answering
        The model with its documents.
    store
        The documents.
    conversations
        The conversations of the page.
    queue
        The queue of the model.
    pictures
        Pages of PDFs as pictures.
    conversions
        Lets one file after another be converted.
    """

    settings: ServerSettings
    answering: AnsweringService
    store: DocumentStore
    conversations: ConversationStore
    queue: ModelQueue
    pictures: PagePictures
    conversions: asyncio.Lock = field(default_factory=asyncio.Lock)

    def check_model(self, model: str | None) -> None:
        """Raise if a request names another model.

        Raises
        ------
        ApiError
            There is no such model here.
        """
        name = self.answering.model_name
        if model != name:
            raise ApiError(
                404, f"There is no model {model!r} here; this server has {name!r}.", "model", "model_not_found"
            )

    def find_documents(self, document_ids: Sequence[str]) -> tuple[str, ...]:
        """Return the identifiers in the field ``keywise.documents`` of a request.

        Raises
        ------
        ApiError
            There is no document of an identifier.
        """
        for document_id in document_ids:
            try:
                self.store.get(document_id)
            except ApiError as error:
                raise ApiError(error.status, error.message, "keywise.documents", error.code) from None
        return tuple(document_ids)

    async def add_document(
        self, name: str, content: bytes, *, origin: str = SENT, param: str = "file"
    ) -> StoredDocument:
        """Convert a file and keep it, without holding up other requests.

        Parameters
        ----------
        name
            What its sender calls it.
        content
            The file.
        origin
            Where it comes from.
        param
            The part of the request that has it, for errors.

        Raises
        ------
        ApiError
            The file cannot be read, or is too long.
        """
        async with self.conversions:
            try:
                return await asyncio.to_thread(self.store.add, name, content, origin=origin)
            except KeywiseError as error:
                raise convert_error(error, param) from error
            except ApiError as error:
                raise ApiError(error.status, error.message, param, error.code) from error
            except OSError as error:
                message = f"The document cannot be kept: {error.strerror}."
                raise ApiError(507, message, param, "cannot_be_kept") from error

    async def stream(self, question: Question) -> AsyncGenerator[Event, None]:
        """Answer a question and yield what happens; last `Finished` with a `Reply`.

        Raises
        ------
        ApiError
            It cannot be answered.
        """
        async with aclosing(self.run(lambda job: self.answering.answer(question, job))) as events:
            async for event in events:
                yield event

    def stream_noted(self, question: Question) -> AsyncGenerator[Event, None]:
        """Answer a question as `stream` does, for a client that sees only the text: it says if no sentence answers."""
        return note_unsupported(self.stream(question))

    async def run(self, function: Callable[[Job], Any]) -> AsyncGenerator[Event, None]:
        """Run a function in the model's thread and yield what happens; errors become those of the APIs.

        Raises
        ------
        ApiError
            It fails.
        """
        try:
            async with aclosing(self.queue.stream(function)) as events:
                async for event in events:
                    yield event
        except KeywiseError as error:
            raise convert_error(error) from error


async def collect(request: Request, events: AsyncGenerator[Event, None]) -> Any:
    """Return the result of a job, or stop it when its client leaves.

    Raises
    ------
    ApiError
        The job fails.
    ClientLeftError
        The client left.
    """

    async def wait_for_result() -> Any:
        async with aclosing(events) as told:
            async for event in told:
                if isinstance(event, Finished):
                    return event.result
        raise ApiError(500, "The answer has no end.", None, "server_error")

    return await wait_or_leave(request, wait_for_result())


async def wait_or_leave(request: Request, work: Awaitable[Result]) -> Result:
    """Return what some work returns, or cancel it when its client leaves.

    Raises
    ------
    ClientLeftError
        The client left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_wait_for_leave(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError
    finally:
        for task in (leaving, working):
            task.cancel()
        await asyncio.gather(leaving, working, return_exceptions=True)


async def _wait_for_leave(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def respond_with_events(chunks: AsyncGenerator[bytes, None]) -> EventSourceResponse:
    """Return a response of server-sent events.

    Parameters
    ----------
    chunks
        The events, encoded; closed when the client leaves.
    """

    async def send() -> AsyncGenerator[bytes, None]:
        async with aclosing(chunks) as all_chunks:
            async for chunk in all_chunks:
                yield chunk

    return EventSourceResponse(send(), headers={"X-Accel-Buffering": "no"})


def encode_event(data: Any, event: str | None = None) -> bytes:
    r"""Return a server-sent event with JSON as its data.

    Examples
    --------
    >>> encode_event({"a": 1}, "note")
    b'event: note\ndata: {"a": 1}\n\n'
    """
    return format_sse_event(data_str=json.dumps(data), event=event)


def decode_file(data: str, param: str) -> bytes:
    """Return the content of a file in base64, with or without the beginning of a ``data:`` address.

    Raises
    ------
    ApiError
        It is not base64.

    Examples
    --------
    >>> decode_file("data:text/plain;base64,SGk=", "file_data")
    b'Hi'
    """
    if data.startswith("data:"):
        data = data.partition(",")[2]
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "It must be a file in base64.", param, "invalid_base64") from None


def find_base(request: Request) -> str:
    """Return the address of the server as the client knows it."""
    return f"{request.url.scheme}://{request.headers.get('host', '')}"
