"""Python code that runs during a call and calls keywise itself: signal handlers, arrays, `__del__`."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import keywise as kw

SETUP = """
import signal, sys
import numpy as np
import keywise as kw
rng = np.random.default_rng(0)
def draw(*shape): return rng.standard_normal(shape, np.float32)
q, k = draw(1, 4, 40, 32), draw(1, 4, 60_000, 32)
small_q, small_k = draw(1, 2, 3, 32), draw(1, 2, 4500, 32)
def equal(one, two):
    names = ("output", "key_mass", "top_keys", "lse")
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in names)
def compute(): return kw.attention_stats(q, k, k, top_k=2)
def compute_small(): return kw.attention_stats(small_q, small_k, small_k, top_k=2)
kw.set_num_threads(THREADS)
expected, small_expected = compute(), compute_small()
calls = 0
def on_alarm(handler):
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.004)
def rearm():  # not by the timer itself: a handler that is slower than its timer never ends
    signal.setitimer(signal.ITIMER_REAL, 0.004)
def until_called(times):
    while calls < times:
        assert equal(compute(), expected)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert equal(compute(), expected)
"""


def run_in_new_process(code: str, *, threads: int = 2, torch: bool = False) -> None:
    setup = SETUP.replace("THREADS", str(threads))
    if torch:
        setup = f"import torch\ntorch.set_num_threads({threads})\n{setup}"
    environment = {**os.environ, "KEYWISE_THREADS": "", "OMP_NUM_THREADS": ""}
    done = subprocess.run(
        [sys.executable, "-c", setup + code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


CALL_AGAIN = """
def handler(*_):
    global calls
    calls += 1
    assert equal(compute_small(), small_expected)
    rearm()
on_alarm(handler)
until_called(10)
"""


@pytest.mark.parametrize(("threads", "torch"), [(1, False), (3, False), (2, True)])
def test_calls_from_a_signal_handler_and_the_call_it_interrupts_have_the_same_bits(threads: int, torch: bool) -> None:
    run_in_new_process(CALL_AGAIN, threads=threads, torch=torch)


def test_signal_handlers_may_nest() -> None:
    code = """
depth = deepest = 0
def handler(*_):
    global calls, depth, deepest
    depth += 1
    deepest = max(deepest, depth)
    while depth < 4 > deepest:
        rearm()
        assert equal(compute(), expected)
    depth -= 1
    calls += 1
on_alarm(handler)
until_called(4)
assert deepest == 4
"""
    run_in_new_process(code)


def test_a_signal_handler_may_choose_threads_and_target() -> None:
    code = """
slow = {}
for name in kw.targets()[-2:]:
    with kw.using(name):
        slow[name] = kw.attend(small_q, small_k, small_k)
def handler(*_):
    global calls
    calls += 1
    kw.set_num_threads(1 + calls % 3)
    name = kw.targets()[-1 - calls % 2]
    with kw.using(name):
        assert np.array_equal(kw.attend(small_q, small_k, small_k), slow[name])
    rearm()
on_alarm(handler)
until_called(10)
"""
    run_in_new_process(code)


def test_torchs_number_of_threads_set_in_a_signal_handler_stays() -> None:
    code = """
kw.set_num_threads(None)
def handler(*_):
    global calls
    calls += 1
    torch.set_num_threads(3)
    assert torch.equal(torch.ones(1 << 20).sum(), torch.tensor(2.0**20))
on_alarm(handler)
until_called(1)
assert torch.get_num_threads() == kw.get_num_threads() == 3
"""
    run_in_new_process(code, torch=True)


def test_an_exception_in_a_nested_call_ends_both_calls() -> None:
    code = """
def interrupt(*_):
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt
def handler(*_):
    on_alarm(interrupt)
    while True:
        compute()
for _ in range(2):
    on_alarm(handler)
    try:
        while True:
            compute()
    except KeyboardInterrupt:
        calls += 1
assert calls == 2
assert equal(compute(), expected) and equal(compute_small(), small_expected)
"""
    run_in_new_process(code)


def test_calls_from_other_threads_during_a_nested_call_have_the_same_bits() -> None:
    code = (
        """
import threading
done = False
right = []
def work():
    while not done:
        right.append(equal(compute_small(), small_expected))
others = [threading.Thread(target=work) for _ in range(2)]
for other in others:
    other.start()
"""
        + CALL_AGAIN
    )
    code += """
done = True
for other in others:
    other.join()
assert all(right) and right
"""
    run_in_new_process(code)


class CallsKeywise:
    """An array of another library that calls keywise while it is read."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def call(self) -> None:
        np.testing.assert_array_equal(kw.attend(self.data, self.data, self.data), self.data)

    def __array_namespace__(self) -> Any:
        self.call()
        return np

    def __dlpack__(self, **options: Any) -> Any:
        self.call()
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        self.call()
        return self.data.__dlpack_device__()


def test_an_array_may_call_keywise_while_it_is_read(target: str) -> None:
    array = CallsKeywise(np.ones((1, 1, 2, 3), np.float32))
    np.testing.assert_array_equal(kw.attend(array, array, array), array.data)


def test_an_object_may_call_keywise_when_it_is_collected() -> None:
    x = np.ones((1, 1, 2, 3), np.float32)
    outputs = []

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            outputs.append(kw.attend(x, x, x))

    def collect(*_: object) -> None:
        outputs.append(kw.attend(x, x, x))

    gc.callbacks.append(collect)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(50):
            Cycle()
            outputs.append(kw.attention_stats(x, x, x).output)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(collect)
    assert len(outputs) > 100
    for output in outputs:
        np.testing.assert_array_equal(output, x)
