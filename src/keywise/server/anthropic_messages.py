"""Anthropic's messages: `POST /v1/messages`."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from keywise.documents.report import split_by_sources
from keywise.errors import KeywiseError
from keywise.server.answering import Question, Reply
from keywise.server.api_errors import ApiError, convert_error
from keywise.server.citations import Citation, make_citations, make_extension
from keywise.server.model_queue import Delta, Finished, Ping
from keywise.server.request_parts import (
    KeywiseOptions,
    Message,
    RequestModel,
    make_sampling,
    refuse_unsupported,
    split_conversation,
)
from keywise.server.service import PING, Service, collect, decode_file, encode_event, respond_with_events

_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "tools": (None, []),
    "tool_choice": (None, {"type": "none"}, {"type": "auto"}),
    "thinking": (None, {"type": "disabled"}),
    "container": (None,),
    "mcp_servers": (None, []),
    "output_format": (None,),
    "output_config": (None, {}),
}
_WITHOUT_EFFECT: Final = ("system", "metadata", "service_tier", "cache_control", "inference_geo")


class Block(RequestModel):
    """A block of a message: a text or a document."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    text: str | None = None
    source: dict[str, Any] | None = None
    title: str | None = None
    citations: Any = None


class ClientMessage(RequestModel):
    """A message of a conversation."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class MessagesRequest(RequestModel):
    """A request for a message."""

    model: str
    messages: list[ClientMessage]
    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool | None = False
    stop_sequences: Annotated[list[str], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    keywise: KeywiseOptions = KeywiseOptions()
    system: Any = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    cache_control: Any = None
    inference_geo: str | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    thinking: Any = None
    container: Any = None
    mcp_servers: list[Any] | None = None
    output_format: Any = None
    output_config: Any = None


def make_router(service: Service) -> APIRouter:
    """Return the endpoint of messages.

    Parameters
    ----------
    service
        The state of the server.
    """
    router = APIRouter()

    @router.post("/v1/messages")
    async def create_message(request: Request, body: MessagesRequest) -> Any:
        service.check_model(body.model)
        sent = body.model_dump(exclude_unset=True)
        refuse_unsupported(sent, _NEUTRAL)
        reader = DocumentReader(service)
        question = await _read_question(service, body, reader)
        service.answering.check_question(question)
        unused = [name for name in _WITHOUT_EFFECT if sent.get(name) is not None]
        message = MessageShape(service.answering.model_name, unused, reader)
        if not body.stream:
            return message.make_response(await collect(request, service.stream_noted(question)))
        return respond_with_events(_make_events(service, question, message))

    return router


async def _read_question(service: Service, body: MessagesRequest, reader: DocumentReader) -> Question:
    if len(body.messages) > service.settings.limits.messages:
        raise ApiError(400, f"There must be at most {service.settings.limits.messages} messages.", "messages")
    messages = [
        Message(message.role, *await reader.read(message.content, f"messages.{number}"))
        for number, message in enumerate(body.messages)
    ]
    text, turns, documents = split_conversation(messages, "messages")
    try:
        sampling = make_sampling(body.temperature, body.top_p, top_k=body.top_k)
    except KeywiseError as error:
        raise convert_error(error) from error
    return Question(
        text,
        turns,
        (*service.find_documents(body.keywise.documents), *documents),
        body.keywise.library,
        min(body.max_tokens, service.settings.limits.answer_tokens),
        body.keywise.sentences,
        sampling,
        tuple(body.stop_sequences or ()),
    )


class DocumentReader:
    """Reads the blocks of messages; documents are converted and kept.

    Parameters
    ----------
    service
        The state of the server.

    Attributes
    ----------
    has_citations : bool
        Whether the documents ask for citations; true without documents, for those of the server.
    titles : dict
        The titles that the client gave to documents, by their identifiers.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asked: list[bool] = []
        self.titles: dict[str, str | None] = {}

    @property
    def has_citations(self) -> bool:
        """Whether the answer has citations."""
        return all(self._asked)

    async def read(self, content: str | list[Block], param: str) -> tuple[str, tuple[str, ...]]:
        """Return the text of a message, and the identifiers of its documents.

        Raises
        ------
        ApiError
            A block is an image or of another kind, or a document cannot be read.
        """
        if isinstance(content, str):
            return content, ()
        texts: list[str] = []
        documents: list[str] = []
        for number, block in enumerate(content):
            place = f"{param}.content.{number}"
            if block.type == "text":
                texts.append(block.text or "")
            elif block.type == "document":
                documents.append(await self._read_document(block, place))
                self.titles[documents[-1]] = block.title
            else:
                message = f"This server reads texts and documents, not blocks of the type {block.type!r}."
                raise ApiError(400, message, place, "unsupported_content")
        if len(documents) > self._service.settings.limits.files_per_request:
            limit = self._service.settings.limits.files_per_request
            raise ApiError(400, f"A message must have at most {limit} documents.", param, "too_many_files")
        # Text blocks of an answer with citations are parts of one text.
        return "".join(texts), tuple(documents)

    async def _read_document(self, block: Block, place: str) -> str:
        enabled = isinstance(block.citations, dict) and block.citations.get("enabled") is True
        self._asked.append(enabled)
        if len(set(self._asked)) > 1:
            message = "Citations must be enabled for all documents or for none."
            raise ApiError(400, message, place, "invalid_value")
        source = block.source or {}
        kind, data = source.get("type"), source.get("data")
        if kind == "file" and isinstance(source.get("file_id"), str):
            return self._service.store.get(source["file_id"]).id
        if kind == "text" and isinstance(data, str):
            name = f"{(block.title or 'document').removesuffix('.txt')}.txt"
            return (await self._service.add_document(name, data.encode("utf-8", "replace"), param=place)).id
        if kind == "base64" and source.get("media_type") == "application/pdf" and isinstance(data, str):
            name = f"{(block.title or 'document').removesuffix('.pdf')}.pdf"
            return (await self._service.add_document(name, decode_file(data, place), param=place)).id
        message = f"The source of a document must be text, a PDF in base64 or a file_id, got {kind!r}."
        raise ApiError(400, message, place, "unsupported_content")


