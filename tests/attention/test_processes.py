"""Forked processes compute the same bits and end, whatever worked in the parent before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this operating system cannot fork")

SETUP = """
import os, sys, threading, time, warnings
import numpy as np
warnings.filterwarnings("ignore", category=DeprecationWarning)  # forks of processes with threads
x = np.random.default_rng(0).standard_normal((1, 4, 300, 64), np.float32)
many = np.random.default_rng(0).standard_normal((1, 4, 30_000, 64), np.float32)

def compute(threads=2):
    import keywise as kw
    kw.set_num_threads(threads)
    stats = kw.attention_stats(x[:, :, :40], many, many, top_k=2)
    return kw.attend(x, x, x).tobytes() + stats.output.tobytes() + stats.key_mass.tobytes()

def start_torch():
    import torch
    torch.set_num_threads(2)
    torch.ones(1 << 20).exp()

def run_child(work):
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(2)
    for _ in range(12_000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, os.waitstatus_to_exitcode(status)
            return
        time.sleep(0.01)
    os.kill(child, 9)
    raise SystemExit("the child did not end")
"""


def run_in_new_process(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KEYWISE_THREADS": "", "OMP_NUM_THREADS": ""}
    done = subprocess.run(
        [sys.executable, "-c", SETUP + code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_children_compute_after_torchs_threads_worked_before_the_first_call() -> None:
    run_in_new_process("""
import keywise
start_torch()
def work():
    expected = compute(1)
    run_child(lambda: compute(2) == expected)
    return all(compute(threads) == expected for threads in (3, 1, 2))
run_child(work)
assert compute() == compute(1)
""")


def test_child_computes_where_keywise_is_imported_only_there() -> None:
    run_in_new_process("""
start_torch()
run_child(lambda: compute() == compute(1) == compute(3))
""")


def test_children_of_children_compute_on_any_number_of_threads() -> None:
    run_in_new_process("""
expected = compute()
def work():
    run_child(lambda: compute(2) == expected)
    return all(compute(threads) == expected for threads in (3, 1, 2))
run_child(work)
assert compute() == expected
""")


@pytest.mark.parametrize("torch", [False, True])
def test_child_computes_that_was_forked_during_calls_of_other_threads(torch: bool) -> None:
    run_in_new_process(
        ("start_torch()" if torch else "")
        + """
expected = compute()
done = False
def call():
    while not done:
        compute()
callers = [threading.Thread(target=call) for _ in range(2)]
for caller in callers:
    caller.start()
for _ in range(10):
    run_child(lambda: compute() == expected)
done = True
for caller in callers:
    caller.join()
"""
    )


def test_pool_of_forked_processes_computes() -> None:
    run_in_new_process("""
import multiprocessing
expected = compute()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(compute, [1, 2, 3, 2]) == [expected] * 4
""")


@pytest.mark.parametrize(("threads", "torch"), [(1, False), (2, False), (2, True)])
def test_child_forked_by_a_signal_handler_computes_or_is_refused(threads: int, torch: bool) -> None:
    run_in_new_process(
        ("start_torch()" if torch else "")
        + f"""
import signal
import keywise as kw
kw.set_num_threads({threads})
long = lambda: kw.attend(many[:, :, :500], many, many)
expected = long()
child = None
def handler(*_):
    global child
    if child is None:
        child = os.fork()
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.04)
try:
    while child is None:
        output = long()
    right = np.array_equal(output, expected)
except RuntimeError as error:
    right = child == 0 and "forked" in str(error) and np.array_equal(long(), expected)
if child == 0:
    os._exit(0 if right else 1)
assert right
for _ in range(12_000):
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        break
    time.sleep(0.01)
assert ended and status == 0, status
"""
    )


def test_child_forked_by_a_signal_handler_may_leave_the_call_by_an_exception() -> None:
    run_in_new_process("""
start_torch()
import signal
import keywise as kw
kw.set_num_threads(2)
class Leave(Exception): pass
child = None
def handler(*_):
    global child
    child = os.fork()
    if child == 0:
        raise Leave
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.04)
try:
    while child is None:
        kw.attend(many[:, :, :500], many, many)
except Leave:
    os._exit(0 if compute() == compute(1) else 1)
for _ in range(12_000):
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        break
    time.sleep(0.01)
assert ended and status == 0, status
""")
