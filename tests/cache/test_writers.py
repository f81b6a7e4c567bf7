"""Killed writers and concurrent readers of cache files: a file is always the old one or the new one."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

from keywise.cache import file
from keywise.errors import FormatError
from tests.support.crashes import kill_cache_writers

FUNCTIONS = """
import os, sys, time
import numpy as np
import keywise as kw
from keywise.cache import file

def cache_of(number):
    cache = kw.KVCache(layers=4)
    for layer in range(4):
        cache.append(layer, *(np.full((1, 2, 400, 32), number, np.float32) for _ in (0, 1)))
    return cache

def write(path, number):
    file.save(path, cache_of(number), fingerprint={"made": "by"}, token_ids=np.full(400, number))

def number_in(path):
    opened = file.open(path, {"made": "by"})
    opened.verify()
    (number,) = set(opened.header.token_ids.ravel().tolist())
    for layer in range(4):
        for array in opened.cache.chunks(layer)[0]:
            assert (array.data == number).all()
    return number
"""

KILLED = (
    FUNCTIONS
    + """
path = sys.argv[1]
write(path, 1)


def writing(number):
    ready, signal = os.pipe()
    child = os.fork()
    if not child:
        os.write(signal, b"x")
        write(path, number)
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(signal)
    return child


durations = []
for _ in range(5):
    child = writing(1)
    begin = time.perf_counter()
    os.waitpid(child, 0)
    durations.append(time.perf_counter() - begin)
random = np.random.default_rng(0)
last, ends = 1, []
for number in range(2, 252):
    child = writing(number)
    time.sleep(random.uniform(0, 1.3) * np.median(durations))
    os.kill(child, 9)
    os.waitpid(child, 0)
    stored = number_in(path)
    assert stored in (last, number), (stored, last, number)
    ends.append(stored == number)
    last = stored
print(sum(ends), len(ends))
"""
)


def run_python(code: str, *arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killing_a_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    process = run_python(KILLED, tmp_path / "cache")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    written, tries = map(int, output.split())
    assert tries == 250
    # Writers must have been killed before and after the rename, else the loop proves nothing.
    assert 10 < written < 240
    # A killed writer leaves at most one unfinished file. It is complete if the writer was killed before the rename.
    unfinished_files = list(tmp_path.glob(".keywise-unfinished-*"))
    assert len(unfinished_files) <= tries - written
    for unfinished in unfinished_files:
        try:
            opened = file.open(unfinished, {"made": "by"})
            opened.verify()
        except FormatError:
            continue
        assert len(set(opened.header.token_ids.ravel().tolist())) == 1


def test_two_processes_read_while_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    first = run_python(FUNCTIONS + "write(sys.argv[1], 0)", path)
    assert first.wait(timeout=60) == 0, first.communicate()[1]
    writer = run_python(FUNCTIONS + "[write(sys.argv[1], n) for n in range(1, 101)]", path)
    stats = """
seen = [number_in(sys.argv[1])]
while seen[-1] < 100 and len(seen) < 100_000:
    seen.append(number_in(sys.argv[1]))
assert seen == sorted(seen), seen
print(len(set(seen)))
"""
    readers = [run_python(FUNCTIONS + stats, path) for _ in range(2)]
    for process in (writer, *readers):
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert process is writer or int(output) > 1


def test_leftovers_of_killed_writers_are_swept_by_the_next_save(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["keywise.cache.file", "keywise.library.library"])
    crashes = kill_cache_writers(tmp_path, 20, context)
    assert crashes.kills == 20
    assert crashes.leftovers
