"""A whole language model: transformers with its own attention and with keywise's, and llama.cpp."""

# ruff: noqa: PLC0415  (torch, transformers and llama_cpp are slow to import, or absent: only the measuring processes do)

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from benchmarks.backends.backend import MAX_WEIGHTS_BYTES, Backend
from benchmarks.choices import check_choices
from benchmarks.markdown import format_number, format_table, format_threads
from benchmarks.processes import run_in_process
from benchmarks.results import Run
from benchmarks.timing import TimeBudget, time_interleaved
from keywise.errors import OptionError
from keywise.models import find_model

SDPA, EAGER, KEYWISE, LLAMA = "sdpa", "eager", "keywise", "llama.cpp"
KEYWISE_CACHE, KEYWISE_STATISTICS = "keywise with its cache", "keywise with statistics"
BACKENDS = (SDPA, EAGER, KEYWISE, KEYWISE_CACHE, KEYWISE_STATISTICS, LLAMA)
DECODED_TOKENS = 8
KINDS = ("prefill", "decode", "statistics")
DTYPES = ("bfloat16", "float32")

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest difference from sdpa's logits that is accepted, relative to the largest logit."""

LLAMA_TOLERANCE = 0.1
"""The same for llama.cpp, which rounds the inputs of layers to 8 bits."""

LLAMA_NOTE = (
    "llama.cpp computes with the blocks of the model's GGUF file and rounds their inputs to 8 bits; the others compute "
    "with the form of the weights that `load_model` chose."
)


@dataclass(frozen=True)
class Task:
    """A task of the model.

    Attributes
    ----------
    kind
        ``"prefill"``: a text. ``"decode"``: a few tokens after a text. ``"statistics"``: a text, with statistics of
        every layer, compared with sdpa without.
    tokens
        Length of the text.
    dtype
        Dtype of weights and activations.
    """

    kind: str
    tokens: int
    dtype: str


TASKS = (
    *(Task("prefill", tokens, dtype) for dtype in DTYPES for tokens in (500, 2000, 8000)),
    *(Task("decode", tokens, dtype) for dtype in DTYPES for tokens in (128, 500, 2000, 8000)),
    Task("statistics", 4096, "float32"),
)


def select_tasks(kinds: Sequence[str] | None, dtypes: Sequence[str] | None, max_tokens: int) -> list[Task]:
    """Select tasks by kind, dtype and length.

    Parameters
    ----------
    kinds, dtypes
        Kinds and dtypes to select; None for all.
    max_tokens
        Length of the longest text.

    Raises
    ------
    OptionError
        A name is unknown, or no task is left.

    Examples
    --------
    >>> from benchmarks.model import select_tasks
    >>> len(select_tasks(["decode"], ["float32"], 2000))
    3
    """
    check_choices("task", kinds or (), KINDS)
    check_choices("dtype", dtypes or (), DTYPES)
    tasks = [
        task
        for task in TASKS
        if task.kind in (kinds or KINDS) and task.dtype in (dtypes or DTYPES) and task.tokens <= max_tokens
    ]
    if not tasks:
        raise OptionError("max_tokens", "must be the length of a task's text or more, 128 at least", got=max_tokens)
    return tasks


