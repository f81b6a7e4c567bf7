"""The page and its own endpoints: documents, conversations, answers as they arise, and views of documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, replace
from importlib.resources import files
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request, Response, UploadFile
from pydantic import Field

from keywise.documents.document_html import read_style, render_documents
from keywise.documents.places import Places
from keywise.documents.report import split_by_sources
from keywise.documents.shading import NO_SHADING, is_supported, make_shading
from keywise.documents.view import make_view
from keywise.errors import FormatError, KeywiseError
from keywise.server.answering import Question, Reply
from keywise.server.api_errors import ApiError, convert_error
from keywise.server.conversation_store import KeptTurn, PageMarks, list_ablations
from keywise.server.document_store import UPLOADED
from keywise.server.model_queue import Delta, Event, Finished, Job, Ping, Progress
from keywise.server.openai_files import read_upload
from keywise.server.request_parts import RequestModel
from keywise.server.service import PING, Service, collect, encode_event, respond_with_events

ABLATED_SENTENCES: Final = 3
LISTED_SENTENCES: Final = 10
_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class NewConversation(RequestModel):
    """Documents of a new conversation; none for those of the server."""

    documents: Annotated[tuple[str, ...], Field(max_length=64, strict=False)] = ()


class NewQuestion(RequestModel):
    """A question of a conversation."""

    question: str


def make_router(service: Service) -> APIRouter:
    """Return the page and its endpoints.

    Parameters
    ----------
    service
        The state of the server.
    """
    router = APIRouter(include_in_schema=False)
    _add_static_files(router)
    _add_documents(router, service)
    _add_conversations(router, service)
    return router


def _add_static_files(router: APIRouter) -> None:
    folder = files("keywise.server").joinpath("page")
    texts = {entry.name: entry.read_text("utf-8") for entry in folder.iterdir() if entry.is_file()}
    texts["document.css"] = read_style()

    @router.api_route("/", methods=["GET", "HEAD"])
    async def show_page() -> Response:
        return Response(texts["index.html"], media_type="text/html")

    @router.get("/static/{name}")
    async def get_static(name: str) -> Response:
        kind = next((kind for suffix, kind in _TYPES.items() if name.endswith(suffix)), None)
        if name not in texts or kind is None:
            raise ApiError(404, "There is no such file.", "path", "not_found")
        return Response(texts[name], media_type=kind, headers={"cache-control": "no-cache"})


def _add_documents(router: APIRouter, service: Service) -> None:
    @router.get("/api/state")
    async def get_state() -> dict[str, Any]:
        answering = service.answering
        return {
            "model": answering.model_name,
            "library": None if answering.library is None else answering.library.path,
            "default_documents": answering.documents,
            "documents": [_describe_document(each) for each in service.store.list_documents()],
            "conversations": [asdict(each) for each in service.conversations.list_conversations() if each.turns],
        }

    @router.post("/api/documents")
    async def upload(file: UploadFile) -> dict[str, Any]:
        content = await read_upload(service, file)
        return _describe_document(await service.add_document(file.filename or "", content, origin=UPLOADED))

    @router.delete("/api/documents/{document_id}")
    async def remove(document_id: str) -> dict[str, Any]:
        service.store.remove(document_id)
        return {"id": document_id, "deleted": True}

    @router.post("/api/documents/{document_id}/prefill")
    async def prefill(document_id: str) -> Response:
        service.store.get(document_id)

        def read(job: Job) -> dict[str, int]:
            document = service.answering.read((document_id,), job)
            return {"tokens": document.tokens, "windows": len(document.windows)}

        return respond_with_events(_report(service.run(read), "read"))

    @router.get("/api/documents/{document_id}/view")
    async def view(document_id: str) -> Response:
        return await _render(service, (document_id,), None)

    @router.get("/api/documents/{document_id}/pages/{number}")
    async def show_page_of_pdf(document_id: str, number: int) -> Response:
        async with service.conversions:
            picture = await asyncio.to_thread(service.pictures.get, document_id, number)
        return Response(picture, media_type="image/png")


def _add_conversations(router: APIRouter, service: Service) -> None:
    conversations = service.conversations

    @router.post("/api/conversations")
    async def create(body: NewConversation) -> dict[str, Any]:
        documents = service.answering.choose_documents(Question("", documents=body.documents))
        titles = tuple(service.store.get(each).name for each in documents)
        return asdict(conversations.create(documents, titles))

    @router.get("/api/conversations/{conversation_id}")
    async def show(conversation_id: str) -> dict[str, Any]:
        conversation = conversations.get(conversation_id)
        turns = await asyncio.to_thread(conversations.read_turns, conversation_id)
        sources = await asyncio.to_thread(_load_sources, service, conversation.documents)
        return {**asdict(conversation), "turns": [describe_turn(turn, sources) for turn in turns]}

    @router.delete("/api/conversations/{conversation_id}")
    async def remove(conversation_id: str) -> dict[str, Any]:
        conversations.remove(conversation_id)
        return {"id": conversation_id, "deleted": True}

    @router.post("/api/conversations/{conversation_id}/questions")
    async def ask(conversation_id: str, body: NewQuestion) -> Response:
        conversation = conversations.get(conversation_id)
        turns = tuple(turn.to_turn() for turn in conversations.read_turns(conversation_id))
        library = not conversation.documents
        question = Question(body.question.strip(), turns, conversation.documents, library)
        service.answering.check_question(question)
        return respond_with_events(_answer(service, conversation_id, question))

    @router.get("/api/conversations/{conversation_id}/turns/{number}/view")
    async def view_turn(conversation_id: str, number: int) -> Response:
        conversation = conversations.get(conversation_id)
        return await _render(service, conversation.documents, conversations.read_turn(conversation_id, number))

    @router.post("/api/conversations/{conversation_id}/turns/{number}/ablation")
    async def ablate(request: Request, conversation_id: str, number: int) -> Any:
        conversation = conversations.get(conversation_id)
        turn = conversations.read_turn(conversation_id, number)
        if not turn.ablations:
            run = service.run(lambda job: _ablate(service, conversation.documents, turn, job))
            turn = replace(turn, ablations=await collect(request, run))
            conversations.write_turn(conversation_id, number, turn)
        return {"ablations": _describe_ablations(turn)}


async def _answer(service: Service, conversation_id: str, question: Question) -> AsyncGenerator[bytes, None]:
    """Yield the events of an answer, and keep it."""
    try:
        async with aclosing(service.stream(question)) as events:
            async for event in events:
                if not isinstance(event, Finished):
                    yield _encode(event)
                    continue
                reply: Reply = event.result
                turn = await _make_turn(service, reply)
                number = service.conversations.add_turn(conversation_id, turn)
                described = describe_turn(turn, reply.sources)
                tokens = {"prompt_tokens": reply.prompt_tokens, "cached_tokens": reply.cached_tokens}
                yield encode_event({"number": number, **described, **tokens}, "answer")
    except ApiError as error:
        yield encode_event(error.to_openai(), "error")
    except OSError as error:
        kept = ApiError(507, f"The answer cannot be kept: {error.strerror}.", None, "cannot_be_kept")
        yield encode_event(kept.to_openai(), "error")


async def _report(events: AsyncGenerator[Event, None], name: str) -> AsyncGenerator[bytes, None]:
    """Yield the events of a job, its result under a name."""
    try:
        async with aclosing(events) as told:
            async for event in told:
                yield encode_event(event.result, name) if isinstance(event, Finished) else _encode(event)
    except ApiError as error:
        yield encode_event(error.to_openai(), "error")


def _encode(event: Event) -> bytes:
    if isinstance(event, Progress):
        return encode_event({"done": event.done_tokens, "total": event.total_tokens}, "progress")
    if isinstance(event, Delta):
        return encode_event({"text": event.text}, "delta")
    return PING if isinstance(event, Ping) else b""


async def _make_turn(service: Service, reply: Reply) -> KeptTurn:
    """Return an answer to keep, with the places of its sentences on pages."""
    marks: PageMarks = {}
    if not reply.passages and is_supported(reply.read_answer):
        for number, (document, source) in enumerate(zip(reply.documents, reply.sources, strict=True)):
            if document.id is not None and service.store.get(document.id).page_sizes:
                # A page that cannot be drawn has no boxes; its text is shown.
                with suppress(FormatError):
                    async with service.conversions:
                        marks[number] = await asyncio.to_thread(
                            service.pictures.mark, document.id, source, reply.read_answer
                        )
    return KeptTurn(reply.read_answer, tuple(reply.sources) if reply.passages else (), marks)


def _ablate(
    service: Service, documents: Sequence[str], turn: KeptTurn, job: Job
) -> tuple[tuple[int, float, bool], ...]:
    if turn.sources:
        document = service.answering.reader.read(list(turn.sources), ahead=False, progress=job.report_progress)
    else:
        document = service.answering.read(tuple(documents), job)
    job.check()
    return list_ablations(document.ablate(turn.answer, top=ABLATED_SENTENCES))


async def _render(service: Service, documents: Sequence[str], turn: KeptTurn | None) -> Response:
    """Return documents as HTML, with the marks of an answer."""

    def render() -> str:
        shading = NO_SHADING if turn is None else make_shading(turn.answer)
        sources = turn.sources if turn is not None and turn.sources else service.answering.load_sources(documents)
        views = []
        for number, source in enumerate(sources):
            marks = {} if turn is None or turn.marks is None else turn.marks.get(number, {})
            pages = service.pictures.list_pages(documents[number], marks) if documents else []
            views.append(make_view(source, shading, pages))
        return render_documents(views, shading)

    try:
        return Response(await asyncio.to_thread(render), media_type="text/html")
    except KeywiseError as error:
        raise convert_error(error) from error


def _load_sources(service: Service, documents: Sequence[str]) -> list[Any]:
    """Return the texts of a conversation's documents, without those that were removed."""
    return service.answering.load_sources(service.store.select_kept(documents))


