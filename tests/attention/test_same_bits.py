"""The same bits under every combination of denormal mode, affinity, load, process, thread of the call and number of threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CODE = """
import hashlib, itertools, json, os, sys, threading, warnings
import numpy as np
import torch
import keywise as kw
warnings.filterwarnings("ignore", category=DeprecationWarning)  # forks of processes with threads
rng = np.random.default_rng(0)
def draw(size, *shape): return (rng.standard_normal(shape) * size).astype(np.float32)
# Products of scores, weights and outputs: normal, denormal, and on the border between them.
problems = {
    "by rows": dict(query=draw(1e36, 1, 3, 50, 24), key=draw(1e-39, 1, 3, 130, 24), value=draw(1, 1, 3, 130, 24), scale=100.0),
    "by keys": dict(query=draw(30, 1, 2, 5, 40), key=draw(3, 1, 2, 2500, 40), value=draw(1e-38, 1, 2, 2500, 40)),
    "denormal": dict(query=draw(1, 1, 2, 9, 16), key=draw(1, 1, 2, 70, 16), value=draw(1e-40, 1, 2, 70, 16)),
}
problems["bfloat16"] = {
    name: torch.from_numpy(value).bfloat16() if name in ("query", "key", "value") else value
    for name, value in problems["by rows"].items()
}
problems["weighted"] = dict(problems["denormal"], bias=draw(40, 2, 9, 70), mask=kw.Mask(causal=True))
def as_bytes(array):
    return (array.view(torch.int16).numpy() if isinstance(array, torch.Tensor) and array.dtype == torch.bfloat16 else np.asarray(array)).tobytes()
def compute():
    bits = []
    for target, problem in itertools.product(kw.targets(), problems.values()):
        if target == "reference":
            continue
        with kw.using(target):
            weights = np.float32(1e-39) * np.arange(problem["query"].shape[2], dtype=np.float32)
            stats = kw.attention_stats(**problem, top_k=3, segment_bounds=[0, 20, 70], query_weights=weights)
            part = kw.partial(**problem)
            arrays = (kw.attend(**problem), stats.output, stats.lse, stats.entropy, stats.top_keys, stats.top_weights,
                stats.key_mass, stats.segment_mass, part.values, part.running_max, part.running_sum)
            bits.append([hashlib.sha256(as_bytes(array)).hexdigest()[:12] for array in arrays])
    return json.dumps(bits)
def in_thread(work):
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]
def in_child(work):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, work().encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text
def under_load(work):
    done = False
    def burn():
        x = draw(1, 1, 2, 300, 32)
        while not done:
            kw.attend(x, x, x)
    burner = threading.Thread(target=burn)
    burner.start()
    try:
        return work()
    finally:
        done = True
        burner.join()
cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
found = {}
for flush in (False, True):
    # Workers that start in either mode.
    if torch.set_flush_denormal(flush) is False:
        continue
    for threads in (1, 2, 3, 7):
        kw.set_num_threads(threads)
        for affinity, place, load in itertools.product((cpus, cpus[:1]), ("main", "thread", "child"), (False, True)):
            if (load or affinity == cpus[:1]) and threads in (2, 7):
                continue
            if affinity:
                os.sched_setaffinity(0, affinity)
            work = {"main": compute, "thread": lambda: in_thread(work_in_mode), "child": lambda: in_child(compute)}[place]
            def work_in_mode():
                torch.set_flush_denormal(flush)
                return compute()
            bits = under_load(work) if load else work()
            found.setdefault(bits, []).append((flush, threads, len(affinity), place, load))
        # The threads of torch.
        torch.set_num_threads(threads)
        found.setdefault(compute(), []).append((flush, threads, "torch"))
        torch.set_num_threads(1)
print(json.dumps(list(found.values())))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this operating system cannot fork")
def test_the_bits_depend_on_nothing_but_the_arguments() -> None:
    environment = {**os.environ, "KEYWISE_THREADS": "", "OMP_NUM_THREADS": ""}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 1, f"different bits with (flush denormals, threads, CPUs, where, load): {found}"
    assert len(found[0]) > 60
