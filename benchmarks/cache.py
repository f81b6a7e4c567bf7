"""What the cache saves: a second question, a decoding step, keys and values in int8; and what int8 costs."""

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
from benchmarks.machine import available_cpus
from benchmarks.markdown import number, table
from benchmarks.model import DTYPES, TOLERANCE, logit_differences
from benchmarks.processes import stream
from benchmarks.results import Run
from benchmarks.timing import Effort, take_turns
from keywise.errors import OptionError

FIRST, SECOND = "first", "second, in another process"
QUESTIONS = {FIRST: "Which lamp is lit?", SECOND: "Who lit the last lamp?"}
ROUNDS = 5
"""How often a document is read, and asked about again."""

DYNAMIC, KEYWISE, FORK = "transformers' DynamicCache", "keywise.hf.Cache", "keywise.hf.Cache, a fork"
TOKEN = "first_token_seconds"
CACHES = (DYNAMIC, KEYWISE, FORK)
SHAPES = {
    "Llama-3-8B": (32, 8, 128),
    "Llama-3.2-1B": (32, 8, 64),
    "OLMo-1B, no groups": (16, 16, 128),
    "SmolLM2-135M": (9, 3, 64),
}
"""Query heads, key heads and head_dim."""

KEYS = 32768
DIFFERENT_BYTES = 2**28
"""Layers are taken one after the other until their bfloat16 keys and values are this many bytes: no CPU caches them."""

EFFORT = Effort(seconds=0.0, rounds=15, fewest=15)
CHUNK_TOKENS = 512
DOCS = Path(__file__).parents[3] / "docs"


def plan(tasks: Sequence[str] | None) -> list[str]:
    """List the tasks wanted; None for all.

    Raises
    ------
    OptionError
        If a name is unknown.

    Examples
    --------
    >>> from benchmarks.cache import plan
    >>> plan(None)
    ['question', 'step', 'int8', 'perplexity']
    """
    if unknown := sorted(set(tasks or ()) - set(TASKS)):
        raise OptionError(f"--task {unknown[0]!r} is not known; there are {', '.join(TASKS)}")
    return [task for task in TASKS if task in (tasks or TASKS)]


def read_text(path: Path | None, tasks: Sequence[str]) -> tuple[str, str]:
    """Give the name and the content of the text whose perplexity is taken; None for the project's own docs.

    Raises
    ------
    OptionError
        If it cannot be read as UTF-8, no task takes it, or keywise was installed without its docs.
    """
    if "perplexity" not in tasks:
        if path:
            raise OptionError(f"--text {str(path)!r} is for perplexity; leave it out, or add --task perplexity")
        return "", ""
    # The pages of the figures are left out: the text would change with what is found.
    paths = [path] if path else [page for page in sorted(DOCS.glob("*.md")) if not page.name.startswith("performance")]
    if not paths:
        raise OptionError("--text is not given, and keywise's own docs are not installed; name a text file")
    try:
        text = "\n".join(page.read_text(encoding="utf-8") for page in paths)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--text {str(path)!r} cannot be read as UTF-8: {error}") from error
    return path.name if path else ", ".join(f"docs/{page.name}" for page in paths), text


def count(tasks: Sequence[str]) -> int:
    """Give the number of findings that `run` yields."""
    return sum(
        {"question": len(DTYPES) * ROUNDS * len(QUESTIONS), "step": len(DTYPES), "int8": len(SHAPES)}.get(task, 1)
        for task in tasks
    )


def run(
    tasks: Sequence[str], model: str | None, text: tuple[str, str], tokens: int, past: int
) -> Iterator[dict[str, Any]]:
    """Measure tasks on all CPUs, each finding in a process of its own.

    Parameters
    ----------
    tasks
        What `plan` gave.
    model
        The language model; None for the default.
    text
        What `read_text` gave.
    tokens
        Length of the document that is asked about, and at most that of the text.
    past
        Tokens in the cache before a decoding step.
    """
    for task in tasks:
        for finding in TASKS[task](model, text, tokens, past):
            yield {"task": task, **finding}


def _in_process(work: Callable[..., Iterator[dict[str, Any]]], *arguments: Any) -> Iterator[dict[str, Any]]:
    return stream(work, *arguments, threads=len(available_cpus()))


def _questions(model: str | None, _text: tuple[str, str], tokens: int, _past: int) -> Iterator[dict[str, Any]]:
    for dtype in DTYPES:
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                for name in QUESTIONS:
                    yield from _in_process(measure_question, model, dtype, tokens, folder, name)


def _steps(model: str | None, _text: tuple[str, str], _tokens: int, past: int) -> Iterator[dict[str, Any]]:
    for dtype in DTYPES:
        yield from _in_process(measure_step, model, past, dtype, EFFORT)


