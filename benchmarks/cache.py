"""The KV cache: a second question, decoding steps, int8 and perplexity."""

# ruff: noqa: PLC0415  (torch and transformers are slow to import: only the processes that measure need them)

from __future__ import annotations

import math
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keywise as kw
from benchmarks.backends.backend import Backend
from benchmarks.choices import check_choices
from benchmarks.markdown import format_number, format_table
from benchmarks.model import DTYPES, TOLERANCE, compare_logits
from benchmarks.processes import run_in_process
from benchmarks.results import Run
from benchmarks.timing import TimeBudget, time_interleaved
from keywise.errors import MissingFileError, OptionError
from keywise.util.machine import list_available_cpus

FIRST, SECOND = "first", "second, in another process"
QUESTIONS = {FIRST: "Which lamp is lit?", SECOND: "Who lit the last lamp?"}
ROUNDS = 5
"""How often the pair of questions is measured."""

DYNAMIC, KEYWISE, FORK = "transformers' DynamicCache", "keywise.hf.Cache", "keywise.hf.Cache, a fork"
CACHES = (DYNAMIC, KEYWISE, FORK)
SHAPES = {
    "Llama-3-8B": (32, 8, 128),
    "Llama-3.2-1B": (32, 8, 64),
    "OLMo-1B, no groups": (16, 16, 128),
    "SmolLM2-135M": (9, 3, 64),
}
"""Query heads, key heads and head_dim."""

KEYS = 32768
UNCACHED_BYTES = 2**28
"""Size of the bfloat16 keys and values of all layers together: too large for the CPU's caches."""

BUDGET = TimeBudget(seconds=0.0, max_rounds=15, min_rounds=15)
CHUNK_TOKENS = 512
DOCS = Path(__file__).parents[1] / "docs"


def select_tasks(tasks: Sequence[str] | None) -> list[str]:
    """Select tasks by name; None selects all.

    Raises
    ------
    OptionError
        A name is unknown.

    Examples
    --------
    >>> from benchmarks.cache import select_tasks
    >>> select_tasks(None)
    ['question', 'step', 'int8', 'perplexity']
    """
    check_choices("task", tasks or (), TASKS)
    return [task for task in TASKS if task in (tasks or TASKS)]


