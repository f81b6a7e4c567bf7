"""Answers of a tiny model: documents in memory, numbers of tokens, lengths, names, cancellation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keywise.documents import Reader
from keywise.models.loading import load_model
from keywise.server.answering import AnsweringService, Question
from keywise.server.api_errors import ApiError
from keywise.server.document_store import UPLOADED, DocumentStore
from keywise.server.model_queue import Delta, Job
from keywise.server.settings import Limits
from keywise.util.progress import InterruptedReading
from tests.support.chat_models import write_chat_model

TEXT = b"It rains. It is dry. Tom left the house."


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = write_chat_model(tmp_path_factory.mktemp("model"), max_position_embeddings=700)
    return Reader(load_model(folder), keep=False, encode=False)


def make_service(reader: Reader, folder: Path, **limits: Any) -> AnsweringService:
    kept = Limits(**limits)
    return AnsweringService(reader, DocumentStore(folder / "documents", kept), kept)


def add(service: AnsweringService, name: str, content: bytes = TEXT) -> str:
    return service.store.add(name, content, origin=UPLOADED).id


def ask(service: AnsweringService, *documents: str, **options: Any) -> Any:
    events: list[Any] = []
    question = Question("Who left?", documents=documents, **{"max_tokens": 5, **options})
    service.check_question(question)
    reply = service.answer(question, Job(events.append))
    shown = "".join(event.text for event in events if isinstance(event, Delta))
    assert shown == reply.answer.text
    return reply


def test_a_document_is_read_once(reader: Reader, tmp_path: Path) -> None:
    service = make_service(reader, tmp_path)
    document = add(service, "a.txt")
    first, second = ask(service, document), ask(service, document)
    assert first.cached_tokens == 0
    assert second.cached_tokens == first.answer.document_tokens == len(TEXT)
    assert first.prompt_tokens == second.prompt_tokens > second.cached_tokens
    assert first.answer.text == second.answer.text


def test_the_longest_unused_documents_leave_the_memory(reader: Reader, tmp_path: Path) -> None:
    service = make_service(reader, tmp_path, prefilled_documents=2)
    documents = [add(service, f"{number}.txt") for number in range(3)]
    for document in documents:
        ask(service, document)
    assert ask(service, documents[2]).cached_tokens > 0
    assert ask(service, documents[0]).cached_tokens == 0
    assert ask(service, documents[2]).cached_tokens > 0
    assert ask(service, documents[1]).cached_tokens == 0


def test_a_document_larger_than_the_memory_is_read_for_every_question(reader: Reader, tmp_path: Path) -> None:
    service = make_service(reader, tmp_path, prefilled_tokens=10)
    document = add(service, "a.txt")
    assert [ask(service, document).cached_tokens for _ in range(2)] == [0, 0]


def test_a_removed_document_leaves_the_memory_and_is_not_found(reader: Reader, tmp_path: Path) -> None:
    service = make_service(reader, tmp_path)
    document, other = add(service, "a.txt"), add(service, "b.txt")
    ask(service, document)
    service.store.remove(document)
    ask(service, other)
    assert [key for key in service._prefilled if document in key] == []
    with pytest.raises(ApiError) as caught:
        ask(service, document)
    assert caught.value.status == 404


def test_a_limit_beyond_the_context_is_that_of_the_context(reader: Reader, tmp_path: Path) -> None:
    """Clients ask for thousands of tokens, whatever the document leaves."""
    service = make_service(reader, tmp_path)
    document = add(service, "a.txt", b"It rains all day long. " * 18)
    reply = ask(service, document, max_tokens=2048)
    assert reply.answer.answer_tokens < 300
    with pytest.raises(ApiError, match="between 1 and 2,048"):
        ask(service, document, max_tokens=2049)


def test_documents_of_one_name_are_told_apart(reader: Reader, tmp_path: Path) -> None:
    service = make_service(reader, tmp_path)
    documents = add(service, "a.txt"), add(service, "a.txt", b"Ann came. She stayed.")
    reply = ask(service, *documents)
    assert [source.name for source in reply.sources] == ["a.txt", "a (2).txt"]
    assert [document.title for document in reply.documents] == ["a.txt", "a.txt"]
    texts = {reply.find_document(item): reply.quote(item) for item in reply.answer.evidence}
    assert set(texts) == {0, 1}
    assert all(reply.quote(item) == item.text for item in reply.answer.evidence)


def test_a_question_without_documents_asks_those_of_the_server_that_are_left(reader: Reader, tmp_path: Path) -> None:
    service = make_service(reader, tmp_path)
    documents = add(service, "a.txt"), add(service, "b.txt")
    service.documents = documents
    assert [each.id for each in ask(service).documents] == list(documents)
    service.store.remove(documents[0])
    assert [each.id for each in ask(service).documents] == [documents[1]]
    service.store.remove(documents[1])
    with pytest.raises(ApiError, match="those that the server was started with were removed"):
        ask(service)
    service.documents = ()
    with pytest.raises(ApiError, match="the server was started without any"):
        ask(service)


def test_a_cancelled_job_stops_while_it_reads_and_while_it_writes(reader: Reader, tmp_path: Path) -> None:
    service = make_service(reader, tmp_path)
    document = add(service, "a.txt", b"It rains all day long. " * 18)
    question = Question("Who left?", documents=(document,), max_tokens=10)
    for stop_after in (1, 2):
        events: list[Any] = []
        with pytest.raises(InterruptedReading):
            service.answer(question, make_job(events, stop_after))
        assert len(events) == stop_after
    assert service.answer(question, Job(lambda _event: None)).answer.text


def make_job(events: list[Any], stop_after: int) -> Job:
    """Return a job that is cancelled after some events."""

    def emit(event: Any) -> None:
        events.append(event)
        if len(events) == stop_after:
            job.cancel()

    job = Job(emit)
    return job
