"""The openai client, in strict mode: answers, streams, files, errors, cancellation."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from keywise.server.unsupported import CLOSEST, NOTE, WRITTEN
from tests.support.pdf import write_pages
from tests.support.server import LIGHTHOUSE, ServerProcess, send

TEXT = LIGHTHOUSE.read_text(encoding="utf-8")
QUESTION = "Where is the old lens now?"
SENTENCE = "The old lens was taken down in the same year and is now in the town museum, where"
PETS = b"The cat sat on the mat. The dog is named Rex."


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.address}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    (only,) = client.models.list().data
    return only.id


def ask(text: Any) -> list[Any]:
    return [{"role": "user", "content": text}]


def check_citation(extension: dict[str, Any], answer: str, documents: list[str]) -> None:
    for citation in extension["citations"]:
        document = documents[citation["document_index"]]
        start, end = citation["start_char_index"], citation["end_char_index"]
        assert document[start:end] == citation["cited_text"]
        assert answer[citation["answer_start_index"] : citation["answer_end_index"]]
        assert 0 <= citation["share"] <= 1


def test_a_model_is_listed_and_found(client: openai.OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.body["code"] == "model_not_found"


def test_a_question_about_the_documents_of_the_server(client: openai.OpenAI, model: str) -> None:
    completion = client.chat.completions.create(model=model, messages=ask(QUESTION))
    message = completion.choices[0].message
    assert message.content == "the town museum"
    assert completion.choices[0].finish_reason == "stop"
    extension = completion.model_extra["keywise"]
    check_citation(extension, message.content, [TEXT])
    (citation,) = extension["citations"]
    assert citation["cited_text"].startswith(SENTENCE)
    assert citation["document_title"] == "lighthouse.md"
    (annotation,) = message.annotations
    address = annotation.url_citation
    assert message.content[address.start_index : address.end_index] == "the town museum"
    span = f"start={citation['start_char_index']}&end={citation['end_char_index']}"
    assert address.url.endswith(f"/?document={citation['file_id']}&{span}")
    usage = completion.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    again = client.chat.completions.create(model=model, messages=ask(QUESTION))
    assert 600 < again.usage.prompt_tokens_details.cached_tokens < again.usage.prompt_tokens


def test_a_stream_adds_up_to_the_whole_completion(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=ask(QUESTION))
    with client.chat.completions.stream(
        model=model, messages=ask(QUESTION), stream_options={"include_usage": True}
    ) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].message.annotations == whole.choices[0].message.annotations
    assert final.choices[0].finish_reason == "stop"
    assert final.usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].choices == []
    assert chunks[-1].model_extra["keywise"]["citations"] == whole.model_extra["keywise"]["citations"]
    assert len({chunk.id for chunk in chunks}) == 1
    plain = list(client.chat.completions.create(model=model, messages=ask(QUESTION), stream=True))
    assert all(chunk.usage is None for chunk in plain)
    assert plain[-1].choices[0].finish_reason == "stop"
    assert plain[-1].model_extra["keywise"]["citations"]


def test_a_written_answer_streams_token_by_token_with_sources(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"model": model, "messages": ask("Tell me about the lamp."), "max_tokens": 12}
    written = {"extra_body": {"keywise": {"sentences": 0}}}
    parts = [
        chunk.choices[0].delta.content
        for chunk in client.chat.completions.create(**options, **written, stream=True)
        if chunk.choices and chunk.choices[0].delta.content
    ]
    whole = client.chat.completions.create(**options, **written)
    assert len(parts) > 3
    assert "".join(parts) == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12
    check_citation(whole.model_extra["keywise"], whole.choices[0].message.content, [TEXT])


def test_sampling_follows_the_seed_and_stop_cuts(client: openai.OpenAI, model: str) -> None:
    def sample(**options: Any) -> str:
        messages = ask("Tell me about the lamp.")
        completion = client.chat.completions.create(model=model, messages=messages, max_tokens=10, **options)
        return str(completion.choices[0].message.content)

    first = sample(temperature=1.2, seed=1)
    assert sample(temperature=1.2, seed=1) == first
    assert len({sample(temperature=1.2, seed=seed) for seed in range(2, 5)} | {first}) > 1
    assert sample(temperature=1.2, seed=1, top_p=1e-6) == sample(extra_body={"keywise": {"sentences": 0}})
    word = first.split()[2]
    assert sample(temperature=1.2, seed=1, stop=[word]) == first.partition(word)[0].rstrip()
    assert (
        client.chat.completions.create(model=model, messages=ask(QUESTION), stop="museum").choices[0].message.content
        == "the town"
    )


def test_an_answer_that_no_sentence_supports_cites_nothing(client: openai.OpenAI, model: str) -> None:
    completion = client.chat.completions.create(model=model, messages=ask("Who is the president of France?"))
    assert completion.choices[0].message.annotations == []
    extension = completion.model_extra["keywise"]
    assert extension["citations"] == []
    assert extension["no_answer_share"] > 0.5


def test_the_text_says_that_no_sentence_supports_it(client: openai.OpenAI, model: str) -> None:
    """Most clients show the text alone."""
    question = "Who is the president of France?"
    options: dict[str, Any] = {"model": model, "messages": ask(question)}
    whole = client.chat.completions.create(**options).choices[0].message.content
    assert whole.startswith(f"{NOTE}{CLOSEST}")
    assert len(whole) > len(f"{NOTE}{CLOSEST}")
    with client.chat.completions.stream(**options) as stream:
        assert stream.get_final_completion().choices[0].message.content == whole
    response = client.responses.create(model=model, input=question)
    assert response.output_text == whole
    with client.responses.stream(model=model, input=question) as events:
        parts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(parts) == whole
    written = {**options, "max_tokens": 6, "extra_body": {"keywise": {"sentences": 0}}}
    end = client.chat.completions.create(**written).choices[0].message.content
    assert end.endswith(f"{WRITTEN}{NOTE}")
    chunks = client.chat.completions.create(**written, stream=True)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(texts) > 3
    assert "".join(texts) == end


def test_a_follow_up_does_not_take_the_note_for_words_of_a_document(client: openai.OpenAI, model: str) -> None:
    def follow(told: str) -> Any:
        messages = [*ask("Which keeper stayed longest?"), {"role": "assistant", "content": told}]
        messages += ask("And what did he write down?")
        extension = client.chat.completions.create(model=model, messages=messages).model_extra["keywise"]
        return extension["no_answer_share"], extension["citations"]

    assert follow(f"{NOTE}{CLOSEST}Thomas Reed") == follow("Thomas Reed")


def test_uploaded_files_are_asked_listed_and_removed(client: openai.OpenAI, model: str) -> None:
    file = client.files.create(file=("pets.txt", PETS), purpose="user_data")
    assert (file.filename, file.bytes) == ("pets.txt", len(PETS))
    content = [{"type": "file", "file": {"file_id": file.id}}, {"type": "text", "text": "What is the dog's name?"}]
    completion = client.chat.completions.create(model=model, messages=ask(content))
    assert completion.choices[0].message.content == "Rex"
    check_citation(completion.model_extra["keywise"], "Rex", [PETS.decode()])
    assert file.id in {each.id for each in client.files.list()}
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == PETS
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=model, messages=ask(content))
    assert caught.value.body["code"] == "file_not_found"


def test_a_file_inside_a_message_and_boxes_of_a_pdf(client: openai.OpenAI, model: str) -> None:
    pdf = write_pages([(60, 700, "The lamp was lit in 1862.")], [(60, 500, "The keeper was Ann Low.")])
    data = f"data:application/pdf;base64,{base64.b64encode(pdf).decode()}"
    content = [
        {"type": "file", "file": {"filename": "log.pdf", "file_data": data}},
        {"type": "text", "text": "Who was the keeper?"},
    ]
    completion = client.chat.completions.create(model=model, messages=ask(content))
    assert completion.choices[0].message.content == "Ann Low"
    (citation,) = completion.model_extra["keywise"]["citations"]
    assert citation["page"] == 2
    (box,) = citation["boxes"]
    assert box["page"] == 2
    assert 58 < box["left"] < 62
    assert box["bottom"] < 500 < box["top"]


def test_a_follow_up_is_understood(client: openai.OpenAI, model: str) -> None:
    told = {"role": "assistant", "content": "Thomas Reed"}
    messages = [*ask("Which keeper stayed longest?"), told, *ask("And what did he write down?")]
    completion = client.chat.completions.create(model=model, messages=messages)
    assert "weather" in completion.choices[0].message.content


def test_system_messages_are_reported_as_unused(client: openai.OpenAI, model: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *ask(QUESTION)]
    completion = client.chat.completions.create(model=model, messages=messages, user="me")
    assert completion.model_extra["keywise"]["unused"] == ["messages[0] (system)", "user"]


def test_open_webui_gets_its_source_events_when_asked_for(client: openai.OpenAI, model: str) -> None:
    def list_events(**options: Any) -> list[Any]:
        chunks = client.chat.completions.create(model=model, messages=ask(QUESTION), stream=True, **options)
        return [chunk.model_extra["event"] for chunk in chunks if "event" in (chunk.model_extra or {})]

    assert list_events() == []
    (event,) = list_events(extra_body={"keywise": {"open_webui_sources": True}})
    assert event["type"] == "source"
    assert event["data"]["source"]["name"] == "lighthouse.md"
    assert event["data"]["document"][0].startswith(SENTENCE)
    assert len(event["data"]["metadata"]) == len(event["data"]["document"])


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"messages": []}, "messages", "empty_conversation"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "empty_conversation"),
        ({"messages": ask("  ")}, "messages", "empty_question"),
        ({"messages": [{"role": "assistant", "content": "x"}, *ask("y")]}, "messages", "invalid_role_order"),
        ({"messages": [*ask("y"), {"role": "assistant", "content": "x"}]}, "messages", "invalid_role_order"),
        ({"messages": [{"role": "tool", "tool_call_id": "1", "content": "x"}]}, "messages[0]", "unsupported_role"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "invalid_request"),
        ({"messages": ask([{"type": "image_url", "image_url": {"url": "http://x"}}])}, None, "unsupported_content"),
        ({"messages": ask([{"type": "input_audio", "input_audio": {"data": ""}}])}, None, "unsupported_content"),
        ({"messages": ask([{"type": "file", "file": {"file_data": "eA=="}}])}, None, "invalid_value"),
        ({"messages": ask([{"type": "file", "file": {"filename": "a", "file_data": "!"}}])}, None, "invalid_base64"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 10**6}, "max_tokens", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_request"),
        ({"temperature": 0.5, "top_p": 0}, "top_p", None),
        ({"stop": [""]}, "stop", None),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"extra_body": {"colour": 1}}, "colour", "invalid_request"),
        ({"extra_body": {"keywise": {"library": True}}}, "keywise", "no_library"),
    ],
)
def test_bad_requests_have_structured_errors(
    client: openai.OpenAI, model: str, options: dict[str, Any], param: str | None, code: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": model, "messages": ask(QUESTION), **options})
    body = caught.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    assert body["code"] == code
    assert param is None or body["param"] == param


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-x", messages=ask(QUESTION))
    assert (caught.value.body["code"], caught.value.body["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("image.png", b"\x89PNG\r\n\x1a\n\0\0", "must not be a binary file"),
        ("scan.pdf", write_pages([]), "text recognition"),
        ("empty.txt", b"", "the file is empty"),
    ],
)
def test_files_that_cannot_be_read_are_refused_with_a_remedy(
    client: openai.OpenAI, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.files.create(file=(name, content), purpose="user_data")
    assert caught.value.body["code"] == "invalid_file"
    assert caught.value.body["param"] == "file"
    assert caught.value.body["message"].startswith("file must ")


@pytest.mark.parametrize(
    ("body", "content_type", "param", "message"),
    [
        (b'{"model": x}', "application/json", None, "The body is not JSON: Expecting value, at character 11."),
        (b'{"model": "x"}', "text/plain", None, "header Content-Type: application/json; got 'text/plain'"),
        (b'{"model": "x"}', None, None, "header Content-Type: application/json; there is no such header"),
        (b'["x"]', "application/json", None, "The body must be a JSON object."),
        (b'{"model": "x", "messages": [], "foo": 1}', "application/json", "foo", "'foo' is not a field of this API"),
        (
            b'{"model": "x", "messages": [], "keywise": {"foo": 1}}',
            "application/json",
            "keywise.foo",
            "'keywise.foo' is not a field of this API, or this server does not support it: leave it out.",
        ),
    ],
)
def test_a_body_of_another_shape_is_explained(
    server: ServerProcess, body: bytes, content_type: str | None, param: str | None, message: str
) -> None:
    headers = {} if content_type is None else {"content_type": content_type}
    status, _, text = send(server, "POST", "/v1/chat/completions", body, **headers)
    error = json.loads(text)["error"]
    assert (status, error["param"], error["code"]) == (400, param, "invalid_request")
    assert message in error["message"]


def test_a_wrong_document_is_reported_by_the_field_that_names_it(client: openai.OpenAI, model: str) -> None:
    extra = {"keywise": {"documents": ["file-0"]}}
    for ask_one in (
        lambda: client.chat.completions.create(model=model, messages=ask(QUESTION), extra_body=extra),
        lambda: client.responses.create(model=model, input=QUESTION, extra_body=extra),
    ):
        with pytest.raises(openai.NotFoundError, match="'file-0'") as caught:
            ask_one()
        assert caught.value.body["param"] == "keywise.documents"
        assert caught.value.body["code"] == "file_not_found"


def test_a_bad_file_inside_a_message_is_reported_by_its_part(client: openai.OpenAI, model: str) -> None:
    content = [{"type": "file", "file": {"filename": "a.txt", "file_data": ""}}, {"type": "text", "text": "Who?"}]
    with pytest.raises(openai.BadRequestError, match="the file is empty") as caught:
        client.chat.completions.create(model=model, messages=ask(content))
    assert caught.value.body["param"] == "messages[0].content[0]"


def test_a_question_beyond_the_context_is_refused(client: openai.OpenAI, model: str) -> None:
    for question in ("why " * 6000, "1" * 19_000):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=model, messages=ask(question))
        assert caught.value.body["code"] == "context_length_exceeded"


def test_an_error_in_a_stream_is_raised_by_the_client(client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model,
        messages=ask(QUESTION),
        stream=True,
        max_tokens=2000,
        extra_body={"keywise": {"sentences": 0}},
        stop=[""],
    )
    with pytest.raises(openai.APIError, match="must not have an empty text") as caught:
        list(stream)
    assert caught.value.body["param"] == "stop"


def test_a_stream_ends_with_done(server: ServerProcess, model: str) -> None:
    body = json.dumps({"model": model, "messages": ask(QUESTION), "stream": True}).encode()
    _, headers, text = send(server, "POST", "/v1/chat/completions", body, content_type="application/json")
    assert headers["content-type"].startswith("text/event-stream")
    lines = [line for line in text.decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-1])


def test_the_model_is_free_again_after_a_client_hangs_up(client: openai.OpenAI, model: str) -> None:
    """A written answer of 2000 tokens takes minutes."""
    stream = client.chat.completions.create(
        model=model,
        messages=ask("Tell me everything about the lamp."),
        temperature=1.5,
        max_tokens=2000,
        stream=True,
    )
    seen = 0
    for chunk in stream:
        seen += bool(chunk.choices and chunk.choices[0].delta.content)
        if seen == 2:
            break
    stream.close()
    started = time.monotonic()
    client.chat.completions.create(model=model, messages=ask(QUESTION))
    assert time.monotonic() - started < 30

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as other:
            with pytest.raises(openai.APITimeoutError):
                await other.chat.completions.create(
                    model=model, messages=ask("And the tower?"), temperature=1.5, max_tokens=2000, timeout=1.0
                )

    asyncio.run(leave())
    started = time.monotonic()
    client.chat.completions.create(model=model, messages=ask(QUESTION))
    assert time.monotonic() - started < 30


def test_responses_cite_files(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(model=model, input=QUESTION)
    assert response.output_text == "the town museum"
    assert response.status == "completed"
    (annotation,) = response.output[0].content[0].annotations
    assert (annotation.type, annotation.filename, annotation.index) == ("file_citation", "lighthouse.md", 15)
    check_citation(response.model_extra["keywise"], response.output_text, [TEXT])


def test_a_stream_of_a_response_adds_up(client: openai.OpenAI, model: str) -> None:
    with client.responses.stream(model=model, input=QUESTION) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "response.output_text.annotation.added" in kinds
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.output_text == "the town museum"
    assert final.output[0].content[0].annotations
    assert final.usage.input_tokens_details.cached_tokens > 600


def test_a_response_continues_the_one_before(client: openai.OpenAI, model: str) -> None:
    file = client.files.create(file=("pets.txt", PETS), purpose="user_data")
    content = [{"type": "input_file", "file_id": file.id}, {"type": "input_text", "text": "What is the dog's name?"}]
    first = client.responses.create(model=model, input=ask(content))
    assert first.output_text == "Rex"
    second = client.responses.create(model=model, input="Where did the cat sit?", previous_response_id=first.id)
    assert "mat" in second.output_text
    assert second.model_extra["keywise"]["documents"] == [{"file_id": file.id, "title": "pets.txt"}]
    unkept = client.responses.create(model=model, input=QUESTION, store=False)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=model, input=QUESTION, previous_response_id=unkept.id)
    assert caught.value.body["code"] == "previous_response_not_found"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": ""}]}, "input[0]"),
        ({"input": ask([{"type": "input_image", "image_url": "http://x"}])}, "input[0].content[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
    ],
)
def test_bad_requests_for_responses_have_structured_errors(
    client: openai.OpenAI, model: str, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": model, "input": QUESTION, **options})
    assert caught.value.body["param"] == param


def test_attention_statistics_have_no_matrix(client: openai.OpenAI, model: str) -> None:
    body = {"model": model, "prompt": "The lamp stands in the tower.", "layers": [0, 3], "heads": [1], "top_k": 2}
    report: Any = client.post("/attention", cast_to=object, body=body)
    tokens = len(report["tokens"])
    assert report["queries"] == [tokens - 1, tokens]
    assert [layer["layer"] for layer in report["layers"]] == [0, 3]
    for layer in report["layers"]:
        (head,) = layer["heads"]
        assert head["head"] == 1
        assert len(head["key_mass"]) == tokens
        assert sum(head["key_mass"]) == pytest.approx(1, abs=1e-3)
        assert len(head["entropy"]) == 1
        assert len(head["top_keys"][0]) == 2
        assert head["top_weights"][0][0] == pytest.approx(max(head["key_mass"]), abs=1e-4)
    with pytest.raises(openai.BadRequestError, match="must have 1 to 2,048 tokens"):
        client.post("/attention", cast_to=object, body={**body, "prompt": "lamp " * 5000})
    with pytest.raises(openai.BadRequestError, match="layers"):
        client.post("/attention", cast_to=object, body={**body, "layers": [999]})
    with pytest.raises(openai.BadRequestError, match="numbers"):
        client.post(
            "/attention",
            cast_to=object,
            body={"model": model, "prompt": "lamp " * 1500, "queries": None, "top_k": 64},
        )