def read_text(path: Path | None, tasks: Sequence[str]) -> tuple[str, str]:
    """Read the text whose perplexity is measured.

    Parameters
    ----------
    path
        A text file; None for the project's own documentation.
    tasks
        The selected tasks.

    Returns
    -------
    tuple of str
        The text's name and its content; both empty if no task needs them.

    Raises
    ------
    OptionError
        The file cannot be read as UTF-8, or no task needs it.
    MissingFileError
        The file does not exist.
    """
    if "perplexity" not in tasks:
        if path:
            raise OptionError("text", "must not be given without the task perplexity", got=str(path))
        return "", ""
    # The page of measurements is left out: the text would change with its own results.
    paths = [path] if path else [page for page in sorted(DOCS.glob("*.md")) if page.name != "performance.md"]
    try:
        content = "\n".join(page.read_text(encoding="utf-8") for page in paths)
    except FileNotFoundError as error:
        raise MissingFileError("text", "must be an existing file", got=str(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError("text", f"must be a readable UTF-8 file ({error})", got=str(path)) from error
    return path.name if path else ", ".join(f"docs/{page.name}" for page in paths), content


def count_results(tasks: Sequence[str]) -> int:
    """Return the number of results that `run_tasks` yields."""
    counts = {"question": len(DTYPES) * ROUNDS * len(QUESTIONS), "step": len(DTYPES), "int8": len(SHAPES)}
    return sum(counts.get(task, 1) for task in tasks)


def run_tasks(
    tasks: Sequence[str], model: str | None, text: tuple[str, str], tokens: int, past: int
) -> Iterator[dict[str, Any]]:
    """Measure tasks on all CPUs, each result in a process of its own.

    Parameters
    ----------
    tasks
        Tasks from `select_tasks`.
    model
        The language model; None for the default.
    text
        Name and content from `read_text`.
    tokens
        Length of the document that is asked about, and the most of the text.
    past
        Tokens in the cache before a decoding step.

    Yields
    ------
    dict
        The results of the tasks.
    """
    for task in tasks:
        for result in TASKS[task](model, text, tokens, past):
            yield {"task": task, **result}


def _run_on_all_cpus(work: Callable[..., Iterator[dict[str, Any]]], *arguments: Any) -> Iterator[dict[str, Any]]:
    return run_in_process(work, *arguments, threads=len(list_available_cpus()))


def _run_questions(model: str | None, _text: tuple[str, str], tokens: int, _past: int) -> Iterator[dict[str, Any]]:
    for dtype in DTYPES:
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                for name in QUESTIONS:
                    yield from _run_on_all_cpus(measure_question, model, dtype, tokens, folder, name)


def _run_steps(model: str | None, _text: tuple[str, str], _tokens: int, past: int) -> Iterator[dict[str, Any]]:
    for dtype in DTYPES:
        yield from _run_on_all_cpus(measure_step, model, past, dtype, BUDGET)


def _run_int8(_model: str | None, _text: tuple[str, str], _tokens: int, _past: int) -> Iterator[dict[str, Any]]:
    for name, (_, heads, width) in SHAPES.items():
        layers = max(1, UNCACHED_BYTES // (2 * 2 * heads * KEYS * width))
        yield from _run_on_all_cpus(measure_int8, name, layers, KEYS, BUDGET)


def _run_perplexity(model: str | None, text: tuple[str, str], tokens: int, _past: int) -> Iterator[dict[str, Any]]:
    yield from _run_on_all_cpus(measure_perplexity, model, *text, tokens)


TASKS = {"question": _run_questions, "step": _run_steps, "int8": _run_int8, "perplexity": _run_perplexity}


def measure_question(model: str | None, dtype: str, tokens: int, folder: str, name: str) -> Iterator[dict[str, Any]]:
    """Prefill a document and ask a question; seconds count from the loaded model on."""
    from keywise.documents import Reader
    from keywise.models.loading import load_model

    loaded = load_model(model, dtype=dtype, pack_linear=True)
    text = " ".join(f"Keeper {i} lit the lamp number {i * 7 % 1000}." for i in range(tokens))
    offsets = loaded.tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    token_times: list[float] = []
    start = time.perf_counter()
    document = Reader(loaded, cache_dir=folder).read(text[: offsets[tokens - 1][1]])
    prefilled = time.perf_counter()
    document.ask(QUESTIONS[name], max_tokens=1, on_token=lambda _: token_times.append(time.perf_counter()))
    yield {
        "question": name,
        "dtype": dtype,
        "document_tokens": document.tokens,
        "reused_tokens": document.reused_tokens,
        "prefill_seconds": prefilled - start,
        "first_token_seconds": token_times[0] - start,
    }


def measure_step(model_name: str | None, past: int, dtype: str, budget: TimeBudget) -> Iterator[dict[str, Any]]:
    """Time decoding steps with each cache whose logits agree, in turns.

    All run with keywise's attention.
    """
    import torch
    from transformers import DynamicCache

    import keywise.hf
    from keywise.models.loading import load_model

    model = keywise.hf.use(load_model(model_name, dtype=dtype, pack_linear=True).model)
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    caches: dict[str, Any] = {DYNAMIC: DynamicCache(config=config), KEYWISE: keywise.hf.Cache(config)}
    generator = torch.Generator().manual_seed(0)
    for layer in range(config.num_hidden_layers):
        pair = [_draw_heads(generator, config.num_key_value_heads, past, width, model.dtype) for _ in range(2)]
        for cache in caches.values():
            cache.update(*pair, layer)
    caches[FORK] = caches[KEYWISE].fork()
    token = torch.tensor([[100]])

    def step(cache: Any) -> Any:
        return model(token, past_key_values=cache).logits[0, -1]

    backends = {name: Backend(partial(step, cache)) for name, cache in caches.items()}
    with torch.no_grad():
        differences = compare_logits(backends, DYNAMIC)
        agreeing = {name: backend for name, backend in backends.items() if differences[name] <= TOLERANCE[dtype]}
        _, samples = time_interleaved(agreeing, budget)
        yield {
            "dtype": dtype,
            "past_tokens": past,
            "logit_differences": differences,
            "seconds_per_call": samples,
            "torch_bytes": {name: _measure_torch_bytes(backend.call) for name, backend in agreeing.items()},
            "numpy_peak_bytes": {name: _measure_numpy_peak(backend.call) for name, backend in agreeing.items()},
        }


def _draw_heads(generator: Any, heads: int, tokens: int, width: int, dtype: Any) -> Any:
    """Draw keys or values [1, heads, tokens, width], strided as a model makes them."""
    import torch

    return torch.randn(1, tokens, heads, width, generator=generator).to(dtype).transpose(1, 2)


def _measure_torch_bytes(work: Callable[[], Any]) -> int:
    """Return the sum of torch's allocations."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profile.events() or ())


def _measure_numpy_peak(work: Callable[[], Any]) -> int:
    """Return the peak memory of Python and NumPy, which torch's profiler does not count."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure_int8(shape: str, layers: int, keys: int, budget: TimeBudget) -> Iterator[dict[str, Any]]:
    """Time one query over keys stored in bfloat16 and in int8, in turns."""
    import torch

    query_heads, heads, width = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    caches = {"bfloat16": kw.KVCache(layers), "int8": kw.KVCache(layers, dtype="int8")}
    for layer in range(layers):
        pair = [_draw_heads(generator, heads, keys, width, torch.bfloat16) for _ in range(2)]
        for cache in caches.values():
            cache.append(layer, *pair)
    query = _draw_heads(generator, query_heads, 1, width, torch.bfloat16)

    def step(cache: kw.KVCache) -> list[Any]:
        return [cache.attend(layer, query) for layer in range(layers)]

    exact, rounded = (torch.stack(step(cache)).float() for cache in caches.values())
    backends = {name: Backend(partial(step, cache)) for name, cache in caches.items()}
    _, samples = time_interleaved(backends, budget)
    yield {
        "shape": shape,
        "keys": keys,
        "layers": layers,
        "largest_difference": ((rounded - exact).abs().max() / exact.abs().max()).item(),
        "seconds_per_call": samples,
    }


def measure_perplexity(model_name: str | None, name: str, text: str, tokens: int) -> Iterator[dict[str, Any]]:
    """Measure a text's perplexity with a float32 and with an int8 cache.

    The model computes in float32.
    """
    import torch

    import keywise.hf
    from keywise.models.loading import load_model

    loaded = load_model(model_name, dtype="float32")
    ids = loaded.tokenizer(text, return_tensors="pt", verbose=False).input_ids[:, :tokens]
    if ids.shape[1] < 2:
        raise OptionError("text", f"must have 2 tokens or more, got {ids.shape[1]} in {name!r}")
    model = keywise.hf.use(loaded.model)
    caches = keywise.hf.Cache(model.config), keywise.hf.Cache(model.config, dtype="int8")
    losses = [0.0, 0.0]
    same_choices = 0
    predicted = ids.shape[1] - 1
    for start in range(0, predicted, CHUNK_TOKENS):
        chunk = slice(start, min(start + CHUNK_TOKENS, predicted))
        following = ids[0, chunk.start + 1 : chunk.stop + 1]
        with torch.no_grad():
            logits = [model(ids[:, chunk], past_key_values=cache).logits[0] for cache in caches]
        for number, chunk_logits in enumerate(logits):
            losses[number] += torch.nn.functional.cross_entropy(chunk_logits, following, reduction="sum").item()
        same_choices += int((logits[0].argmax(-1) == logits[1].argmax(-1)).sum())
    yield {
        "text": name,
        "tokens": ids.shape[1],
        "perplexity": math.exp(losses[0] / predicted),
        "int8_perplexity": math.exp(losses[1] / predicted),
        "same_first_choice": same_choices / predicted,
    }


def format_tables(runs: Sequence[Run]) -> str:
    """Format one table per run and task."""
    return "\n\n".join(_format_run(run.results) for run in runs)


def _format_run(results: Sequence[dict[str, Any]]) -> str:
    formatters = {
        "question": format_questions,
        "step": _format_steps,
        "int8": _format_int8,
        "perplexity": _format_perplexity,
    }
    parts = []
    for task, formatter in formatters.items():
        members = [result for result in results if result["task"] == task]
        if members:
            parts.append(formatter(members))
    return "\n\n".join(parts)


def format_questions(results: Sequence[dict[str, Any]]) -> str:
    """Format the table of the first and the second question, medians over the rounds."""
    rows = []
    first_seconds: dict[str, float] = {}
    for dtype, name in dict.fromkeys((result["dtype"], result["question"]) for result in results):
        members = [result for result in results if (result["dtype"], result["question"]) == (dtype, name)]
        prefill_seconds = statistics.median(result["prefill_seconds"] for result in members)
        token_seconds = statistics.median(result["first_token_seconds"] for result in members)
        # The first question of a dtype comes before the second.
        first = first_seconds.setdefault(dtype, token_seconds)
        tokens = [f"{members[0][count]:,}" for count in ("document_tokens", "reused_tokens")]
        seconds = [format_number(prefill_seconds), format_number(token_seconds), f"{token_seconds / first:.1%}"]
        rows.append([name, dtype, *tokens, *seconds])
    columns = ["question", "dtype", "document tokens", "reused", "prefilled after, s", "first token after, s"]
    return format_table([*columns, "of the first"], rows)


def _format_steps(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        for name in CACHES:
            label = f"{name}, {result['dtype']}"
            if name not in result["seconds_per_call"]:
                difference = result["logit_differences"][name]
                rows.append([label, f"disagrees: {difference:.2g} of the largest logit", "", ""])
                continue
            rows.append(
                [
                    label,
                    format_number(statistics.median(result["seconds_per_call"][name]) * 1e3),
                    f"{format_number(result['torch_bytes'][name] / 1e6)} MB",
                    f"{format_number(result['numpy_peak_bytes'][name] / 1e6)} MB",
                ]
            )
    past = ", ".join(dict.fromkeys(str(result["past_tokens"]) for result in results))
    columns = [f"decoding step after {past} tokens", "ms", "allocated by torch", "peak of NumPy's memory"]
    return format_table(columns, rows)


def _format_int8(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        samples, layers = result["seconds_per_call"], result["layers"]
        bfloat16_seconds = statistics.median(samples["bfloat16"]) / layers
        int8_seconds = statistics.median(samples["int8"]) / layers
        rows.append(
            [
                f"{result['shape']}, {result['keys']} keys",
                format_number(bfloat16_seconds * 1e3),
                format_number(int8_seconds * 1e3),
                f"{bfloat16_seconds / int8_seconds:.2f}",
                f"{result['largest_difference']:.1%}",
            ]
        )
    columns = ["decoding step, ms per layer", "bfloat16", "int8", "bfloat16 ÷ int8", "largest difference"]
    return format_table(columns, rows)


def _format_perplexity(results: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            result["text"],
            str(result["tokens"]),
            f"{result['perplexity']:.4f}",
            f"{result['int8_perplexity']:.4f}",
            f"{result['int8_perplexity'] / result['perplexity'] - 1:+.3%}",
            f"{result['same_first_choice']:.2%}",
        ]
        for result in results
    ]
    return format_table(["text", "tokens", "perplexity", "over int8", "change", "same first choice"], rows)
