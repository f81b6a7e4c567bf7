"""A whole language model: transformers with its own attention and with keywise's, and llama.cpp."""

# ruff: noqa: PLC0415  (torch, transformers and llama_cpp are slow to import, or absent: only the measuring processes do)

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from benchmarks.backends.backend import MOST_WEIGHTS_BYTES, Backend
from benchmarks.markdown import number, table, thread_count
from benchmarks.processes import stream
from benchmarks.results import Run
from benchmarks.timing import Effort, take_turns
from keywise.errors import OptionError
from keywise.models import find_model

SDPA, EAGER, KEYWISE, LLAMA = "sdpa", "eager", "keywise", "llama.cpp"
CACHE, READINGS = "keywise and its cache", "keywise with readings"
WAYS = (SDPA, EAGER, KEYWISE, CACHE, READINGS, LLAMA)
DECODED_TOKENS = 8
KINDS = ("prefill", "decode", "readings")
DTYPES = ("bfloat16", "float32")

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest difference of logits from sdpa's that is accepted, relative to the largest logit."""

LLAMA_TOLERANCE = 0.1
"""The same for llama.cpp, which computes with the quantised weights and quantises what they are multiplied with."""

LLAMA_NOTE = (
    "llama.cpp reads the model's GGUF file and keeps the weights quantised as they are there, in the default model to "
    "4 bits: that is not like for like, compare how its times grow with the text."
)


@dataclass(frozen=True)
class Task:
    """What the model does.

    Attributes
    ----------
    kind
        ``"prefill"`` a text, ``"decode"`` a few tokens after a text, or ``"readings"``: prefill with readings on every
        layer, against sdpa without.
    tokens
        Length of the text.
    dtype
        The weights' and activations' dtype.
    """

    kind: str
    tokens: int
    dtype: str


TASKS = (
    *(Task("prefill", tokens, dtype) for dtype in DTYPES for tokens in (2000, 8000)),
    *(Task("decode", tokens, dtype) for dtype in DTYPES for tokens in (128, 2000, 8000)),
    Task("readings", 4096, "float32"),
)


def plan(kinds: Sequence[str] | None, dtypes: Sequence[str] | None, most_tokens: int) -> list[Task]:
    """List the tasks wanted; None for all kinds or dtypes.

    Raises
    ------
    OptionError
        If a name is unknown, or no task is left.

    Examples
    --------
    >>> from benchmarks.model import plan
    >>> len(plan(["decode"], ["float32"], 2000))
    2
    """
    for option, names, known in (("task", kinds, KINDS), ("dtype", dtypes, DTYPES)):
        if unknown := sorted(set(names or ()) - set(known)):
            raise OptionError(f"--{option} {unknown[0]!r} is not known; there are {', '.join(known)}")
    tasks = [
        task
        for task in TASKS
        if task.kind in (kinds or KINDS) and task.dtype in (dtypes or DTYPES) and task.tokens <= most_tokens
    ]
    if not tasks:
        raise OptionError(f"--most-tokens {most_tokens} leaves no task; the shortest text has 128 tokens")
    return tasks