class MessageShape:
    """The shapes of one message and of its events.

    Parameters
    ----------
    model
        Name of the model.
    unused
        Parts of the request that did not change the answer.
    reader
        What read the documents of the request.
    """

    def __init__(self, model: str, unused: list[str], reader: DocumentReader) -> None:
        self._unused = unused
        self._reader = reader
        self._common = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}

    def begin(self) -> dict[str, Any]:
        """Return the message before its text."""
        usage = {"input_tokens": 0, "output_tokens": 0}
        return {**self._common, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}

    def make_response(self, reply: Reply) -> dict[str, Any]:
        """Return the whole message."""
        reply = self.retitle(reply)
        return {
            **self._common,
            "content": self.make_blocks(reply),
            **self.make_end(reply),
            "usage": self.make_usage(reply),
            "keywise": self.make_extension(reply),
        }

    def retitle(self, reply: Reply) -> Reply:
        """Return an answer whose documents have the titles that the client gave them."""
        titles = self._reader.titles
        documents = [replace(each, title=titles.get(each.id or "") or each.title) for each in reply.documents]
        return replace(reply, documents=documents)

    def make_extension(self, reply: Reply) -> dict[str, Any]:
        """Return the object `keywise`."""
        return make_extension(reply, unused=self._unused)

    def make_blocks(self, reply: Reply) -> list[dict[str, Any]]:
        """Return the text in blocks, each with the citations of its sentences."""
        citations = make_citations(reply) if self._reader.has_citations else []
        if not citations:
            return [{"type": "text", "text": reply.answer.text, "citations": None}]
        blocks = []
        position = 0
        for text, _ in split_by_sources(reply.answer):
            position += len(text)
            own = [describe_location(each) for each in citations if each.answer_end == position]
            blocks.append({"type": "text", "text": text, "citations": own or None})
        return blocks

    @staticmethod
    def make_end(reply: Reply) -> dict[str, Any]:
        """Return why the message ended."""
        answer = reply.answer
        reason = "end_turn" if answer.complete else "max_tokens"
        return {"stop_reason": "stop_sequence" if answer.stopped_by else reason, "stop_sequence": answer.stopped_by}

    @staticmethod
    def make_usage(reply: Reply) -> dict[str, Any]:
        """Return the numbers of tokens; those that were not computed are told apart."""
        return {
            "input_tokens": reply.prompt_tokens - reply.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": reply.cached_tokens,
            "output_tokens": reply.answer.answer_tokens,
        }


