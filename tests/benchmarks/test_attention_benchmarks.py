"""The benchmarks: nobody is timed before being right, everyone left out is named, and what was measured is kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import keywise as kw
from benchmarks.attention import plan
from benchmarks.backends import KEYWISE, OURS, READ, RIVALS, TORCH, Backend, Baseline, CannotError
from benchmarks.backends.pytorch import sdpa
from benchmarks.cases import GROUPS, Case, sweep
from benchmarks.inputs import definition, make_inputs
from benchmarks.machine import Limits, measure_limits
from benchmarks.plot import draw
from benchmarks.processes import stream
from benchmarks.results import Run, read_run
from benchmarks.table import tables, updated
from benchmarks.timing import SHORTEST_SAMPLE_SECONDS, WARM_CALLS, Effort, Timed, measure, take_turns
from keywise.errors import FormatError, KeywiseError, OptionError
from tests.support import command_line

ROOT = Path(__file__).parents[2]
ONCE = Effort(seconds=0.0, rounds=1, fewest=1)
DECODE = Case("float32", 1, 4, 2, 1, 40, 16, causal=True)
SHAPES = {
    "full": (Case("float32", 1, 2, 2, 20, 20, 16), {"ONNX Runtime GQA", "OpenVINO cache"}),
    "causal": (Case("float32", 2, 4, 2, 20, 20, 16, causal=True), {"ONNX Runtime MHA", "OpenVINO cache"}),
    "decode": (DECODE, {"ONNX Runtime MHA"}),
    "few rows": (Case("float32", 1, 4, 2, 3, 40, 16, causal=True), {"ONNX Runtime MHA"}),
    "window": (Case("float32", 1, 4, 2, 20, 20, 16, causal=True, window=5), {"ONNX Runtime MHA", "OpenVINO cache"}),
    "window after a past": (
        Case("float32", 1, 4, 2, 3, 40, 16, causal=True, window=7),
        {"ONNX Runtime MHA", "OpenVINO cache"},
    ),
    "bfloat16": (Case("bfloat16", 1, 4, 2, 1, 40, 32, causal=True), {"ONNX Runtime MHA", "ONNX Runtime GQA"}),
}

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Any:
    yield
    kw.set_num_threads(None)


def timed(case: Case, group: str = "decode") -> Timed:
    return Timed(case, group, threads=1, target=str(kw.explain().target))


def invented(case: Case, group: str = "lengths", **milliseconds: float) -> Timed:
    """Findings with given medians, to see what tables and pictures make of them."""
    samples = {name.replace("_", " "): [x / 1e3, x / 1e3, x / 1e3] for name, x in milliseconds.items()}
    return replace(timed(case, group), samples=samples)


LIMITS = Limits(str(kw.explain().target), 1, {"float32": 1e11, "float16": 1e11, "bfloat16": 2e11}, 2e10)


def attention_run(*timings: Timed, path: Path | None = None) -> Run:
    return Run(
        "attention", "keywise bench attention", path, limits=[LIMITS.plain()], results=[t.plain() for t in timings]
    )


def bench(*arguments: object) -> Any:
    return command_line.run("bench", *arguments)


def bench_process(*arguments: object) -> subprocess.Popen[str]:
    code = "import sys; sys.argv[0] = 'keywise'; from keywise.cli import main; main()"
    command = [sys.executable, "-c", code, "bench", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=command_line.heed_control_c,  # noqa: PLW1509
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_everyone_is_checked_and_whoever_is_not_timed_has_a_reason(shape: str) -> None:
    case, unable = SHAPES[shape]
    found = timed(case)
    measure(found, RIVALS, ONCE)
    absent = {name for name, rival in RIVALS.items() if rival.missing()}
    assert set(found.samples) == set(RIVALS) - unable - absent
    assert set(found.excluded) == unable | absent
    assert all(reason for reason in found.excluded.values())
    assert not any("wrong" in reason for reason in found.excluded.values())
    assert all(len(samples) == 1 and samples[0] > 0 for samples in found.samples.values())
    assert Timed.from_plain(json.loads(json.dumps(found.plain()))) == found


def test_a_wrong_rival_is_caught_and_not_timed() -> None:
    calls = []

    def off_by_one_key(inputs: Any, _threads: int) -> Backend:
        query, key, value = inputs.query, inputs.key[:, :, :-1], inputs.value[:, :, :-1]
        return Backend(lambda: calls.append(1) or kw.attend(query, key, value))

    found = timed(DECODE)
    measure(found, {TORCH: RIVALS[TORCH], "off by one": Baseline((), off_by_one_key)}, ONCE)
    assert list(found.samples) == [TORCH]
    assert "wrong" in found.excluded["off by one"]
    assert len(calls) == 1


def test_not_a_number_is_wrong() -> None:
    found = timed(DECODE)
    measure(found, {"nan": Baseline((), lambda inputs, _: Backend(lambda: inputs.query * torch.nan))}, ONCE)
    assert not found.samples
    assert "wrong" in found.excluded["nan"]


def test_the_absent_and_the_unable_are_named() -> None:
    def unable(_inputs: Any, _threads: int) -> Backend:
        raise CannotError("it has two heads only")

    found = timed(DECODE)
    measure(found, {"absent": Baseline(("no_such_module",), sdpa), "unable": Baseline((), unable)}, ONCE)
    assert found.excluded == {"absent": "not installed: no_such_module", "unable": "it has two heads only"}


def test_rounds_are_interleaved_and_inputs_put_back_before_every_sample() -> None:
    order = []

    def way(name: str) -> Baseline:
        def prepare(inputs: Any, _threads: int) -> Backend:
            plain = sdpa(inputs, 1)
            return Backend(lambda: order.append(name) or plain.call(), reset=lambda: order.append(f"reset {name}"))

        return Baseline((), prepare)

    found = timed(DECODE)
    measure(found, {"a": way("a"), "b": way("b")}, Effort(seconds=0.0, rounds=3, fewest=3))
    rounds = [name for name in order if name.startswith("reset")][2:]
    assert rounds == ["reset a", "reset b"] * 3
    assert [len(samples) for samples in found.samples.values()] == [3, 3]


def test_the_definition_is_that_of_attention() -> None:
    inputs = make_inputs(Case("float32", 2, 6, 2, 70, 90, 8, causal=True))
    with kw.using("reference"):
        whole = kw.attend(*(x.double() for x in (inputs.query, inputs.key, inputs.value)), mask=inputs.mask)
    np.testing.assert_allclose(definition(inputs), whole[:, :, -64:].numpy(), rtol=1e-12, atol=1e-14)


def test_operations_and_bytes() -> None:
    case = Case("bfloat16", 2, 6, 3, 2, 5, 16, causal=True)
    assert case.operations == 2 * 2 * (2 * 6 * (4 + 5) * 16)  # two products of rows that see 4 and 5 keys
    assert case.key_value_bytes == 2 * (2 * 3 * 5 * 16) * 2
    assert replace(case, causal=False).operations == 2 * 2 * (2 * 6 * (5 + 5) * 16)
    for queries, window, seen in (
        (2, 3, 3 + 3),
        (2, 4, 4 + 4),
        (2, 5, 4 + 5),
        (2, 9, 4 + 5),
        (5, 3, 1 + 2 + 3 + 3 + 3),
    ):
        assert replace(case, queries=queries, window=window).operations == 2 * 2 * (2 * 6 * seen * 16)


def test_the_groups_hold_what_they_promise() -> None:
    names = [name for name in GROUPS if name != "sweep"]
    assert all(GROUPS[name].cases for name in names)
    assert len(set(GROUPS["sweep"].cases)) >= 200
    assert sweep(20) == sweep(20)
    assert all(set(group.rivals) <= set(RIVALS) for group in GROUPS.values())


def test_limits_use_the_chosen_target() -> None:
    best = measure_limits(1)
    assert best.target == kw.explain().target
    with kw.using("portable"):
        plain = measure_limits(1)
    assert plain.target == "portable"
    # The portable target multiplies no pairs; the two are the same loop.
    assert plain.operations_per_second["bfloat16"] < 1.5 * plain.operations_per_second["float32"]
    assert 1e8 < plain.operations_per_second["float32"] < 1.5 * best.operations_per_second["float32"]
    assert best.read_bytes_per_second > 1e8


def test_the_least_time_is_that_of_the_tighter_limit() -> None:
    prefill = Case("float32", 1, 8, 8, 2048, 2048, 64)
    assert LIMITS.least_seconds(prefill) == prefill.operations / 1e11
    assert LIMITS.least_seconds(DECODE) == DECODE.key_value_bytes / 2e10


def test_attention_end_to_end(tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    with bench_process(
        "attention",
        "avx2" if "avx2" in kw.targets() else "short",
        "--only",
        "N=2048 D=64" if "avx2" in kw.targets() else "Q=16",
        "--threads",
        1,
        "--seconds",
        0,
        "--rival",
        "torch",
        "--json",
        kept,
    ) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    run = read_run(kept)
    assert (run.kind, run.interrupted) == ("attention", False)
    assert str(tmp_path) not in kept.read_text(encoding="utf-8")
    assert {"cpu", "cpus", "targets", "versions", "system"} <= set(run.machine)
    assert len(run.limits) == 1
    for result in run.results:
        found = Timed.from_plain(result)
        assert {*OURS, TORCH} == set(found.samples)
        assert min(map(len, found.samples.values())) >= 5
        assert max(found.errors.values()) < 2e-5
        assert found.case.name in stdout
        assert found.case.name in stderr
        assert found.target == run.limits[0]["target"]
    assert bench("table", kept).stdout == stdout


def test_control_c_keeps_what_was_measured(tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    with bench_process("attention", "sweep", "--threads", 1, "--seconds", 0, "--json", kept) as process:
        deadline = time.monotonic() + 60
        while not (kept.exists() and read_run(kept).results):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    run = read_run(kept)
    assert run.interrupted
    assert 1 <= len(run.results) < len(GROUPS["sweep"].cases)
    assert "Interrupted" in stdout
    assert "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def failing() -> Any:
    yield "one"
    raise FormatError("no second")


def dying() -> Any:
    yield "one"
    sys.exit(3)


def test_processes_hand_on_findings_and_errors() -> None:
    findings = stream(failing, threads=1)
    assert next(findings) == "one"
    with pytest.raises(FormatError, match="no second"):
        next(findings)
    with pytest.raises(KeywiseError, match="exit code 3"):
        list(stream(dying, threads=1))


def test_the_table_says_who_is_faster_and_who_was_left_out() -> None:
    first, second = (Case("float32", 1, 8, 8, n, n, 64) for n in (2048, 8192))
    one = invented(first, "prefill-fp32-full", keywise=100, keywise_read=110, torch=150, OpenVINO=90)
    two = invented(second, "prefill-fp32-full", keywise=1000, torch=2000)
    two.excluded = {"OpenVINO": "wrong: off by 1"}
    text = tables([attention_run(one, two)])
    row = next(line for line in text.splitlines() if line.startswith(f"| {first.name}"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # 8.6 GFLOP at 100 GFLOP/s take 86 ms at least.
    assert cells[1:] == ["100", "85.9", "0.0839", "86%", "0%", "1.10", "1.50", "**0.90**"]
    assert "OpenVINO in 1 of 2 cases (wrong: off by 1)" in text


def test_every_run_is_held_to_its_own_limits() -> None:
    case = Case("float32", 1, 8, 8, 2048, 2048, 64)
    slow, fast = (attention_run(invented(case, "prefill-fp32-full", keywise=100, torch=150)) for _ in range(2))
    fast.limits = [replace(LIMITS, operations_per_second={"float32": 2e11, "bfloat16": 4e11}).plain()]
    text = tables([slow, fast])
    rows = [line.split("|")[5].strip() for line in text.splitlines() if line.startswith(f"| {case.name}")]
    assert rows == ["86%", "43%"]
    assert "100 GFLOP/s in float32" in text
    assert "200 GFLOP/s in float32" in text


def test_the_table_of_a_sweep_lists_what_is_slower() -> None:
    slow, fast = sweep(2)
    timings = [invented(slow, "sweep", keywise=2, torch=1), invented(fast, "sweep", keywise=1, torch=3)]
    text = tables([attention_run(*timings)])
    assert "torch was faster in 1" in text
    assert f"| {slow.name} | 2.00 | 0.50 |" in text
    assert fast.name not in text


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the picture; it comes with keywise[bench]")
    timings = [invented(Case("float32", 1, 8, 8, n, n, 64), keywise=n / 100, torch=n / 50) for n in (128, 256, 512)]
    timings += [invented(Case("float32", 1, 8, 8, 1, n, 64), keywise=n / 1e4, JAX=n / 1e3) for n in (512, 1024, 2048)]
    kept, picture = tmp_path / "run.json", tmp_path / "run.svg"
    attention_run(*timings, path=kept).save()
    done = bench("plot", kept, "--out", picture)
    assert done.exit_code == 0, done.stderr
    drawn = picture.read_text(encoding="utf-8")
    for text in ("full prefill", "decoding", "GFLOP/s", "measured limit", "keywise", "torch", "JAX"):
        assert text in drawn
    assert "OpenVINO" not in drawn
    bench("plot", kept, "--out", picture)
    assert picture.read_text(encoding="utf-8") == drawn
    (tmp_path / "run.png").write_bytes(b"")
    assert bench("plot", kept, "--out", tmp_path / "run.png").exit_code == 0
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_samples_of_short_calls_are_long_though_the_first_call_is_slow() -> None:
    calls: list[None] = []

    def slow_at_first() -> None:
        time.sleep(0.0001 if calls else 0.05)
        calls.append(None)

    count, samples = take_turns({"short": Backend(slow_at_first)}, Effort(seconds=0.0, rounds=1, fewest=1))
    assert count > 1
    assert count * samples["short"][0] >= 0.5 * SHORTEST_SAMPLE_SECONDS


def test_nobody_is_timed_while_threads_of_the_one_before_are_at_work() -> None:
    started: list[float] = []

    def works_on() -> None:
        end = time.perf_counter() + 0.1
        threading.Thread(target=lambda: [None for _ in iter(lambda: time.perf_counter() < end, False)]).start()
        started.append(end)
        time.sleep(0.01)

    def waits() -> None:
        late.append(time.perf_counter() >= started[-1])
        time.sleep(0.01)

    late: list[bool] = []
    take_turns({"works on": Backend(works_on), "waits": Backend(waits)}, Effort(seconds=0.0, rounds=2, fewest=2))
    assert all(late[1 + WARM_CALLS :])  # the first calls only tell how long calls take


PAGES = ["evidence.md", "library.md", "performance.md", "performance-xeon.md", "performance-zen4.md", "scale.md"]


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_made_from_committed_runs(name: str) -> None:
    page = ROOT / "docs" / name
    text = page.read_text(encoding="utf-8")
    assert updated(text, page.parent) == text, f"run `keywise bench table --update docs/{name}`"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "prefil"], "GROUP 'prefil' is not known; there are prefill-fp32-full"),
        (["attention", "--rival", "Torch"], "--rival 'Torch' is not known"),
        (["attention", "--only", "Q=0"], "--only 'Q=0' is in the name of no case"),
        (["attention", "--threads", "1000"], "more than the"),
        (["attention", "short", "--json", "no/such/folder/run.json"], "cannot be written"),
        (["model", "--task", "train"], "--task 'train' is not known; there are prefill, decode, readings"),
        (["model", "--most-tokens", "5"], "leaves no task"),
        (["cache", "--task", "ask"], "--task 'ask' is not known; there are question, step, int8, perplexity"),
        (["cache", "--text", "gone.txt"], "--text 'gone.txt' cannot be read"),
        (["cache", "--task", "step", "--text", "gone.txt"], "--text 'gone.txt' is for perplexity"),
        (["evidence", "--data", "gone.json"], "'gone.json' cannot be read"),
        (["library", "--task", "size"], "--task 'size' is not known; there are speed, cluster, evidence"),
        (["library", "--task", "evidence"], "--task evidence needs --data"),
        (["table"], "give FILEs"),
        (["table", "gone.json"], "'gone.json' cannot be read"),
        (["table", "--update", "gone.md"], "'gone.md' cannot be read"),
        (["plot", "gone.json", "--out", "a.svg"], "'gone.json' cannot be read"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(arguments: list[str], message: str) -> None:
    done = bench(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    attention_run(invented(DECODE, keywise=1), path=kept).save()
    good = kept.read_text(encoding="utf-8")
    for bad, message in [
        (good[:-3], "is no JSON file"),
        ("[]", "was not written by"),
        (good.replace("bench 1", "bench 0"), "was not written by"),
        (good.replace('"machine"', '"engine"'), "is damaged"),
        (good.replace('"keys"', '"kiys"'), "is damaged"),
        (good.replace('"read_bytes', '"write_bytes'), "is damaged|are damaged"),
        (good.replace('"kind": "attention"', '"kind": "intention"'), "no table for a run of kind 'intention'"),
    ]:
        assert bad != good
        kept.write_text(bad, encoding="utf-8")
        with pytest.raises(FormatError, match=message):
            tables([read_run(kept)])
    with pytest.raises(OptionError, match="3 lengths or more"):
        draw(tmp_path / "a.svg", [], [])


def test_rivals_named_in_tables_are_those_that_take_part() -> None:
    jobs = plan(["decode"], threads=[1], rivals=["JAX"], only="N=8192")
    assert {job.rivals for job in jobs} == {(KEYWISE, READ, "JAX")}