def run(model: str | None, tasks: Sequence[Task], counts: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """Measure tasks, one process per number of threads and dtype; yields one finding per task."""
    effort = Effort(seconds, fewest=3)
    for count in counts:
        for dtype in dict.fromkeys(task.dtype for task in tasks):
            chosen = [task for task in tasks if task.dtype == dtype]
            yield from stream(_measure_all, model, chosen, count, effort, threads=count)


def _measure_all(name: str | None, tasks: Sequence[Task], count: int, effort: Effort) -> Iterator[dict[str, Any]]:
    import torch

    from keywise.models.loading import load_model

    model = load_model(name, dtype=tasks[0].dtype, pack_linear=True).model
    with torch.no_grad():
        for task in tasks:
            yield measure_task(model, name, task, count, effort)


def measure_task(model: Any, name: str | None, task: Task, count: int, effort: Effort) -> dict[str, Any]:
    """Compare everyone's logits with sdpa's, then time those that agree."""
    ways, excluded = _ways(model, name, task, count)
    differences = logit_differences(ways, SDPA)
    for way, difference in differences.items():
        if not difference <= (LLAMA_TOLERANCE if way == LLAMA else TOLERANCE[task.dtype]):
            excluded[way] = f"disagrees: its logits differ by {difference:.2g} of the largest"
    _, samples = take_turns({name: way for name, way in ways.items() if name not in excluded}, effort)
    return {
        "task": task.kind,
        "tokens": task.tokens,
        "dtype": task.dtype,
        "threads": count,
        "tokens_per_call": DECODED_TOKENS if task.kind == "decode" else task.tokens,
        "differences": differences,
        "excluded": excluded,
        "samples": samples,
    }


def logit_differences(ways: dict[str, Backend], judge: str) -> dict[str, float]:
    """Give how far everyone's logits of the last token are from those of one of them, relative to its largest."""
    logits = {}
    for name, way in ways.items():
        way.reset()
        logits[name] = way.call().double()
    truth = logits[judge]
    return {name: ((found - truth).abs().max() / truth.abs().max()).item() for name, found in logits.items()}


def _ways(model: Any, name: str | None, task: Task, count: int) -> tuple[dict[str, Backend], dict[str, str]]:
    """Give everyone who can do a task, each call giving the logits of the last token, and why the others cannot."""
    import torch
    from transformers import DynamicCache

    import keywise.hf

    ids = torch.randint(100, 10000, (1, task.tokens + DECODED_TOKENS), generator=torch.Generator().manual_seed(0))
    excluded: dict[str, str] = {}
    text = ids[:, : task.tokens]
    if task.kind == "readings":
        plain, stats = partial(_prefill, model, text), partial(_prefill_with_readings, model, text)
        return {SDPA: _way(model, SDPA, plain), READINGS: _way(model, KEYWISE, stats)}, excluded
    names = [SDPA, KEYWISE, EAGER]
    weights_bytes = 4 * model.config.num_attention_heads * task.tokens**2
    if task.kind == "prefill":
        call = partial(_prefill, model, text)
        if weights_bytes > MOST_WEIGHTS_BYTES:
            names.remove(EAGER)
            excluded[EAGER] = f"stores every weight: {weights_bytes / 1e9:.1f} GB in float32 per layer"
    else:
        call = partial(_decode, model, ids, _read(model, text, DynamicCache(config=model.config)))
    ways = {name: _way(model, name, call) for name in names}
    if task.kind == "decode":
        own = _read(model, text, keywise.hf.Cache(model.config))
        ways[CACHE] = _way(model, KEYWISE, partial(_decode, model, ids, own))
    if task.dtype == DTYPES[1]:
        excluded[LLAMA] = f"has one precision, that of its file: see {DTYPES[0]}"
    else:
        _add_llama(ways, excluded, name, task, ids[0].tolist(), count)
    return ways, excluded


def _attend_by(model: Any, attention: str) -> None:
    import keywise.hf

    keywise.hf.register()
    model.set_attn_implementation(attention)


def _way(model: Any, attention: str, call: Callable[[], Any]) -> Backend:
    return Backend(call, reset=partial(_attend_by, model, attention))


def _prefill(model: Any, ids: Any) -> Any:
    return model(ids, use_cache=True, logits_to_keep=1).logits[0, -1]


def _prefill_with_readings(model: Any, ids: Any) -> Any:
    import keywise.hf

    with keywise.hf.record_stats(model, top_k=8):
        return model(ids, use_cache=True, logits_to_keep=1).logits[0, -1]


def _read(model: Any, ids: Any, cache: Any) -> Any:
    _attend_by(model, KEYWISE)
    model(ids, past_key_values=cache, logits_to_keep=1)
    return cache


def _decode(model: Any, ids: Any, cache: Any) -> Any:
    """Go on after a text with given tokens, one at a time."""
    first = ids.shape[1] - DECODED_TOKENS
    if surplus := cache.get_seq_length() - first:
        cache.crop(-surplus)
    for position in range(first, ids.shape[1]):
        logits = model(ids[:, position : position + 1], past_key_values=cache).logits
    return logits[0, -1]


def _add_llama(  # noqa: PLR0917
    ways: dict[str, Backend],
    excluded: dict[str, str],
    name: str | None,
    task: Task,
    ids: list[int],
    count: int,
) -> None:
    """Add llama.cpp where it is installed and the model is a GGUF file; it keeps the weights as quantised there."""
    found = find_model(name)
    if find_spec("llama_cpp") is None:
        excluded[LLAMA] = "not installed: llama_cpp"
        return
    if found.kind != "gguf":
        excluded[LLAMA] = f"needs a GGUF file, and {found.name} is none"
        return
    import llama_cpp
    import numpy as np
    import torch

    llama = llama_cpp.Llama(
        str(found.path), n_ctx=len(ids), n_threads=count, n_threads_batch=count, flash_attn=True, verbose=False
    )

    def run_from(first: int, step: int) -> Any:
        llama.n_tokens = first
        for start in range(first, len(ids), step):
            llama.eval(ids[start : start + step])
        logits = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        return torch.from_numpy(np.ctypeslib.as_array(logits, shape=(llama.n_vocab(),)).copy())

    if task.kind == "prefill":
        del ids[task.tokens :]
        ways[LLAMA] = Backend(partial(run_from, 0, task.tokens))
    else:
        llama.eval(ids[: task.tokens])
        ways[LLAMA] = Backend(partial(run_from, task.tokens, 1))


def tables(runs: Sequence[Run]) -> str:
    """Write one table per dtype and number of threads: tokens per second of prefill, milliseconds per decoded token."""
    results = [found for run in runs for found in run.results]
    parts = []
    for dtype, count in dict.fromkeys((found["dtype"], found["threads"]) for found in results):
        those = [found for found in results if (found["dtype"], found["threads"]) == (dtype, count)]
        ways = [way for way in WAYS if any(way in found["samples"] for found in those)]
        rows = [_row(found, ways) for found in those]
        ratios = [f"sdpa ÷ {way}" for way in (KEYWISE, CACHE) if way == KEYWISE or way in ways]
        parts += [f"**{dtype}**, {thread_count(count)}", table(["", *ways, *ratios], rows)]
        if LLAMA in ways:
            parts.append(LLAMA_NOTE)
        reasons = dict.fromkeys((way, why) for found in those for way, why in found["excluded"].items())
        if reasons:
            parts.append(f"Not timed: {'; '.join(f'{way} ({why})' for way, why in reasons)}.")
    return "\n\n".join(parts)


def _row(found: dict[str, Any], ways: Sequence[str]) -> list[str]:
    seconds = {way: statistics.median(times) / found["tokens_per_call"] for way, times in found["samples"].items()}
    if found["task"] == "decode":
        what, written = f"decoding after {found['tokens']} tokens, ms/token", {w: s * 1e3 for w, s in seconds.items()}
    else:
        what, written = f"{found['task']}, {found['tokens']} tokens, tokens/s", {w: 1 / s for w, s in seconds.items()}
    own = [seconds.get(KEYWISE, seconds.get(READINGS)), *([seconds.get(CACHE)] if CACHE in ways else [])]
    ratios = [f"{seconds[SDPA] / way:.2f}" if way else "" for way in own]
    return [what, *(number(written[way]) if way in written else "" for way in ways), *ratios]
