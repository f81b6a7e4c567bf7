"""Benchmarks of attention: results are checked first, exclusions have reasons, and finished results are kept."""

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
from typer.testing import CliRunner

import keywise as kw
from benchmarks.attention import plan_jobs
from benchmarks.backends import (
    BACKENDS,
    KEYWISE,
    KEYWISE_BACKENDS,
    KEYWISE_STATISTICS,
    TORCH,
    Backend,
    Baseline,
    UnsupportedCaseError,
)
from benchmarks.backends.pytorch import prepare_sdpa
from benchmarks.cases import GROUPS, Case, sample_cases
from benchmarks.commands import make_application
from benchmarks.inputs import compute_reference, make_inputs
from benchmarks.machine import Limits, measure_limits
from benchmarks.plot import plot_throughput
from benchmarks.processes import run_in_process
from benchmarks.results import Run, read_run
from benchmarks.tables import ROOT, format_tables, generate_pages, update_tables
from benchmarks.timing import MIN_SAMPLE_SECONDS, WARM_CALLS, TimeBudget, Timing, measure_case, time_interleaved
from keywise.errors import FormatError, KeywiseError, MissingFileError, OptionError
from tests.support import command_line

pytestmark = pytest.mark.serial

ONCE = TimeBudget(seconds=0.0, max_rounds=1, min_rounds=1)
DECODE = Case("float32", 1, 4, 2, 1, 40, 16, causal=True)
SHAPES = {
    "full": (Case("float32", 1, 2, 2, 20, 20, 16), {"ONNX Runtime GQA", "OpenVINO cache"}),
    "causal": (Case("float32", 2, 4, 2, 20, 20, 16, causal=True), {"ONNX Runtime MHA", "OpenVINO cache"}),
    "decode": (DECODE, {"ONNX Runtime MHA"}),
    "few queries": (Case("float32", 1, 4, 2, 3, 40, 16, causal=True), {"ONNX Runtime MHA"}),
    "window": (Case("float32", 1, 4, 2, 20, 20, 16, causal=True, window=5), {"ONNX Runtime MHA", "OpenVINO cache"}),
    "window after a past": (
        Case("float32", 1, 4, 2, 3, 40, 16, causal=True, window=7),
        {"ONNX Runtime MHA", "OpenVINO cache"},
    ),
    "bfloat16": (Case("bfloat16", 1, 4, 2, 1, 40, 32, causal=True), {"ONNX Runtime MHA", "ONNX Runtime GQA"}),
}
"""Cases, and the baselines that do not support them."""

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Any:
    yield
    kw.set_num_threads(None)


def make_timing(case: Case, group: str = "decode") -> Timing:
    return Timing(case, group, threads=1, target=str(kw.explain().target))


def make_timed(case: Case, group: str = "lengths", **milliseconds: float) -> Timing:
    """Return a timing with given medians."""
    samples = {name.replace("_", " "): [value / 1e3] * 3 for name, value in milliseconds.items()}
    return replace(make_timing(case, group), seconds_per_call=samples)


LIMITS = Limits(str(kw.explain().target), 1, {"float32": 1e11, "float16": 1e11, "bfloat16": 2e11}, 2e10)


def make_run(*timings: Timing, path: Path | None = None) -> Run:
    results = [timing.to_dict() for timing in timings]
    return Run("attention", "python -m benchmarks attention", path, limits=[LIMITS.to_dict()], results=results)


def run_benchmarks(*arguments: object) -> Any:
    return CliRunner().invoke(make_application(), [str(argument) for argument in arguments])


