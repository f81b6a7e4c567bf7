"""Damaged models on the command line: one line on stderr, and no traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keywise.documents.heads import Heads
from tests.support.chat_models import edit_json, write_chat_model
from tests.support.command_line import PROCESS, run

TEXT = "The lamp was lit in 1862. Its keeper was Ann Low."


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEYWISE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "note.txt").write_text(TEXT)
    return Path(shutil.copytree(original, tmp_path / "model"))


def ask(folder: Path) -> Any:
    note = folder.parent / "note.txt"
    return run("ask", "--no-cache", "When?", note, "--model", folder, "--dtype", "float32", "--max-tokens", 2)


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def change(name: str, **changes: Any) -> Callable[[Path], Any]:
    return lambda folder: edit_json(folder / name, **changes)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut weights": cut("model.safetensors"),
    "cut config": cut("config.json"),
    "cut tokenizer": cut("tokenizer.json"),
    "layers": change("config.json", num_hidden_layers=10**9),
    "a list of heads": change("config.json", num_attention_heads=[2]),
    "a rope of text": change("config.json", rope_parameters={"rope_type": "default", "rope_theta": "much"}),
    "an unknown rope": change("config.json", rope_parameters={"rope_type": "spiral", "rope_theta": 1.0}),
    "an unknown activation": change("config.json", hidden_act="nothing"),
    "a context of text": change("config.json", max_position_embeddings="2048"),
    "a tiny context": change("config.json", max_position_embeddings=3),
    "an end of text": change("generation_config.json", eos_token_id=["end"]),
    "deep generation settings": write("generation_config.json", "[" * 5000),
    "a class of tokenizers": change("tokenizer_config.json", tokenizer_class="NoSuchTokenizer", backend=7),
    "a template that is not one": write("chat_template.jinja", "{% bad"),
    "a template that raises": write("chat_template.jinja", "{{ raise_exception('no') }}"),
    "an empty template": write("chat_template.jinja", ""),
    "an encoder": change("config.json", model_type="bert"),
    "an unknown type": change("config.json", model_type=["llama"]),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_models_end_in_one_line(folder: Path, kind: str) -> None:
    DAMAGES[kind](folder)
    result = ask(folder)
    if result.exit_code != 0:  # settings that do not matter may be read
        assert result.exit_code in {1, 2}, result.output
        lines = [line for line in result.stderr.splitlines() if line.startswith("keywise: ")]
        assert len(lines) == 1
        assert isinstance(result.exception, SystemExit)


def test_a_whole_model_answers(folder: Path) -> None:
    assert ask(folder).exit_code == 0


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_damaged_heads_end_in_one_line(folder: Path, content: bytes) -> None:
    questions = [
        {"id": str(n), "question": "Who?", "answers": [{"text": "Ann Low", "answer_start": 41}]} for n in range(10)
    ]
    data = folder.parent / "questions.json"
    data.write_text(json.dumps({"data": [{"title": "a", "paragraphs": [{"context": TEXT, "qas": questions}]}]}))
    result = run("tune", "--data", data, "--model", folder, "--dtype", "float32", "--json")
    assert result.exit_code == 0, result.output
    path = Path(json.loads(result.stdout)["file"])
    assert Heads.load(path).tuned_on == "questions.json, 10 questions"
    assert ask(folder).exit_code == 0
    path.write_bytes(content)
    assert ask(folder).exit_code == 2


@pytest.mark.parametrize("arguments", [("info",), ("check",)])
def test_other_commands_end_in_one_line_too(
    folder: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut("model.safetensors")(folder)
    (folder / "config.json").write_text("[")
    monkeypatch.setenv("KEYWISE_MODEL", str(folder))
    result = run(*arguments)
    assert result.exit_code == (0 if arguments == ("info",) else 2), result.output


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "a" * 5000, "/dev/null", "\udcff"])
def test_names_of_no_model_end_in_one_line(folder: Path, name: str) -> None:
    note = folder.parent / "note.txt"
    assert run("ask", "--no-cache", "When?", note, "--model", name).exit_code == 2


def test_errors_that_nobody_foresaw_end_in_one_line() -> None:
    code = (
        "import sys, keywise\n"
        "def fail():\n    raise LookupError('nobody\\n foresaw this')\n"
        "keywise.explain = fail\n"
        "from keywise.cli import main\n"
        "sys.argv = ['keywise', 'info']\n"
        "main()"
    )
    done = subprocess.run([PROCESS[0], "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("keywise: internal error: LookupError: nobody foresaw this")
    assert len(done.stderr.splitlines()) == 1