def _int8(_model: str | None, _text: tuple[str, str], _tokens: int, _past: int) -> Iterator[dict[str, Any]]:
    for name, (_, heads, width) in SHAPES.items():
        layers = max(1, DIFFERENT_BYTES // (2 * 2 * heads * KEYS * width))
        yield from _in_process(measure_int8, name, layers, KEYS, EFFORT)


def _perplexity(model: str | None, text: tuple[str, str], tokens: int, _past: int) -> Iterator[dict[str, Any]]:
    yield from _in_process(measure_perplexity, model, *text, tokens)


TASKS = {"question": _questions, "step": _steps, "int8": _int8, "perplexity": _perplexity}


def measure_question(model: str | None, dtype: str, tokens: int, folder: str, name: str) -> Iterator[dict[str, Any]]:
    """Read a document and ask; seconds count from the loaded model on."""
    from keywise.documents import Reader
    from keywise.models.loading import load_model

    loaded = load_model(model, dtype=dtype, pack_linear=True)
    text = " ".join(f"Keeper {i} lit the lamp number {i * 7 % 1000}." for i in range(tokens))
    offsets = loaded.tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    first: list[float] = []
    start = time.perf_counter()
    document = Reader(loaded, folder).read(text[: offsets[tokens - 1][1]])
    read = time.perf_counter()
    document.ask(QUESTIONS[name], max_tokens=1, on_token=lambda _: first.append(time.perf_counter()))
    yield {
        "question": name,
        "dtype": dtype,
        "document_tokens": document.tokens,
        "reused_tokens": document.reused_tokens,
        "read_seconds": read - start,
        TOKEN: first[0] - start,
    }


def measure_step(model_name: str | None, past: int, dtype: str, effort: Effort) -> Iterator[dict[str, Any]]:
    """Time decoding steps with each cache in turns, all with keywise's attention, after their logits agree."""
    import torch
    from transformers import DynamicCache

    import keywise.hf
    from keywise.models.loading import load_model

    model = keywise.hf.use(load_model(model_name, dtype=dtype, pack_linear=True).model)
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    caches: dict[str, Any] = {DYNAMIC: DynamicCache(config=config), KEYWISE: keywise.hf.Cache(config)}
    random_numbers = torch.Generator().manual_seed(0)
    for layer in range(config.num_hidden_layers):
        pair = [_random(random_numbers, config.num_key_value_heads, past, width, model.dtype) for _ in range(2)]
        for cache in caches.values():
            cache.update(*pair, layer)
    caches[FORK] = caches[KEYWISE].fork()
    token = torch.tensor([[100]])

    def step(cache: Any) -> Any:
        return model(token, past_key_values=cache).logits[0, -1]

    ways = {name: Backend(partial(step, cache)) for name, cache in caches.items()}
    with torch.no_grad():
        differences = logit_differences(ways, DYNAMIC)
        right = {name: way for name, way in ways.items() if differences[name] <= TOLERANCE[dtype]}
        _, samples = take_turns(right, effort)
        yield {
            "dtype": dtype,
            "past_tokens": past,
            "differences": differences,
            "samples": samples,
            "torch_bytes": {name: _torch_bytes(way.call) for name, way in right.items()},
            "numpy_peak_bytes": {name: _numpy_peak_bytes(way.call) for name, way in right.items()},
        }


def _random(random_numbers: Any, heads: int, tokens: int, width: int, dtype: Any) -> Any:
    """Give keys or values [1, heads, tokens, width] as a model makes them, a token's heads together."""
    import torch

    return torch.randn(1, tokens, heads, width, generator=random_numbers).to(dtype).transpose(1, 2)


def _torch_bytes(work: Callable[[], Any]) -> int:
    """Add up what torch allocates."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profile.events() or ())


def _numpy_peak_bytes(work: Callable[[], Any]) -> int:
    """Give the most that Python and NumPy, which torch's profiler does not see, hold at a time in addition."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure_int8(shape: str, layers: int, keys: int, effort: Effort) -> Iterator[dict[str, Any]]:
    """Time one query over the keys of some layers, kept in bfloat16 and in int8, in turns."""
    import torch

    query_heads, heads, width = SHAPES[shape]
    random_numbers = torch.Generator().manual_seed(0)
    caches = {"bfloat16": kw.KVCache(layers), "int8": kw.KVCache(layers, dtype="int8")}
    for layer in range(layers):
        pair = [_random(random_numbers, heads, keys, width, torch.bfloat16) for _ in range(2)]
        for cache in caches.values():
            cache.append(layer, *pair)
    query = _random(random_numbers, query_heads, 1, width, torch.bfloat16)

    def step(cache: kw.KVCache) -> list[Any]:
        return [cache.attend(layer, query) for layer in range(layers)]

    exact, rounded = (torch.stack(step(cache)).float() for cache in caches.values())
    _, samples = take_turns({name: Backend(partial(step, cache)) for name, cache in caches.items()}, effort)
    yield {
        "shape": shape,
        "keys": keys,
        "layers": layers,
        "difference": ((rounded - exact).abs().max() / exact.abs().max()).item(),
        "samples": samples,
    }


def measure_perplexity(model_name: str | None, name: str, text: str, tokens: int) -> Iterator[dict[str, Any]]:
    """Let a float32 model read a text with a cache of its own keys and values, and with one of int8."""
    import torch

    import keywise.hf
    from keywise.models.loading import load_model

    loaded = load_model(model_name, dtype="float32")
    ids = loaded.tokenizer(text, return_tensors="pt", verbose=False).input_ids[:, :tokens]
    if ids.shape[1] < 2:
        raise OptionError(f"--text {name!r} has {ids.shape[1]} tokens; perplexity takes 2 or more")
    model = keywise.hf.use(loaded.model)
    exact, rounded = keywise.hf.Cache(model.config), keywise.hf.Cache(model.config, dtype="int8")
    losses, same, predicted = [0.0, 0.0], 0, ids.shape[1] - 1
    for start in range(0, predicted, CHUNK_TOKENS):
        chunk = slice(start, min(start + CHUNK_TOKENS, predicted))
        following = ids[0, chunk.start + 1 : chunk.stop + 1]
        with torch.no_grad():
            logits = [model(ids[:, chunk], past_key_values=cache).logits[0] for cache in (exact, rounded)]
        for which, found in enumerate(logits):
            losses[which] += torch.nn.functional.cross_entropy(found, following, reduction="sum").item()
        same += int((logits[0].argmax(-1) == logits[1].argmax(-1)).sum())
    yield {
        "text": name,
        "tokens": ids.shape[1],
        "perplexity": math.exp(losses[0] / predicted),
        "int8_perplexity": math.exp(losses[1] / predicted),
        "same_first_choice": same / predicted,
    }


def tables(runs: Sequence[Run]) -> str:
    """Write one table per run and task."""
    return "\n\n".join(_tables(run.results) for run in runs)


def _tables(results: Sequence[dict[str, Any]]) -> str:
    writers = {"question": _question_table, "step": _step_table, "int8": _int8_table, "perplexity": _perplexity_table}
    parts = [(write, [found for found in results if found["task"] == task]) for task, write in writers.items()]
    return "\n\n".join(write(those) for write, those in parts if those)


def _question_table(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    firsts: dict[str, float] = {}  # the first question's of every dtype, which comes before the second's
    for dtype, name in dict.fromkeys((found["dtype"], found["question"]) for found in results):
        asked = [found for found in results if (found["dtype"], found["question"]) == (dtype, name)]
        read, token = (statistics.median(found[what] for found in asked) for what in ("read_seconds", TOKEN))
        first = firsts.setdefault(dtype, token)
        tokens = [f"{asked[0][what]:,}" for what in ("document_tokens", "reused_tokens")]
        rows.append([name, dtype, *tokens, number(read), number(token), f"{token / first:.1%}"])
    columns = [
        "question",
        "dtype",
        "tokens of the document",
        "reused",
        "read after, s",
        "first token after, s",
        "of the first",
    ]
    return table(columns, rows)


def _step_table(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for found in results:
        for name in CACHES:
            what = f"{name}, {found['dtype']}"
            if name not in found["samples"]:
                rows.append([what, f"disagrees: {found['differences'][name]:.2g} of the largest logit", "", ""])
                continue
            rows.append(
                [
                    what,
                    number(statistics.median(found["samples"][name]) * 1e3),
                    f"{number(found['torch_bytes'][name] / 1e6)} MB",
                    f"{number(found['numpy_peak_bytes'][name] / 1e6)} MB",
                ]
            )
    past = ", ".join(dict.fromkeys(str(found["past_tokens"]) for found in results))
    columns = [f"decoding step after {past} tokens", "ms", "allocated by torch", "most at a time in NumPy"]
    return table(columns, rows)


def _int8_table(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for found in results:
        wide, narrow = (statistics.median(found["samples"][name]) / found["layers"] for name in ("bfloat16", "int8"))
        cells = [number(wide * 1e3), number(narrow * 1e3), f"{wide / narrow:.2f}", f"{found['difference']:.1%}"]
        rows.append([f"{found['shape']}, {found['keys']} keys", *cells])
    columns = ["decoding step, ms per layer", "bfloat16", "int8", "bfloat16 ÷ int8", "largest difference"]
    return table(columns, rows)


def _perplexity_table(results: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            found["text"],
            str(found["tokens"]),
            f"{found['perplexity']:.4f}",
            f"{found['int8_perplexity']:.4f}",
            f"{found['int8_perplexity'] / found['perplexity'] - 1:+.3%}",
            f"{found['same_first_choice']:.2%}",
        ]
        for found in results
    ]
    return table(["text", "tokens", "perplexity", "over int8", "change", "same first choice"], rows)
