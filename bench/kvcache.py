"""What keeping keys and values costs and saves.

`python bench/kvcache.py` times decoding steps over a cache in bfloat16 and in int8, a step of a 30-layer model with and
without the cache around it, and saving, opening and first using a file. `python bench/kvcache.py --text FILE` says
instead what int8 does to the default model's perplexity and logits on the first 4000 tokens of a text.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import keywise as kw
from keywise.cache import file

# Query heads, key heads, head_dim.
SHAPES = {
    "Llama-3-8B": (32, 8, 128),
    "Llama-3.2-1B": (32, 8, 64),
    "OLMo-1B, no groups": (16, 16, 128),
    "SmolLM2-135M": (9, 3, 64),
}
KEYS = 32768
DIFFERENT_BYTES = 2**28
"""Layers are taken in turns until their bfloat16 keys and values are this many bytes: no cache of a CPU holds them."""


def milliseconds(work: Callable[[], Any], repeats: int = 7) -> float:
    """Give the median time of some runs, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def filled(layers: int, heads: int, tokens: int, width: int, dtype: str | None = None) -> kw.KVCache:
    """Give a cache of random bfloat16 keys and values."""
    cache = kw.KVCache(layers, dtype=dtype)
    random_numbers = torch.Generator().manual_seed(0)
    for layer in range(layers):
        key, value = (torch.randn(1, heads, tokens, width, generator=random_numbers).to(torch.bfloat16) for _ in (0, 1))
        cache.append(layer, key, value)
    return cache


def decoding() -> None:
    print(f"one decoding step over {KEYS} keys, milliseconds per layer")
    for name, (query_heads, key_heads, width) in SHAPES.items():
        layers = max(1, DIFFERENT_BYTES // (4 * key_heads * KEYS * width))
        query = torch.randn(1, query_heads, 1, width, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        took = []
        for dtype in (None, "int8"):
            cache = filled(layers, key_heads, KEYS, width, dtype)
            steps = milliseconds(lambda: [cache.attend(layer, query) for layer in range(layers)])  # noqa: B023
            took.append(steps / layers)
        print(f"  {name:<20} bfloat16 {took[0]:6.2f}   int8 {took[1]:6.2f}   {took[0] / took[1]:.2f} times as fast")


def steps() -> None:
    query_heads, heads, width = SHAPES["SmolLM2-135M"]
    cache = filled(30, heads, 8000, width)
    query = torch.randn(1, query_heads, 1, width).to(torch.bfloat16)
    token = torch.randn(1, heads, 1, width).to(torch.bfloat16)
    arrays = [
        [torch.from_numpy(side.data.copy()).view(torch.bfloat16) for side in cache.pieces(0)[0]] for _ in range(30)
    ]

    def step() -> None:
        for layer in range(30):
            cache.append(layer, token, token)
            cache.attend(layer, query)

    bare = milliseconds(lambda: [kw.attend(query, *pair) for pair in arrays])
    print(
        f"30 layers of SmolLM2-135M at 8000 tokens: attention {bare:.2f} ms, "
        f"append and attention {milliseconds(step):.2f} ms"
    )
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    step()
    print(
        f"  a step allocates {(tracemalloc.get_traced_memory()[1] - before) / 1024:.0f} KiB at most at a time, in NumPy"
    )
    tracemalloc.stop()


def files() -> None:
    _, heads, width = SHAPES["SmolLM2-135M"]
    cache, ids = filled(30, heads, 4000, width), np.arange(4000)
    query = torch.randn(1, 9, 1, width).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache"
        start = time.perf_counter()
        file.save(path, cache, fingerprint={}, token_ids=ids)
        saved = time.perf_counter()
        opened = file.open(path, {})
        mapped = time.perf_counter()
        for layer in range(30):
            opened.cache.attend(layer, query)
        used = time.perf_counter()
        print(
            f"4000 tokens of SmolLM2-135M in bfloat16, {path.stat().st_size / 2**20:.0f} MiB, "
            "the file in the page cache:"
        )
        print(
            f"  saved in {saved - start:.3f} s, opened in {1000 * (mapped - saved):.1f} ms, "
            f"verified and attended to in {1000 * (used - mapped):.0f} ms"
        )


def perplexity(text: Path, tokens: int) -> None:
    """Compare a float32 model over its own keys and values with itself over those rounded to int8."""
    from transformers import AttentionInterface, AttentionMaskInterface

    from keywise.attention.arrays import take
    from keywise.cache.quantised import quantised
    from keywise.hf.attention import forward
    from keywise.hf.masks import make_mask
    from keywise.hf.models import load_model

    def rounded(module: Any, query: Any, key: Any, value: Any, *arguments: Any, **options: Any) -> Any:
        pair = [
            torch.from_numpy(quantised(name, take(name, array)).floats(np.float32))
            for name, array in (("key", key), ("value", value))
        ]
        return forward(module, query, *pair, *arguments, **options)

    AttentionInterface.register("exact", forward)
    AttentionInterface.register("int8", rounded)
    loaded = load_model()
    model = loaded.model.float()
    ids = loaded.tokenizer(text.read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :tokens]
    logits = {}
    for name in ("exact", "int8"):
        AttentionMaskInterface.register(name, make_mask)
        model.set_attn_implementation(name)
        with torch.no_grad():
            logits[name] = model(ids).logits[0, :-1].float()
    losses = {name: float(torch.nn.functional.cross_entropy(found, ids[0, 1:])) for name, found in logits.items()}
    exact, int8 = (np.exp(losses[name]) for name in ("exact", "int8"))
    difference = logits["int8"] - logits["exact"]
    same = float((logits["int8"].argmax(-1) == logits["exact"].argmax(-1)).float().mean())
    print(f"{ids.shape[1]} tokens: perplexity {exact:.4f}, over int8 {int8:.4f} ({100 * (int8 / exact - 1):+.3f} %)")
    print(
        f"  logits differ by {difference.pow(2).mean().sqrt():.4f} (root mean square; they spread by "
        f"{logits['exact'].std():.2f}), at most {difference.abs().max():.3f}; "
        f"the first choice is the same in {same:.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="threads of keywise (default: as keywise does)")
    parser.add_argument("--text", type=Path, help="measure what int8 does to the default model on this text")
    parser.add_argument("--tokens", type=int, default=4000, help="tokens of the text (default 4000)")
    arguments = parser.parse_args()
    kw.set_threads(arguments.threads)
    if arguments.text is not None:
        perplexity(arguments.text, arguments.tokens)
        return
    decoding()
    steps()
    files()


if __name__ == "__main__":
    main()