def describe_location(citation: Citation) -> dict[str, Any]:
    """Return a citation of a page, or of characters where the document has no pages.

    Parameters
    ----------
    citation
        The citation.
    """
    common = {
        "cited_text": citation.cited_text,
        "document_index": citation.document_index,
        "document_title": citation.document_title,
        "file_id": citation.document_id,
    }
    first, end = citation.pages
    if first:
        return {"type": "page_location", **common, "start_page_number": first, "end_page_number": end}
    item = citation.evidence
    return {"type": "char_location", **common, "start_char_index": item.start, "end_char_index": item.end}


async def _make_events(service: Service, question: Question, message: MessageShape) -> AsyncGenerator[bytes, None]:
    yield encode_event({"type": "message_start", "message": message.begin()}, "message_start")
    blocks = BlockWriter()
    try:
        async with aclosing(service.stream_noted(question)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    blocks.add_text(event.text)
                elif isinstance(event, Ping):
                    yield encode_event({"type": "ping"}, "ping")
                    yield PING
                elif isinstance(event, Finished):
                    for chunk in _write_end(blocks, message, event.result):
                        yield chunk
                for chunk in blocks.pop_chunks():
                    yield chunk
    except ApiError as error:
        yield encode_event(error.to_anthropic(), "error")


def _write_end(blocks: BlockWriter, message: MessageShape, reply: Reply) -> list[bytes]:
    """Return the events after the last part of the text."""
    reply = message.retitle(reply)
    blocks.finish(message.make_blocks(reply))
    chunks = blocks.pop_chunks()
    end = {
        "type": "message_delta",
        "delta": message.make_end(reply),
        "usage": message.make_usage(reply),
        "keywise": message.make_extension(reply),
    }
    return [*chunks, encode_event(end, "message_delta"), encode_event({"type": "message_stop"}, "message_stop")]


class BlockWriter:
    """Writes the events of text blocks.

    The sources of the words are known at the end. An answer that comes in several parts is one block, which has all
    citations; an answer that comes in one part has a block for each change of sources.
    """

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._text = ""
        self._parts = 0

    def add_text(self, text: str) -> None:
        """Add a part of the answer; the first one waits, because a quoted answer has no other."""
        self._parts += 1
        if self._parts == 2:
            self._start(0)
            self._add(0, self._text)
        if self._parts >= 2:
            self._add(0, text)
        self._text += text

    def finish(self, blocks: list[dict[str, Any]]) -> None:
        """Write the citations, and the blocks of an answer that came in one part."""
        if self._parts >= 2:
            seen: list[dict[str, Any]] = []
            for block in blocks:
                seen += [citation for citation in block["citations"] or [] if citation not in seen]
            self._end(0, seen)
            return
        for number, block in enumerate(blocks):
            self._start(number)
            self._add(number, block["text"])
            self._end(number, block["citations"] or [])

    def pop_chunks(self) -> list[bytes]:
        """Return the events since the last call."""
        chunks, self._chunks = self._chunks, []
        return chunks

    def _start(self, number: int) -> None:
        block = {"type": "text", "text": "", "citations": None}
        self._write("content_block_start", index=number, content_block=block)

    def _add(self, number: int, text: str) -> None:
        if text:
            self._write("content_block_delta", index=number, delta={"type": "text_delta", "text": text})

    def _end(self, number: int, citations: list[dict[str, Any]]) -> None:
        for citation in citations:
            self._write("content_block_delta", index=number, delta={"type": "citations_delta", "citation": citation})
        self._write("content_block_stop", index=number)

    def _write(self, kind: str, **fields: Any) -> None:
        self._chunks.append(encode_event({"type": kind, **fields}, kind))
