"""OpenAI's responses: `POST /v1/responses`."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from keywise.documents.document import ANSWER_TOKENS
from keywise.documents.follow_up import Turn
from keywise.errors import KeywiseError
from keywise.server.answering import Question, Reply
from keywise.server.api_errors import ApiError, convert_error
from keywise.server.citations import make_citations, make_extension
from keywise.server.model_queue import Delta, Finished, Ping
from keywise.server.openai_content import ContentPart, read_content_parts
from keywise.server.request_parts import (
    KeywiseOptions,
    Message,
    RequestModel,
    make_sampling,
    refuse_unsupported,
    split_conversation,
)
from keywise.server.service import PING, Service, collect, encode_event, respond_with_events

_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "background": (None, False),
    "conversation": (None,),
    "prompt": (None,),
    "include": (None, []),
    "top_logprobs": (None, 0),
    "text": (None, {}, {"format": {"type": "text"}}),
    "max_tool_calls": (None,),
}
_WITHOUT_EFFECT: Final = (
    "instructions",
    "user",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "reasoning",
    "truncation",
    "prompt_cache_key",
    "safety_identifier",
    "stream_options",
)


class InputItem(RequestModel):
    """An item of the input: a message."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str = "message"
    role: str | None = None
    content: str | list[ContentPart] | None = None


class ResponsesRequest(RequestModel):
    """A request for a response."""

    model: str
    input: str | list[InputItem]
    previous_response_id: str | None = None
    stream: bool | None = False
    store: bool | None = True
    max_output_tokens: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: float | None = None
    keywise: KeywiseOptions = KeywiseOptions()
    instructions: Any = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    text: dict[str, Any] | None = None
    max_tool_calls: int | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    truncation: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    stream_options: dict[str, Any] | None = None


@dataclass(frozen=True)
class PastResponse:
    """The conversation up to a response, for requests that name it.

    Attributes
    ----------
    turns
        Its questions and answers.
    documents
        Identifiers of the documents that were named.
    """

    turns: tuple[Turn, ...]
    documents: tuple[str, ...]


class PastResponses:
    """The last responses, by their identifiers.

    Parameters
    ----------
    limit
        Number of responses that are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._responses: OrderedDict[str, PastResponse] = OrderedDict()

    def find(self, response_id: str) -> PastResponse:
        """Return a response.

        Raises
        ------
        ApiError
            It is not kept here.
        """
        past = self._responses.get(response_id)
        if past is None:
            message = (
                f"There is no response {response_id!r} here; the server keeps the last {self._limit} while it runs."
            )
            raise ApiError(400, message, "previous_response_id", "previous_response_not_found")
        return past

    def add(self, response_id: str, past: PastResponse) -> None:
        """Keep a response."""
        self._responses[response_id] = past
        while len(self._responses) > self._limit:
            self._responses.popitem(last=False)


def make_router(service: Service) -> APIRouter:
    """Return the endpoint of responses.

    Parameters
    ----------
    service
        The state of the server.
    """
    router = APIRouter()
    past_responses = PastResponses(service.settings.limits.responses)

    @router.post("/v1/responses")
    async def respond(request: Request, body: ResponsesRequest) -> Any:
        service.check_model(body.model)
        sent = body.model_dump(exclude_unset=True)
        refuse_unsupported(sent, _NEUTRAL)
        question, unused = await _read_question(service, body, past_responses)
        unused += [name for name in _WITHOUT_EFFECT if sent.get(name) is not None]
        service.answering.check_question(question)
        kept = past_responses if body.store is not False else None
        response = ResponseShape(service.answering.model_name, body, question, unused, kept)
        if not body.stream:
            return response.finish(await collect(request, service.stream_noted(question)))
        return respond_with_events(_make_events(service, question, response))

    return router


async def _read_question(
    service: Service, body: ResponsesRequest, past_responses: PastResponses
) -> tuple[Question, list[str]]:
    """Return the question of a request, and the parts of it that have no effect."""
    messages: list[Message] = []
    unused: list[str] = []
    items = [InputItem(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    if len(items) > service.settings.limits.messages:
        raise ApiError(400, f"There must be at most {service.settings.limits.messages} items.", "input")
    for number, item in enumerate(items):
        param = f"input[{number}]"
        if item.type != "message":
            raise ApiError(400, f"An item must be a message, got {item.type!r}.", param, "unsupported_content")
        if item.role in {"system", "developer"}:
            unused.append(f"{param} ({item.role})")
            continue
        if item.role not in {"user", "assistant"}:
            raise ApiError(400, f"A role must be user or assistant, got {item.role!r}.", param, "unsupported_role")
        text, documents = await read_content_parts(service, item.content, param)
        messages.append(Message(item.role, text, documents))
    text, turns, documents = split_conversation(messages, "input")
    if body.previous_response_id is not None:
        past = past_responses.find(body.previous_response_id)
        turns, documents = (*past.turns, *turns), (*past.documents, *documents)
    try:
        sampling = make_sampling(body.temperature, body.top_p)
    except KeywiseError as error:
        raise convert_error(error) from error
    question = Question(
        text,
        turns,
        (*service.find_documents(body.keywise.documents), *documents),
        body.keywise.library,
        ANSWER_TOKENS if body.max_output_tokens is None else body.max_output_tokens,
        body.keywise.sentences,
        sampling,
    )
    return question, unused


class ResponseShape:
    """The shapes of one response and of its events.

    Parameters
    ----------
    model
        Name of the model.
    body
        The request.
    question
        Its question.
    unused
        Parts of the request that did not change the answer.
    past_responses
        Where the response is kept for later requests; None not to keep it.
    """

    def __init__(
        self,
        model: str,
        body: ResponsesRequest,
        question: Question,
        unused: list[str],
        past_responses: PastResponses | None,
    ) -> None:
        self.id = f"resp_{secrets.token_hex(16)}"
        self.item_id = f"msg_{secrets.token_hex(16)}"
        self._question = question
        self._unused = unused
        self._past_responses = past_responses
        self._common = {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "metadata": body.metadata or {},
            "parallel_tool_calls": False,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "tool_choice": "none",
            "tools": [],
            "max_output_tokens": body.max_output_tokens,
            "previous_response_id": body.previous_response_id,
            "store": past_responses is not None,
            "text": {"format": {"type": "text"}},
            "usage": None,
        }

    def begin(self) -> dict[str, Any]:
        """Return the response before its answer."""
        return {**self._common, "status": "in_progress", "output": []}

    def fail(self, error: ApiError) -> dict[str, Any]:
        """Return the response after an error."""
        detail = {"code": "server_error", "message": error.message}
        return {**self._common, "status": "failed", "output": [], "error": detail}

    def finish(self, reply: Reply) -> dict[str, Any]:
        """Return the whole response, and keep it for later requests."""
        answer = reply.answer
        if self._past_responses is not None:
            turns = (*self._question.turns, Turn(self._question.text, answer.text))
            self._past_responses.add(self.id, PastResponse(turns, self._question.documents))
        usage = {
            "input_tokens": reply.prompt_tokens,
            "input_tokens_details": {"cached_tokens": reply.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": answer.answer_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": reply.prompt_tokens + answer.answer_tokens,
        }
        return {
            **self._common,
            "status": "completed" if answer.complete else "incomplete",
            "incomplete_details": None if answer.complete else {"reason": "max_output_tokens"},
            "output": [self.make_item(reply)],
            "usage": usage,
            "keywise": make_extension(reply, unused=self._unused),
        }

    def make_item(self, reply: Reply | None) -> dict[str, Any]:
        """Return the message of the answer; None for one that begins."""
        if reply is None:
            return {"id": self.item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        status = "completed" if reply.answer.complete else "incomplete"
        content = [self.make_part(reply.answer.text, self.make_annotations(reply))]
        return {"id": self.item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    @staticmethod
    def make_part(text: str, annotations: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the text of the message."""
        return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}

    @staticmethod
    def make_annotations(reply: Reply) -> list[dict[str, Any]]:
        """Return the citations; those of a library have the name of the document as its identifier."""
        return [
            {
                "type": "file_citation",
                "file_id": citation.document_id or citation.document_title,
                "filename": citation.document_title,
                "index": citation.answer_end,
            }
            for citation in make_citations(reply)
        ]


