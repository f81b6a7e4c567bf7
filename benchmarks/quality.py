"""How far next-token distributions of a GGUF model in blocks are from those of its weights as float32 numbers."""

# ruff: noqa: PLC0415  (torch, transformers and llama_cpp are slow to import, or absent: only the measuring process does)

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.markdown import format_table
from benchmarks.model import LLAMA
from benchmarks.processes import run_in_process
from benchmarks.results import Run
from keywise.errors import OptionError
from keywise.models import find_model

WINDOW_TOKENS = 512
EXPANDED, PROMPT, TOKEN = "float32 numbers", "keywise, as a prompt", "keywise, token by token"


def measure(model: str | None, text: Path, tokens: int, threads: int) -> Iterator[dict[str, Any]]:
    """Compare distributions over a text, in a process of its own.

    Parameters
    ----------
    model
        A GGUF file; None for the default model.
    text
        A text file.
    tokens
        Number of tokens to read, in windows of 512.
    threads
        Number of threads.

    Yields
    ------
    dict
        For each way to compute: mean KL divergence from float32 numbers in nats, and perplexity.
    """
    yield from run_in_process(_measure, model, text.read_text(encoding="utf-8"), tokens, threads, threads=threads)


def _measure(name: str | None, text: str, tokens: int, threads: int) -> Iterator[dict[str, Any]]:
    import torch

    from keywise.models import load_model

    path = find_model(name).path
    if path is None or path.suffix != ".gguf":
        raise OptionError("model", "must be a GGUF file", got=name)
    expanded = load_model(path, weights="expanded", dtype="float32")
    in_blocks = load_model(path, dtype="float32").model
    ids = expanded.tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
    ways: dict[str, Callable[[Sequence[int]], Any]] = {
        EXPANDED: lambda window: _run_prompt(expanded.model, window),
        PROMPT: lambda window: _run_prompt(in_blocks, window),
        TOKEN: lambda window: _run_tokens(in_blocks, window),
    }
    if find_spec("llama_cpp") is not None:
        ways[LLAMA] = _prepare_llama(str(path), threads)
    divergence = dict.fromkeys(ways, 0.0)
    surprise = dict.fromkeys(ways, 0.0)
    count = 0
    for begin in range(0, len(ids) - 1, WINDOW_TOKENS):
        window = ids[begin : begin + WINDOW_TOKENS]
        following = torch.tensor(window[1:])
        expected = None
        for way, run in ways.items():
            with torch.inference_mode():
                found = run(window)[:-1].float().log_softmax(-1)
                expected = found if expected is None else expected
                divergence[way] += float((expected.exp() * (expected - found)).sum())
                surprise[way] -= float(found.gather(1, following[:, None]).sum())
        count += len(following)
    for way in ways:
        perplexity = float(torch.tensor(surprise[way] / count).exp())
        yield {
            "way": way,
            "model": path.stem,
            "tokens": count,
            "kl_nats": divergence[way] / count,
            "perplexity": perplexity,
        }


def _run_prompt(model: Any, window: Sequence[int]) -> Any:
    import torch

    return model(torch.tensor([window])).logits[0]


def _run_tokens(model: Any, window: Sequence[int]) -> Any:
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    rows = [model(torch.tensor([[token]]), past_key_values=cache).logits[0] for token in window]
    return torch.cat(rows)


def _prepare_llama(path: str, threads: int) -> Callable[[Sequence[int]], Any]:
    import llama_cpp
    import numpy as np
    import torch

    llama = llama_cpp.Llama(
        path, n_ctx=WINDOW_TOKENS, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False
    )

    def run(window: Sequence[int]) -> Any:
        llama.reset()
        llama.eval(list(window))
        return torch.from_numpy(np.array(llama.scores[: len(window)]))

    return run


def format_tables(runs: Sequence[Run]) -> str:
    """Format one table per model."""
    results = [result for run in runs for result in run.results]
    parts = []
    for model in dict.fromkeys(result["model"] for result in results):
        members = [result for result in results if result["model"] == model]
        rows = [[each["way"], f"{each['kl_nats']:.2e}", f"{each['perplexity']:.3f}"] for each in members]
        parts += [f"**{model}**, {members[0]['tokens']:,} tokens", format_table(["", "KL, nats", "perplexity"], rows)]
    return "\n\n".join(parts)
