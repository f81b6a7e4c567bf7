"""Threads: the same bits on any number of them and on every run, from any Python thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import keywise as kw
from tests.support.cases import DTYPES, Case
from tests.support.judging import as_float64

pytestmark = pytest.mark.serial

CASES = {
    "prefill": Case(batch=1, queries=300, keys=300, head_dim=40, mask="causal", peaky=True),
    "decoding": Case(batch=1, queries=1, keys=9001, group=4, head_dim=33),
    "few rows, many keys": Case(batch=2, queries=13, keys=2600, group=3, mask="causal window", sinks=True),
    "more rows, many keys": Case(batch=2, key_heads=3, queries=40, keys=4200, group=2, head_dim=24, mask="causal"),
    "many heads": Case(batch=3, key_heads=5, group=1, queries=17, keys=129, mask="lengths", bias="per head"),
}
READING = {"top_k": 5, "segment_bounds": [0, 3, 40, 129]}
FIELDS = ("output", "lse", "entropy", "top_keys", "top_weights", "key_mass", "segment_mass")


@pytest.fixture(autouse=True)
def default_threads() -> Iterator[None]:
    yield
    kw.set_num_threads(None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_same_bits_on_any_number_of_threads(target: str, name: str, dtype: str) -> None:
    case = Case(**{**vars(CASES[name]), "dtype": dtype})
    arguments = case.arguments()
    unsunk = {option: value for option, value in arguments.items() if option != "sinks"}
    results = []
    # The definition is slow and uses none of them.
    for threads in (1, 7) if target == "reference" else (1, 2, 3, 7, 20, 1, 7):
        kw.set_num_threads(threads)
        stats = kw.attention_stats(**arguments, **READING)
        part = kw.partial(**unsunk)
        results.append(
            [
                kw.attend(**arguments),
                *(getattr(stats, field) for field in FIELDS),
                part.running_max,
                part.running_sum,
                part.values,
            ]
        )
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(as_float64(one), as_float64(two))


def test_python_threads_do_not_disturb_each_other(target: str) -> None:
    cases = [Case(queries=40, keys=200, mask="causal", seed=seed) for seed in range(6)]
    expected = [kw.attend(**case.arguments()).numpy() for case in cases]
    actual: dict[int, list[np.ndarray]] = {}

    def work(number: int) -> None:
        arguments = cases[number].arguments()
        with kw.using(target):
            actual[number] = [kw.attend(**arguments).numpy() for _ in range(4)]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(cases))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number, outputs in actual.items():
        for output in outputs:
            np.testing.assert_array_equal(output, expected[number])
    assert len(actual) == len(cases)


def test_get_num_threads_returns_the_number_set() -> None:
    for threads in (1, 5, 2):
        kw.set_num_threads(threads)
        assert kw.get_num_threads() == threads


@pytest.mark.parametrize(
    ("threads", "error"),
    [
        (0, kw.OptionError),
        (-2, kw.OptionError),
        (1.5, kw.DtypeError),
        (True, kw.DtypeError),
        ("2", kw.DtypeError),
    ],
)
def test_bad_numbers_of_threads_are_refused(threads: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="threads"):
        kw.set_num_threads(threads)  # type: ignore[arg-type]


def run_in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_the_environment_sets_the_default() -> None:
    done = run_in_new_process("import keywise as kw; print(kw.get_num_threads())", KEYWISE_THREADS="3")
    assert done.stdout == "3\n", done.stderr


def test_default_is_torchs_number_of_threads_if_torch_is_loaded() -> None:
    code = "import torch, keywise as kw; torch.set_num_threads(5); print(kw.get_num_threads())"
    done = run_in_new_process(code, KEYWISE_THREADS="")
    assert done.stdout == "5\n", done.stderr


@pytest.mark.parametrize("value", ["0", "many", "-1", "1.5"])
def test_bad_environment_variable_is_refused_by_name(value: str) -> None:
    code = "import numpy as np, keywise as kw; x = np.ones((1, 1, 1, 1), np.float32); kw.attend(x, x, x)"
    done = run_in_new_process(code, KEYWISE_THREADS=value)
    assert done.returncode != 0
    assert f"KEYWISE_THREADS must be an integer from 1 to 1024, got {value!r}" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this operating system cannot fork")
def test_forked_process_computes_the_same_output() -> None:
    code = """