def describe_turn(turn: KeptTurn, sources: Sequence[Any]) -> dict[str, Any]:
    """Return an answer as the page shows it.

    Parameters
    ----------
    turn
        The answer.
    sources
        The texts that places count in.
    """
    answer = turn.answer
    places = Places(turn.sources or sources)
    numbers = {source.name: number for number, source in enumerate(turn.sources or sources)}
    pictured = {mark.rank for pages in (turn.marks or {}).values() for marks in pages.values() for mark in marks}
    supported = is_supported(answer)
    return {
        "question": answer.question,
        "text": answer.text,
        "complete": answer.complete,
        "supported": supported,
        "no_answer_share": answer.no_answer_share,
        "parts": [
            {"text": text, "ranks": list(ranks) if supported else []} for text, ranks in split_by_sources(answer)
        ],
        "sentences": [
            {
                "rank": item.rank,
                "share": item.share,
                "text": item.text,
                "where": places.describe(item),
                "document": numbers.get(item.source, 0),
                "pictured": item.rank in pictured,
            }
            for item in answer.evidence[:LISTED_SENTENCES]
            if item.share > 0
        ],
        "windows": answer.windows,
        "read_windows": answer.read_windows,
        "ablations": _describe_ablations(turn),
    }


def _describe_ablations(turn: KeptTurn) -> list[dict[str, Any]]:
    return [{"rank": rank, "drop_nats": drop, "control": control} for rank, drop, control in turn.ablations]


def _describe_document(document: Any) -> dict[str, Any]:
    return {
        "id": document.id,
        "name": document.name,
        "bytes": document.size_bytes,
        "created_at": document.created_at,
        "origin": document.origin,
        "pages": len(document.page_sizes),
        "warnings": document.warnings,
    }
