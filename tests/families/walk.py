# ruff: noqa: T201  (progress)
"""The walk over all families: one process each, with limits of time and memory, results kept in a file."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import keywise.hf
from keywise.util.atomic_write import atomic_write
from tests.families import catalog, check

_COMMON = ("auto", "llama", "bert", "clip", "t5", "whisper", "vit")
_HEAD = re.compile("For(?!CausalLM|ConditionalGeneration)")
SECONDS_PER_CLASS = 60
BYTES = 3 << 30
"""Memory of the process of a family."""


def walk(
    families: Iterable[str], path: Path, *, only: str | None = None, again: bool = False, quick: bool = False
) -> dict[str, Any]:
    """Check families and return the results, which are written to a file after each one.

    Families that are in the file already are left out, so that an interrupted walk goes on where it ended, unless
    `again` is true. With `only`, that class alone is checked; with `quick`, heads of classifiers and the like are not.
    """
    torch.set_num_threads(1)
    # The process of a family ends with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # What every family imports is imported once, before the processes of the families are forked.
    for name in _COMMON:
        catalog.list_classes(name)
    keywise.hf.register()
    results = read_results(path)
    if not results:
        results = {"transformers": hf.__version__, "torch": torch.__version__, "families": {}}
    names = list(families)
    start = time.monotonic()
    for number, family in enumerate(names, 1):
        if not again and not only and family in results["families"]:
            continue
        verdicts = check_family(family, only, quick=quick)
        if only:
            kept = [v for v in results["families"].get(family, []) if not is_chosen(v["name"], only)]
            verdicts = kept + verdicts
        results["families"][family] = verdicts
        with atomic_write(path) as file:
            file.write(json.dumps(results, indent=1).encode())
        print(f"{number:4}/{len(names)} {time.monotonic() - start:6.0f} s  {family}: {summarise(verdicts)}", flush=True)
    return results


def read_results(path: Path) -> dict[str, Any]:
    """Return the results of an earlier walk with the same transformers; empty without any."""
    if not path.exists():
        return {}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results if results["transformers"] == hf.__version__ else {}


def summarise(verdicts: list[dict[str, Any]]) -> str:
    """Return the statuses of a family's classes in a line."""
    counts = {status: sum(v["status"] == status for v in verdicts) for status in check.STATUSES}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "no model class"


def is_chosen(name: str, only: str | None) -> bool:
    return not only or name.split("(", maxsplit=1)[0] == only


def check_family(family: str, only: str | None = None, *, quick: bool = False) -> list[dict[str, Any]]:
    """Return the verdicts on the classes of a family.

    A class that ends its process or takes too long is reported, and another process goes on after it.
    """
    context = multiprocessing.get_context("fork")
    verdicts: list[dict[str, Any]] = []
    done: set[str] = set()
    while True:
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(family, only, quick, done, writer), daemon=True)
        process.start()
        writer.close()
        current = ""
        ending = ""
        while True:
            if not reader.poll(SECONDS_PER_CLASS):
                ending = f"took longer than {SECONDS_PER_CLASS} s"
                process.kill()
                break
            try:
                kind, value = reader.recv()
            except EOFError:
                break
            if kind == "start":
                current = value
                done.add(value)
            elif kind == "end":
                current = ""
            else:
                verdicts.append(value)
        process.join()
        if not current:
            return verdicts
        ending = ending or f"the process ended with {process.exitcode}"
        verdict = check.Verdict(current, "", family, reason=ending)
        verdicts.append(dataclasses.asdict(verdict))


def _work(family: str, only: str | None, quick: bool, done: set[str], writer: Any) -> None:
    """Check the classes of a family that are not done, in a process of their own."""
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        if sys.platform == "linux"
        else 0
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    logging.disable(logging.CRITICAL)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (models print)
    torch.set_num_threads(1)
    try:
        classes = catalog.list_classes(family)
    except Exception as error:  # noqa: BLE001  (a package that the family needs is missing)
        writer.send(("verdict", dataclasses.asdict(check.Verdict(family, family, family, reason=str(error)[:300]))))
        return
    for cls in classes:
        is_left_out = quick and _HEAD.search(cls.__name__)
        if cls.__name__ in done or is_left_out or not is_chosen(cls.__name__, only):
            continue
        writer.send(("start", cls.__name__))
        for verdict in check.check_class(cls):
            fields = dataclasses.asdict(verdict)
            fields["errors"] = {k: (v if math.isfinite(v) else 1e9) for k, v in verdict.errors.items()}
            writer.send(("verdict", fields))
        writer.send(("end", cls.__name__))
    writer.close()
