"""OpenAI's chat completions: `POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from keywise.documents.document import ANSWER_TOKENS
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
    list_stops,
    make_sampling,
    refuse_unsupported,
    split_conversation,
)
from keywise.server.service import PING, Service, collect, encode_event, find_base, respond_with_events

# Values that ask for nothing, for fields that are not supported.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
}
# Fields about the client or the provider's service; they cannot change an answer.
_WITHOUT_EFFECT: Final = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
    "prompt_cache_key",
    "safety_identifier",
)


class StreamOptions(RequestModel):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatMessage(RequestModel):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    function_call: Any = None
    audio: Any = None


class ChatRequest(RequestModel):
    """A request for a chat completion."""

    model: str
    messages: list[ChatMessage]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: float | None = None
    seed: int | None = None
    keywise: KeywiseOptions = KeywiseOptions()
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


def make_router(service: Service) -> APIRouter:
    """Return the endpoint of chat completions.

    Parameters
    ----------
    service
        The state of the server.
    """
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def complete_chat(request: Request, body: ChatRequest) -> Any:
        service.check_model(body.model)
        sent = body.model_dump(exclude_unset=True)
        refuse_unsupported(sent, _NEUTRAL)
        question, unused = await _read_question(service, body)
        unused += [name for name in _WITHOUT_EFFECT if sent.get(name) is not None]
        service.answering.check_question(question)
        completion = ChatCompletion(service.answering.model_name, find_base(request), unused)
        if not body.stream:
            return completion.make_response(await collect(request, service.stream_noted(question)))
        has_usage = body.stream_options is not None and body.stream_options.include_usage
        has_sources = body.keywise.open_webui_sources
        if has_sources is None:
            has_sources = service.settings.open_webui_sources
        return _stream(service, question, completion, has_usage=has_usage, has_sources=has_sources)

    return router


async def _read_question(service: Service, body: ChatRequest) -> tuple[Question, list[str]]:
    """Return the question of a request, and the parts of it that have no effect."""
    if len(body.messages) > service.settings.limits.messages:
        raise ApiError(400, f"There must be at most {service.settings.limits.messages} messages.", "messages")
    messages: list[Message] = []
    unused: list[str] = []
    for number, message in enumerate(body.messages):
        param = f"messages[{number}]"
        if message.role in {"system", "developer"}:
            unused.append(f"{param} ({message.role})")
            continue
        if message.role in {"tool", "function"} or message.tool_calls or message.function_call:
            raise ApiError(400, "This server does not call tools.", param, "unsupported_role")
        text, documents = await read_content_parts(service, message.content, param)
        messages.append(Message(message.role, text, documents))
    text, turns, documents = split_conversation(messages, "messages")
    max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    try:
        sampling = make_sampling(body.temperature, body.top_p, seed=body.seed)
    except KeywiseError as error:
        raise convert_error(error) from error
    question = Question(
        text,
        turns,
        (*service.find_documents(body.keywise.documents), *documents),
        body.keywise.library,
        ANSWER_TOKENS if max_tokens is None else max_tokens,
        body.keywise.sentences,
        sampling,
        list_stops(body.stop),
    )
    return question, unused


class ChatCompletion:
    """The shapes of one chat completion.

    Parameters
    ----------
    model
        Name of the model.
    base
        Address of the server.
    unused
        Parts of the request that did not change the answer.
    """

    def __init__(self, model: str, base: str, unused: list[str]) -> None:
        self._base = base
        self._unused = unused
        self._common = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def make_response(self, reply: Reply) -> dict[str, Any]:
        """Return the whole completion."""
        message = {
            "role": "assistant",
            "content": reply.answer.text,
            "refusal": None,
            "annotations": self.make_annotations(reply),
        }
        choice = {"index": 0, "message": message, "finish_reason": get_finish_reason(reply), "logprobs": None}
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": make_usage(reply),
            "keywise": make_extension(reply, unused=self._unused),
        }

    def make_chunk(self, delta: dict[str, Any] | None, finish_reason: str | None = None, **fields: Any) -> bytes:
        """Return a chunk of a stream; without a delta it has no choices."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        chunk = {
            **self._common,
            "object": "chat.completion.chunk",
            "choices": [] if delta is None else [choice],
            **fields,
        }
        return encode_event(chunk)

    def make_annotations(self, reply: Reply) -> list[dict[str, Any]]:
        """Return the citations as addresses of this server's page."""
        return [
            {
                "type": "url_citation",
                "url_citation": {
                    "start_index": citation.answer_start,
                    "end_index": citation.answer_end,
                    "title": citation.document_title,
                    "url": citation.make_address(self._base),
                },
            }
            for citation in make_citations(reply)
        ]

    def make_end(self, reply: Reply, *, has_usage: bool, has_sources: bool) -> list[bytes]:
        """Return the last chunks of a stream: citations, the reason of the end, usage, the extension."""
        extension = make_extension(reply, unused=self._unused)
        chunks = [self.make_chunk({"annotations": self.make_annotations(reply)})]
        if has_sources:
            chunks += [self.make_chunk(None, event=event) for event in make_source_events(reply, self._base)]
        if has_usage:
            chunks.append(self.make_chunk({}, get_finish_reason(reply), usage=None))
            chunks.append(self.make_chunk(None, usage=make_usage(reply), keywise=extension))
        else:
            chunks.append(self.make_chunk({}, get_finish_reason(reply), keywise=extension))
        return chunks


def _stream(
    service: Service, question: Question, completion: ChatCompletion, *, has_usage: bool, has_sources: bool
) -> Response:
    async def make_chunks() -> AsyncGenerator[bytes, None]:
        yield completion.make_chunk({"role": "assistant", "content": ""})
        try:
            async with aclosing(service.stream_noted(question)) as events:
                async for event in events:
                    if isinstance(event, Delta):
                        yield completion.make_chunk({"content": event.text})
                    elif isinstance(event, Ping):
                        yield PING
                    elif isinstance(event, Finished):
                        for chunk in completion.make_end(event.result, has_usage=has_usage, has_sources=has_sources):
                            yield chunk
        except ApiError as error:
            yield encode_event(error.to_openai())
        yield b"data: [DONE]\n\n"

    return respond_with_events(make_chunks())


def get_finish_reason(reply: Reply) -> str:
    """Return why an answer ended."""
    return "stop" if reply.answer.complete else "length"


def make_usage(reply: Reply) -> dict[str, Any]:
    """Return the numbers of tokens of an answer."""
    tokens = reply.answer.answer_tokens
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": reply.prompt_tokens + tokens,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
    }


def make_source_events(reply: Reply, base: str) -> list[dict[str, Any]]:
    """Return events of the type ``source``, one per cited document, as Open WebUI's citation panel takes them."""
    by_document: dict[int, list[Any]] = {}
    for citation in make_citations(reply):
        by_document.setdefault(citation.document_index, []).append(citation)
    events = []
    for citations in by_document.values():
        unique = list({citation.evidence.rank: citation for citation in citations}.values())
        title = unique[0].document_title
        data = {
            "source": {"name": title, "url": unique[0].make_address(base)},
            "document": [citation.cited_text for citation in unique],
            "metadata": [
                {
                    "source": citation.make_address(base),
                    "name": title,
                    **({"page": citation.evidence.page - 1} if citation.evidence.page else {}),
                }
                for citation in unique
            ],
            "distances": [citation.evidence.share for citation in unique],
        }
        events.append({"type": "source", "data": data})
    return events