import os, numpy as np, keywise as kw
x = np.random.default_rng(0).standard_normal((1, 4, 300, 64)).astype(np.float32)
kw.set_num_threads(3)
before = kw.attend(x, x, x)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(kw.attend(x, x, x), before) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


WITH_TORCH = """
import os, torch, keywise as kw
torch.set_num_threads(2)
x = torch.randn(1, 4, 300, 64, generator=torch.Generator().manual_seed(0))
alone = kw.attend(x, x, x)
threads = len(os.listdir("/proc/self/task"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="torch's threads are shared on Linux")
def test_keywise_runs_on_the_threads_of_torch() -> None:
    code = """
x @ x.mT
again = kw.attend(x, x, x)
assert torch.equal(again, alone) and len(os.listdir("/proc/self/task")) == threads
kw.set_num_threads(3)  # not torch's number: keywise has its own
assert torch.equal(kw.attend(x, x, x), alone) and len(os.listdir("/proc/self/task")) == threads + 2
"""
    done = run_in_new_process(WITH_TORCH + code, KEYWISE_THREADS="", OMP_NUM_THREADS="")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="torch's threads are shared on Linux")
def test_simultaneous_callers_on_torchs_threads_have_the_same_bits() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
def calls(_):
    torch.set_num_threads(2)
    return all(torch.equal(kw.attend(x, x, x), alone) for _ in range(50))
with ThreadPoolExecutor(3) as callers:
    assert all(callers.map(calls, range(6)))
"""
    done = run_in_new_process(WITH_TORCH + code, KEYWISE_THREADS="", OMP_NUM_THREADS="")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="torch's threads are shared on Linux")
def test_forked_process_does_not_wait_for_torchs_threads() -> None:
    code = """
child = os.fork()
if child == 0:
    # Torch's own operations do wait.
    os._exit(0 if kw.attend(x, x, x).numpy().tobytes() == alone.numpy().tobytes() else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", WITH_TORCH + code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


LONG_CALL = """
import threading, time
import numpy as np
import keywise as kw
x = np.ones((1, 16, 16384, 64), np.float32)
"""


def test_other_python_threads_run_during_a_call() -> None:
    code = """
done = threading.Event()
worker = threading.Thread(target=lambda: (kw.attend(x[:, :2], x[:, :2], x[:, :2]), done.set()))
worker.start()
turns = 0
while not done.is_set():
    turns += 1
    time.sleep(0.001)
print(turns)
"""
    done = run_in_new_process(LONG_CALL + code)
    assert int(done.stdout) > 10, done.stderr


def test_control_c_stops_a_long_call() -> None:
    code = """
import signal
signal.setitimer(signal.ITIMER_REAL, 0.3)
signal.signal(signal.SIGALRM, signal.default_int_handler)
start = time.perf_counter()
try:
    for _ in range(100):
        kw.attend(x, x, x)
except KeyboardInterrupt:
    print(time.perf_counter() - start)
y = x[:, :1, :100]
assert np.allclose(kw.attend(y, y, y), 1)
"""
    with_portable = (
        LONG_CALL + "with kw.using('portable'):\n" + "".join(f"    {line}\n" for line in code.strip().splitlines())
    )
    done = run_in_new_process(with_portable, KEYWISE_THREADS="2")
    assert done.returncode == 0, done.stderr
    # Far less than the call itself would take.
    assert float(done.stdout) < 2


def test_python_exits_during_a_call_in_a_daemon_thread() -> None:
    code = """
import threading, time, numpy as np, keywise as kw
x = np.random.default_rng(0).normal(size=(1, 8, 4096, 64)).astype(np.float32)
threading.Thread(target=lambda: kw.attend(x, x, x), daemon=True).start()
time.sleep(0.2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