class EventWriter:
    """Numbers the events of a stream."""

    def __init__(self) -> None:
        self._number = -1

    def write(self, kind: str, **fields: Any) -> bytes:
        """Return an event, encoded."""
        self._number += 1
        return encode_event({"type": kind, "sequence_number": self._number, **fields}, kind)


async def _make_events(service: Service, question: Question, response: ResponseShape) -> AsyncGenerator[bytes, None]:
    writer = EventWriter()
    place = {"item_id": response.item_id, "output_index": 0, "content_index": 0}
    yield writer.write("response.created", response=response.begin())
    yield writer.write("response.in_progress", response=response.begin())
    yield writer.write("response.output_item.added", output_index=0, item=response.make_item(None))
    yield writer.write("response.content_part.added", **place, part=response.make_part("", []))
    try:
        async with aclosing(service.stream_noted(question)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    yield writer.write("response.output_text.delta", **place, delta=event.text, logprobs=[])
                elif isinstance(event, Ping):
                    yield PING
                elif isinstance(event, Finished):
                    for written in _write_end(writer, response, event.result, place):
                        yield written
    except ApiError as error:
        yield writer.write("error", code=error.code, message=error.message, param=error.param)
        yield writer.write("response.failed", response=response.fail(error))


def _write_end(writer: EventWriter, response: ResponseShape, reply: Reply, place: dict[str, Any]) -> list[bytes]:
    """Return the events after the last part of the text."""
    annotations = response.make_annotations(reply)
    text = reply.answer.text
    events = [
        writer.write("response.output_text.annotation.added", **place, annotation_index=number, annotation=annotation)
        for number, annotation in enumerate(annotations)
    ]
    events.append(writer.write("response.output_text.done", **place, text=text, logprobs=[]))
    events.append(writer.write("response.content_part.done", **place, part=response.make_part(text, annotations)))
    events.append(writer.write("response.output_item.done", output_index=0, item=response.make_item(reply)))
    kind = "response.completed" if reply.answer.complete else "response.incomplete"
    return [*events, writer.write(kind, response=response.finish(reply))]
