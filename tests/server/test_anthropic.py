"""The anthropic client, in strict mode: documents, citations, streams, errors."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from keywise.server.unsupported import CLOSEST, NOTE
from tests.support.pdf import write_pages
from tests.support.server import LIGHTHOUSE, ServerProcess

PETS = "The cat sat on the mat. The dog is named Rex."
PDF = write_pages([(60, 700, "The lamp was lit in 1862.")], [(60, 500, "The keeper was Ann Low.")])
QUESTION = "Where is the old lens now?"


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=server.address, api_key="none", max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


@pytest.fixture(scope="module")
def model(client: anthropic.Anthropic) -> str:
    (only,) = client.models.list().data
    return only.id


def make_document(text: str = PETS, title: str | None = "Pets", *, enabled: bool = True) -> dict[str, Any]:
    source = {"type": "text", "media_type": "text/plain", "data": text}
    return {"type": "document", "source": source, "title": title, "citations": {"enabled": enabled}}


def ask(question: str, *documents: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [*documents, {"type": "text", "text": question}]}]


def test_a_text_is_cited_by_its_characters(client: anthropic.Anthropic, model: str) -> None:
    messages = ask("What is the dog's name?", make_document("It rains.", "Weather"), make_document())
    message = client.messages.create(model=model, max_tokens=50, messages=messages)
    (block,) = message.content
    assert block.text == "Rex"
    (citation,) = block.citations
    assert citation.type == "char_location"
    assert (citation.document_index, citation.document_title) == (1, "Pets")
    assert PETS[citation.start_char_index : citation.end_char_index] == citation.cited_text == "The dog is named Rex."
    assert message.stop_reason == "end_turn"
    again = client.messages.create(model=model, max_tokens=50, messages=messages)
    assert again.usage.cache_read_input_tokens > 0
    assert again.usage.input_tokens + again.usage.cache_read_input_tokens == (
        message.usage.input_tokens + message.usage.cache_read_input_tokens
    )


def test_a_document_has_the_title_of_its_client_everywhere(client: anthropic.Anthropic, model: str) -> None:
    messages = ask("What is the dog's name?", make_document(title="K"))
    whole = client.messages.create(model=model, max_tokens=50, messages=messages)
    with client.messages.stream(model=model, max_tokens=50, messages=messages) as stream:
        (ending,) = [event.to_dict() for event in stream if event.type == "message_delta"]
    for citations, extension in (
        (whole.content[0].citations, whole.model_extra["keywise"]),
        (stream.get_final_message().content[0].citations, ending["keywise"]),
    ):
        assert [citation.document_title for citation in citations] == ["K"]
        assert [citation["document_title"] for citation in extension["citations"]] == ["K"]
        assert [document["title"] for document in extension["documents"]] == ["K"]


def test_the_text_says_that_no_sentence_supports_it(client: anthropic.Anthropic, model: str) -> None:
    options: dict[str, Any] = {"model": model, "max_tokens": 50, "messages": ask("Who is the president of France?")}
    (block,) = client.messages.create(**options).content
    assert block.text.startswith(f"{NOTE}{CLOSEST}")
    assert block.citations is None
    with client.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == block.text
    assert stream.get_final_message().content[0].text == block.text


def test_a_pdf_is_cited_by_its_pages(client: anthropic.Anthropic, model: str) -> None:
    source = {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(PDF).decode()}
    document = {"type": "document", "source": source, "title": "Log", "citations": {"enabled": True}}
    message = client.messages.create(model=model, max_tokens=50, messages=ask("Who was the keeper?", document))
    (citation,) = message.content[0].citations
    assert citation.type == "page_location"
    assert (citation.start_page_number, citation.end_page_number) == (2, 3)
    assert message.content[0].text == "Ann Low"


def test_the_documents_of_the_server_are_asked_without_others(client: anthropic.Anthropic, model: str) -> None:
    message = client.messages.create(model=model, max_tokens=50, messages=ask(QUESTION))
    (citation,) = message.content[0].citations
    text = LIGHTHOUSE.read_text(encoding="utf-8")
    assert text[citation.start_char_index : citation.end_char_index] == citation.cited_text


def test_citations_are_left_out_unless_they_are_enabled(client: anthropic.Anthropic, model: str) -> None:
    messages = ask("What is the dog's name?", make_document(enabled=False))
    message = client.messages.create(model=model, max_tokens=50, messages=messages)
    assert message.content[0].citations is None
    assert message.model_extra["keywise"]["citations"]
    mixed = ask("What is the dog's name?", make_document(), make_document("It rains.", "Rain", enabled=False))
    with pytest.raises(anthropic.BadRequestError, match="for all documents or for none"):
        client.messages.create(model=model, max_tokens=50, messages=mixed)


def test_a_stream_adds_up_to_the_whole_message(client: anthropic.Anthropic, model: str) -> None:
    messages = ask("What is the dog's name?", make_document())
    whole = client.messages.create(model=model, max_tokens=50, messages=messages)
    with client.messages.stream(model=model, max_tokens=50, messages=messages) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert [(block.text, block.citations) for block in final.content] == [
        (block.text, block.citations) for block in whole.content
    ]
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert kinds[0] == "message_start"
    assert "citation" in kinds
    assert kinds[-1] == "message_stop"


def test_a_sampled_answer_streams_in_parts(client: anthropic.Anthropic, model: str) -> None:
    options: dict[str, Any] = {
        "model": model,
        "max_tokens": 12,
        "messages": ask("Tell me about the lamp."),
        "extra_body": {"temperature": 1.0, "top_k": 1},
    }
    with client.messages.stream(**options) as stream:
        parts = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(parts) > 3
    assert "".join(parts) == final.content[0].text
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 12


def test_stop_sequences_end_a_message(client: anthropic.Anthropic, model: str) -> None:
    message = client.messages.create(model=model, max_tokens=50, messages=ask(QUESTION), stop_sequences=["museum"])
    assert message.content[0].text == "the town"
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "museum")


def test_an_unknown_model_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="other", max_tokens=5, messages=ask(QUESTION))
    assert caught.value.body["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    "options",
    [
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]},
        {"messages": ask("x", {"type": "document", "source": {"type": "url", "url": "http://x/a.pdf"}})},
        {"messages": ask("x", make_document(""))},
        {"messages": ask(" ")},
        {"max_tokens": 0},
        {"tools": [{"name": "f", "input_schema": {}}]},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"extra_body": {"temperature": 2}},
        {"extra_body": {"colour": 1}},
    ],
)
def test_bad_requests_have_structured_errors(client: anthropic.Anthropic, model: str, options: dict[str, Any]) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**{"model": model, "max_tokens": 50, "messages": ask(QUESTION), **options})
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"


def test_an_error_names_its_block_once(client: anthropic.Anthropic, model: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model=model, max_tokens=50, messages=ask("x", make_document("")))
    message = caught.value.body["error"]["message"]
    assert message.startswith("messages.0.content.0 must be a file with text in it")
    assert message.count("messages.0") == 1


def test_an_error_in_a_stream_is_raised_by_the_client(client: anthropic.Anthropic, model: str) -> None:
    stream = client.messages.create(
        model=model, max_tokens=50, messages=ask(QUESTION), stop_sequences=[""], stream=True
    )
    with pytest.raises(anthropic.APIStatusError, match="must not have an empty text"):
        list(stream)