def run_tasks(
    model: str | None, tasks: Sequence[Task], threads: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """Measure tasks, in one process per number of threads and dtype.

    Parameters
    ----------
    model
        The language model; None for the default.
    tasks
        Tasks from `select_tasks`.
    threads
        Numbers of threads.
    seconds
        Time for the rounds of one task.

    Yields
    ------
    dict
        The result of each task.
    """
    budget = TimeBudget(seconds, min_rounds=3)
    for count in threads:
        for dtype in dict.fromkeys(task.dtype for task in tasks):
            selected = [task for task in tasks if task.dtype == dtype]
            yield from run_in_process(_measure_tasks, model, selected, count, budget, threads=count)


def _measure_tasks(name: str | None, tasks: Sequence[Task], threads: int, budget: TimeBudget) -> Iterator[Any]:
    import torch

    from keywise.models.loading import load_model

    model = load_model(name, dtype=tasks[0].dtype, pack_linear=True).model
    with torch.no_grad():
        for task in tasks:
            yield measure_task(model, name, task, threads, budget)


def measure_task(model: Any, name: str | None, task: Task, threads: int, budget: TimeBudget) -> dict[str, Any]:
    """Compare every backend's logits with sdpa's, then time those that agree."""
    backends, excluded = _prepare_backends(model, name, task, threads)
    differences = compare_logits(backends, SDPA)
    for backend, difference in differences.items():
        tolerance = LLAMA_TOLERANCE if backend == LLAMA else TOLERANCE[task.dtype]
        if not difference <= tolerance:
            excluded[backend] = f"disagrees: its logits differ by {difference:.2g} of the largest"
    agreeing = {name: backend for name, backend in backends.items() if name not in excluded}
    _, samples = time_interleaved(agreeing, budget)
    return {
        "task": task.kind,
        "tokens": task.tokens,
        "dtype": task.dtype,
        "threads": threads,
        "tokens_per_call": DECODED_TOKENS if task.kind == "decode" else task.tokens,
        "logit_differences": differences,
        "excluded": excluded,
        "seconds_per_call": samples,
    }


def compare_logits(backends: dict[str, Backend], expected: str) -> dict[str, float]:
    """Return the largest difference between each backend's logits and those of one of them.

    Parameters
    ----------
    backends
        Backends whose calls return the logits of the last token.
    expected
        The name of the backend whose logits are expected; differences are relative to its largest logit.
    """
    logits = {}
    for name, backend in backends.items():
        backend.reset()
        logits[name] = backend.call().double()
    largest = logits[expected].abs().max()
    return {name: ((values - logits[expected]).abs().max() / largest).item() for name, values in logits.items()}


def _prepare_backends(
    model: Any, name: str | None, task: Task, threads: int
) -> tuple[dict[str, Backend], dict[str, str]]:
    """Prepare the backends that support a task, and collect the reasons why others do not."""
    import torch
    from transformers import DynamicCache

    import keywise.hf

    ids = torch.randint(100, 10000, (1, task.tokens + DECODED_TOKENS), generator=torch.Generator().manual_seed(0))
    text = ids[:, : task.tokens]
    excluded: dict[str, str] = {}
    if task.kind == "statistics":
        return {
            SDPA: _make_backend(model, SDPA, partial(_prefill, model, text)),
            KEYWISE_STATISTICS: _make_backend(model, KEYWISE, partial(_prefill_with_statistics, model, text)),
        }, excluded
    names = [SDPA, KEYWISE, EAGER]
    if task.kind == "prefill":
        call = partial(_prefill, model, text)
        weights_bytes = 4 * model.config.num_attention_heads * task.tokens**2
        if weights_bytes > MAX_WEIGHTS_BYTES:
            names.remove(EAGER)
            excluded[EAGER] = f"stores every weight: {weights_bytes / 1e9:.1f} GB in float32 per layer"
    else:
        call = partial(_decode, model, ids, _fill_cache(model, text, DynamicCache(config=model.config)))
    backends = {name: _make_backend(model, name, call) for name in names}
    if task.kind == "decode":
        cache = _fill_cache(model, text, keywise.hf.Cache(model.config))
        backends[KEYWISE_CACHE] = _make_backend(model, KEYWISE, partial(_decode, model, ids, cache))
    if reason := _find_llama_obstacle(name):
        excluded[LLAMA] = reason
    else:
        backends[LLAMA] = _prepare_llama(name, task, ids[0].tolist(), threads)
    return backends, excluded


def _set_attention(model: Any, attention: str) -> None:
    import keywise.hf

    keywise.hf.register()
    model.set_attn_implementation(attention)


def _make_backend(model: Any, attention: str, call: Callable[[], Any]) -> Backend:
    return Backend(call, reset=partial(_set_attention, model, attention))


def _prefill(model: Any, ids: Any) -> Any:
    return model(ids, use_cache=True, logits_to_keep=1).logits[0, -1]


def _prefill_with_statistics(model: Any, ids: Any) -> Any:
    import keywise.hf

    with keywise.hf.record_stats(model, top_k=8):
        return model(ids, use_cache=True, logits_to_keep=1).logits[0, -1]


def _fill_cache(model: Any, ids: Any, cache: Any) -> Any:
    _set_attention(model, KEYWISE)
    model(ids, past_key_values=cache, logits_to_keep=1)
    return cache


def _decode(model: Any, ids: Any, cache: Any) -> Any:
    """Decode the given tokens after a text, one at a time."""
    first = ids.shape[1] - DECODED_TOKENS
    if surplus := cache.get_seq_length() - first:
        cache.crop(-surplus)
    for position in range(first, ids.shape[1]):
        logits = model(ids[:, position : position + 1], past_key_values=cache).logits
    return logits[0, -1]


def _find_llama_obstacle(name: str | None) -> str | None:
    """Return the reason why llama.cpp cannot take part; None if it can."""
    if find_spec("llama_cpp") is None:
        return "not installed: llama_cpp"
    model = find_model(name)
    return None if model.kind == "gguf" else f"needs a GGUF file, and {model.name} is not one"


def _prepare_llama(name: str | None, task: Task, ids: list[int], threads: int) -> Backend:
    """Prepare llama.cpp on the model's GGUF file."""
    import llama_cpp
    import numpy as np
    import torch

    path = str(find_model(name).path)
    llama = llama_cpp.Llama(
        path, n_ctx=len(ids), n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False
    )

    def run_from(first: int, step: int) -> Any:
        llama.n_tokens = first
        for start in range(first, len(ids), step):
            llama.eval(ids[start : start + step])
        logits = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        return torch.from_numpy(np.ctypeslib.as_array(logits, shape=(llama.n_vocab(),)).copy())

    if task.kind == "prefill":
        del ids[task.tokens :]
        return Backend(partial(run_from, 0, task.tokens))
    llama.eval(ids[: task.tokens])
    return Backend(partial(run_from, task.tokens, 1))


def format_tables(runs: Sequence[Run]) -> str:
    """Format one table per dtype and number of threads.

    Prefill is in tokens per second, decoding in milliseconds per token.
    """
    results = [result for run in runs for result in run.results]
    parts = []
    for dtype, threads in dict.fromkeys((result["dtype"], result["threads"]) for result in results):
        members = [result for result in results if (result["dtype"], result["threads"]) == (dtype, threads)]
        names = [name for name in BACKENDS if any(name in result["seconds_per_call"] for result in members)]
        ratios = [f"sdpa ÷ {name}" for name in (KEYWISE, KEYWISE_CACHE) if name == KEYWISE or name in names]
        rows = [_format_row(result, names) for result in members]
        parts += [f"**{dtype}**, {format_threads(threads)}", format_table(["", *names, *ratios], rows)]
        if LLAMA in names:
            parts.append(LLAMA_NOTE)
        reasons = dict.fromkeys(reason for result in members for reason in result["excluded"].items())
        if reasons:
            parts.append(f"Not timed: {'; '.join(f'{name} ({reason})' for name, reason in reasons)}.")
    return "\n\n".join(parts)


def compute_token_seconds(result: dict[str, Any]) -> dict[str, float]:
    """Return every backend's median seconds per token."""
    return {
        name: statistics.median(samples) / result["tokens_per_call"]
        for name, samples in result["seconds_per_call"].items()
    }


def describe_task(result: dict[str, Any]) -> str:
    """Return a task and its unit in words."""
    if result["task"] == "decode":
        return f"decoding after {result['tokens']} tokens, ms/token"
    return f"{result['task']}, {result['tokens']} tokens, tokens/s"


def format_speed(result: dict[str, Any], token_seconds: float) -> str:
    """Format seconds per token in a task's unit."""
    return format_number(token_seconds * 1e3 if result["task"] == "decode" else 1 / token_seconds)


def _format_row(result: dict[str, Any], names: Sequence[str]) -> list[str]:
    seconds = compute_token_seconds(result)
    cells = [format_speed(result, seconds[name]) if name in seconds else "" for name in names]
    compared = [seconds.get(KEYWISE, seconds.get(KEYWISE_STATISTICS))]
    if KEYWISE_CACHE in names:
        compared.append(seconds.get(KEYWISE_CACHE))
    ratios = [f"{seconds[SDPA] / keywise_seconds:.2f}" if keywise_seconds else "" for keywise_seconds in compared]
    return [describe_task(result), *cells, *ratios]