def start_benchmarks(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=command_line.restore_control_c,  # noqa: PLW1509
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_backends_are_checked_and_exclusions_have_a_reason(shape: str) -> None:
    case, unsupported = SHAPES[shape]
    timing = make_timing(case)
    measure_case(timing, BACKENDS, ONCE)
    missing = {name for name, baseline in BACKENDS.items() if baseline.find_missing_modules()}
    assert set(timing.seconds_per_call) == set(BACKENDS) - unsupported - missing
    assert set(timing.excluded) == unsupported | missing
    assert all(reason for reason in timing.excluded.values())
    assert not any("wrong" in reason for reason in timing.excluded.values())
    assert all(len(samples) == 1 and samples[0] > 0 for samples in timing.seconds_per_call.values())
    assert Timing.from_dict(json.loads(json.dumps(timing.to_dict()))) == timing


def test_wrong_baseline_is_excluded_and_not_timed() -> None:
    calls = []

    def prepare_off_by_one_key(inputs: Any, _threads: int) -> Backend:
        query, key, value = inputs.query, inputs.key[:, :, :-1], inputs.value[:, :, :-1]
        return Backend(lambda: calls.append(1) or kw.attend(query, key, value))

    timing = make_timing(DECODE)
    measure_case(timing, {TORCH: BACKENDS[TORCH], "off by one": Baseline((), prepare_off_by_one_key)}, ONCE)
    assert list(timing.seconds_per_call) == [TORCH]
    assert "wrong" in timing.excluded["off by one"]
    assert len(calls) == 1


def test_nan_output_is_wrong() -> None:
    timing = make_timing(DECODE)
    measure_case(timing, {"nan": Baseline((), lambda inputs, _: Backend(lambda: inputs.query * torch.nan))}, ONCE)
    assert not timing.seconds_per_call
    assert "wrong" in timing.excluded["nan"]


def test_missing_and_unsupporting_baselines_are_excluded_with_reasons() -> None:
    def refuse(_inputs: Any, _threads: int) -> Backend:
        raise UnsupportedCaseError("it has two heads only")

    timing = make_timing(DECODE)
    baselines = {"missing": Baseline(("no_such_module",), prepare_sdpa), "refusing": Baseline((), refuse)}
    measure_case(timing, baselines, ONCE)
    assert timing.excluded == {"missing": "not installed: no_such_module", "refusing": "it has two heads only"}


def test_rounds_are_interleaved_and_inputs_reset_before_every_sample() -> None:
    order = []

    def make_baseline(name: str) -> Baseline:
        def prepare(inputs: Any, _threads: int) -> Backend:
            sdpa = prepare_sdpa(inputs, 1)
            return Backend(lambda: order.append(name) or sdpa.call(), reset=lambda: order.append(f"reset {name}"))

        return Baseline((), prepare)

    timing = make_timing(DECODE)
    budget = TimeBudget(seconds=0.0, max_rounds=3, min_rounds=3)
    measure_case(timing, {"a": make_baseline("a"), "b": make_baseline("b")}, budget)
    resets = [name for name in order if name.startswith("reset")][2:]
    assert resets == ["reset a", "reset b"] * 3
    assert [len(samples) for samples in timing.seconds_per_call.values()] == [3, 3]


def test_reference_outputs_are_those_of_attention_in_float64() -> None:
    inputs = make_inputs(Case("float32", 2, 6, 2, 70, 90, 8, causal=True))
    with kw.using("reference"):
        expected = kw.attend(*(x.double() for x in (inputs.query, inputs.key, inputs.value)), mask=inputs.mask)
    np.testing.assert_allclose(compute_reference(inputs), expected[:, :, -64:].numpy(), rtol=1e-12, atol=1e-14)


def test_operations_and_bytes_count_visible_keys() -> None:
    case = Case("bfloat16", 2, 6, 3, 2, 5, 16, causal=True)
    assert case.operations == 2 * 2 * (2 * 6 * (4 + 5) * 16)  # two products of queries that see 4 and 5 keys
    assert case.key_value_bytes == 2 * (2 * 3 * 5 * 16) * 2
    assert replace(case, causal=False).operations == 2 * 2 * (2 * 6 * (5 + 5) * 16)
    for queries, window, visible in (
        (2, 3, 3 + 3),
        (2, 4, 4 + 4),
        (2, 5, 4 + 5),
        (2, 9, 4 + 5),
        (5, 3, 1 + 2 + 3 + 3 + 3),
    ):
        assert replace(case, queries=queries, window=window).operations == 2 * 2 * (2 * 6 * visible * 16)


def test_groups_have_cases_and_known_backends() -> None:
    assert all(group.cases for group in GROUPS.values())
    assert len(set(GROUPS["sweep"].cases)) >= 200
    assert sample_cases(20) == sample_cases(20)
    assert all(set(group.backends) <= set(BACKENDS) for group in GROUPS.values())


@pytest.mark.serial
def test_limits_are_those_of_the_current_target() -> None:
    best = measure_limits(1)
    assert best.target == kw.explain().target
    with kw.using("portable"):
        portable = measure_limits(1)
    assert portable.target == "portable"
    # The portable target has no products of pairs: both rates come from the same loop.
    assert portable.operations_per_second["bfloat16"] < 1.5 * portable.operations_per_second["float32"]
    assert 1e8 < portable.operations_per_second["float32"] < 1.5 * best.operations_per_second["float32"]
    assert best.read_bytes_per_second > 1e8


def test_least_seconds_are_those_of_the_tighter_limit() -> None:
    prefill = Case("float32", 1, 8, 8, 2048, 2048, 64)
    assert LIMITS.compute_min_seconds(prefill) == prefill.operations / 1e11
    assert LIMITS.compute_min_seconds(DECODE) == DECODE.key_value_bytes / 2e10


def test_attention_command_writes_results_and_their_table(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with start_benchmarks(
        "attention",
        "avx2" if "avx2" in kw.targets() else "short",
        "--only",
        "N=2048 D=64" if "avx2" in kw.targets() else "Q=16",
        "--threads",
        1,
        "--seconds",
        0,
        "--baseline",
        "torch",
        "--json",
        path,
    ) as process:
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    run = read_run(path)
    assert (run.kind, run.interrupted) == ("attention", False)
    assert run.command.startswith("python -m benchmarks attention ")
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert {"cpu", "cpus", "targets", "versions", "system"} <= set(run.machine)
    assert len(run.limits) == 1
    for result in run.results:
        timing = Timing.from_dict(result)
        assert {*KEYWISE_BACKENDS, TORCH} == set(timing.seconds_per_call)
        assert min(map(len, timing.seconds_per_call.values())) >= 5
        assert max(timing.relative_errors.values()) < 2e-5
        assert timing.case.name in stdout
        assert timing.case.name in stderr
        assert timing.target == run.limits[0]["target"]
    assert run_benchmarks("table", path).stdout == stdout


def test_control_c_keeps_finished_results(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with start_benchmarks("attention", "sweep", "--threads", 1, "--seconds", 0, "--json", path) as process:
        deadline = time.monotonic() + 60
        while not (path.exists() and read_run(path).results):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    run = read_run(path)
    assert run.interrupted
    assert 1 <= len(run.results) < len(GROUPS["sweep"].cases)
    assert "interrupted before its end" in stdout
    assert stderr.endswith("benchmarks: interrupted\n")
    assert "Traceback" not in stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def yield_then_fail() -> Any:
    yield "result"
    raise FormatError("data", "must hold a second result")


def yield_then_exit() -> Any:
    yield "result"
    sys.exit(3)


def test_processes_pass_on_results_and_errors() -> None:
    results = run_in_process(yield_then_fail, threads=1)
    assert next(results) == "result"
    with pytest.raises(FormatError, match="second result"):
        next(results)
    with pytest.raises(KeywiseError, match="exit code 3"):
        list(run_in_process(yield_then_exit, threads=1))


def test_table_has_ratios_and_exclusions() -> None:
    first, second = (Case("float32", 1, 8, 8, n, n, 64) for n in (2048, 8192))
    timings = [
        make_timed(first, "prefill-fp32-full", keywise=100, keywise_with_statistics=110, torch=150, OpenVINO=90),
        make_timed(second, "prefill-fp32-full", keywise=1000, torch=2000),
    ]
    timings[1].excluded = {"OpenVINO": "wrong: off by 1"}
    text = format_tables([make_run(*timings)])
    row = next(line for line in text.splitlines() if line.startswith(f"| {first.name}"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # 8.6 GFLOP at 100 GFLOP/s need 86 ms.
    assert cells[1:] == ["100", "85.9", "0.0839", "86%", "0%", "1.10", "1.50", "**0.90**"]
    assert "OpenVINO in 1 of 2 cases (wrong: off by 1)" in text


def test_every_run_is_compared_with_its_own_limits() -> None:
    case = Case("float32", 1, 8, 8, 2048, 2048, 64)
    slow, fast = (make_run(make_timed(case, "prefill-fp32-full", keywise=100, torch=150)) for _ in range(2))
    fast.limits = [replace(LIMITS, operations_per_second={"float32": 2e11, "bfloat16": 4e11}).to_dict()]
    text = format_tables([slow, fast])
    shares = [line.split("|")[5].strip() for line in text.splitlines() if line.startswith(f"| {case.name}")]
    assert shares == ["86%", "43%"]
    assert "100 GFLOP/s in float32" in text
    assert "200 GFLOP/s in float32" in text


def test_table_of_a_sweep_lists_slower_cases_only() -> None:
    slow, fast = sample_cases(2)
    timings = [make_timed(slow, "sweep", keywise=2, torch=1), make_timed(fast, "sweep", keywise=1, torch=3)]
    text = format_tables([make_run(*timings)])
    assert "torch was faster in 1" in text
    assert f"| {slow.name} | 2.00 | 0.50 |" in text
    assert fast.name not in text


def test_plot_is_the_same_for_the_same_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the picture; it comes with keywise[bench]")
    timings = [make_timed(Case("float32", 1, 8, 8, n, n, 64), keywise=n / 100, torch=n / 50) for n in (128, 256, 512)]
    timings += [make_timed(Case("float32", 1, 8, 8, 1, n, 64), keywise=n / 1e4, JAX=n / 1e3) for n in (512, 1024, 2048)]
    path, picture = tmp_path / "run.json", tmp_path / "run.svg"
    make_run(*timings, path=path).save()
    outcome = run_benchmarks("plot", path, "--out", picture)
    assert outcome.exit_code == 0, outcome.stderr
    drawn = picture.read_text(encoding="utf-8")
    for text in ("full prefill", "decoding", "GFLOP/s", "measured limit", "keywise", "torch", "JAX"):
        assert text in drawn
    assert "OpenVINO" not in drawn
    run_benchmarks("plot", path, "--out", picture)
    assert picture.read_text(encoding="utf-8") == drawn
    (tmp_path / "run.png").write_bytes(b"")
    assert run_benchmarks("plot", path, "--out", tmp_path / "run.png").exit_code == 0
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_samples_of_short_calls_are_long_after_a_slow_first_call() -> None:
    calls: list[None] = []

    def call_slowly_at_first() -> None:
        time.sleep(0.0001 if calls else 0.05)
        calls.append(None)

    count, samples = time_interleaved({"short": Backend(call_slowly_at_first)}, ONCE)
    assert count > 1
    assert count * samples["short"][0] >= 0.5 * MIN_SAMPLE_SECONDS


def test_timing_waits_for_threads_of_the_previous_backend() -> None:
    ends: list[float] = []
    waited: list[bool] = []

    def leave_thread_busy() -> None:
        end = time.perf_counter() + 0.1
        threading.Thread(target=lambda: [None for _ in iter(lambda: time.perf_counter() < end, False)]).start()
        ends.append(end)
        time.sleep(0.01)

    def check_thread_ended() -> None:
        waited.append(time.perf_counter() >= ends[-1])
        time.sleep(0.01)

    backends = {"leaves threads": Backend(leave_thread_busy), "waits": Backend(check_thread_ended)}
    time_interleaved(backends, TimeBudget(seconds=0.0, max_rounds=2, min_rounds=2))
    assert all(waited[1 + WARM_CALLS :])  # the calls before only estimate their duration


PAGES = {str(path.relative_to(ROOT)): content for path, content in generate_pages()}


@pytest.mark.parametrize("name", PAGES)
def test_generated_page_is_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == PAGES[name], "run `python -m benchmarks table`"


def test_page_without_markers_is_refused() -> None:
    with pytest.raises(FormatError, match="page must have the lines"):
        update_tables("# A page\n", ROOT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "prefil"], "GROUP must be one of prefill-fp32-full"),
        (["attention", "--baseline", "Torch"], "--baseline must be one of keywise"),
        (["attention", "--only", "Q=0"], "--only must be part of the name of a case"),
        (["attention", "--threads", "1000"], "--threads must be at most"),
        (["attention", "short", "--json", "no/such/folder/run.json"], "cannot be written"),
        (["model", "--task", "train"], "--task must be one of prefill, decode, statistics, got 'train'"),
        (["model", "--max-tokens", "5"], "--max-tokens must be the length"),
        (["cache", "--task", "ask"], "--task must be one of question, step, int8, perplexity, got 'ask'"),
        (["cache", "--text", "gone.txt"], "--text must be an existing file, got 'gone.txt'"),
        (["cache", "--task", "step", "--text", "gone.txt"], "--text must not be given without the task perplexity"),
        (["evidence", "--data", "gone.json"], "gone.json"),
        (["evidence", "--data", "gone.json", "--naive"], "--naive must not be given without --answers"),
        (["library", "--task", "size"], "--task must be one of speed, cluster, evidence, got 'size'"),
        (["library", "--task", "evidence"], "--data must be given for the task evidence"),
        (
            ["compare", "--before", "gone", "--after", "gone"],
            "--before must be a folder that holds a `keywise` package",
        ),
        (["compare", "--before", "src", "--after", "src", "smal"], "GROUP must be one of prefill-fp32-full"),
        (["table", "gone.json"], "path must be an existing file, got 'gone.json'"),
        (["table", "a.json", "--update", "a.md"], "--update must not be given together with FILE"),
        (["table", "--update", "gone.md"], "path must be an existing file, got 'gone.md'"),
        (["plot", "gone.json", "--out", "a.svg"], "path must be an existing file, got 'gone.json'"),
    ],
)
def test_errors_are_one_line_before_anything_is_measured(arguments: list[str], message: str) -> None:
    outcome = run_benchmarks(*arguments)
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert message in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1


def test_damaged_and_earlier_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    make_run(make_timed(DECODE, keywise=1), path=path).save()
    good = path.read_text(encoding="utf-8")
    for bad, message in [
        (good[:-3], "must be a JSON file"),
        ("[]", "must be a file written by"),
        (
            good.replace("keywise benchmarks 2", "keywise bench 1"),
            "was made by an earlier build; delete it or create it",
        ),
        (good.replace("keywise benchmarks 2", "keywise benchmarks 9"), "must be a file written by"),
        (good.replace('"machine"', '"engine"'), "is damaged"),
        (good.replace('"keys"', '"kiys"'), "is damaged"),
        (good.replace('"read_bytes', '"write_bytes'), "is damaged"),
        (
            good.replace('"kind": "attention"', '"kind": "intention"'),
            "must be a run of kind attention, .*model, .*, got 'intention'",
        ),
    ]:
        assert bad != good
        path.write_text(bad, encoding="utf-8")
        with pytest.raises(FormatError, match=message):
            format_tables([read_run(path)])
    with pytest.raises(MissingFileError):
        read_run(tmp_path / "gone.json")
    with pytest.raises(OptionError, match="3 lengths or more"):
        plot_throughput(tmp_path / "a.svg", [], [])


def test_chosen_baselines_run_beside_keywise() -> None:
    jobs = plan_jobs(["decode"], threads=[1], baselines=["JAX"], only="N=8192")
    assert {job.backends for job in jobs} == {(KEYWISE, KEYWISE_STATISTICS, "JAX")}


def test_backward_passes_are_checked_and_timed_beside_torch(tmp_path: Path) -> None:
    results = tmp_path / "backward.json"
    only = "full float32 B=1 H=9/3 Q=512 N=512 D=64"
    arguments = ["backward", "--only", only, "--threads", "1", "--seconds", "0", "--json", str(results)]
    done = CliRunner().invoke(make_application(), arguments)
    assert done.exit_code == 0, done.output
    run = read_run(results)
    (result,) = run.results
    assert 0 < result["relative_error"] < 2e-5
    assert all(min(steps["backward"]) > 0 for steps in result["seconds"].values())
    assert only in format_tables([run])
