"""What keywise's cache saves: `python bench/cache.py [--tokens 4000] [--past 8000] [--dtype float32] [--json]`.

Questions about a document of so many tokens, the first and the second each in a process of its own: seconds from the
loaded model to the answer's first token, reading included. Then decoding steps after a past of so many tokens, with
keywise's cache and with transformers' DynamicCache, both with keywise's attention: seconds and bytes allocated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

QUESTIONS = ("Which lamp is lit?", "Who lit the last lamp?")
STEPS = 15


def ask(tokens: int, cache_dir: str, question: str) -> dict[str, Any]:
    """Read a document and ask; give the seconds until it was read and until the first token."""
    from keywise.documents import Reader
    from keywise.hf.models import load_model

    loaded = load_model()
    text = " ".join(f"Keeper {number} lit the lamp number {number * 7 % 1000}." for number in range(tokens))
    offsets = loaded.tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    start = time.perf_counter()
    reader = Reader(loaded, cache_dir)
    document = reader.read(text[: offsets[tokens - 1][1]])
    read = time.perf_counter()
    first: list[float] = []
    document.ask(question, max_tokens=1, on_token=lambda _: first.append(time.perf_counter()))
    return {
        "document_tokens": document.tokens,
        "reused_tokens": document.reused_tokens,
        "read_seconds": read - start,
        "first_token_seconds": first[0] - start,
    }


def decode(past: int, dtype: str) -> dict[str, Any]:
    """Time decoding steps in turn, one with each cache, so that what else the machine does meets both."""
    import torch
    from transformers import DynamicCache

    import keywise.hf
    from keywise.hf.models import load_model

    model = keywise.hf.use(load_model().model).to(getattr(torch, dtype))
    config = model.config
    shape = (1, past, config.num_key_value_heads, config.head_dim)
    generator = torch.Generator().manual_seed(0)
    caches = {"dynamic": DynamicCache(config=config), "keywise": keywise.hf.Cache(config)}
    for layer in range(config.num_hidden_layers):
        key, value = (torch.randn(shape, generator=generator).to(model.dtype).transpose(1, 2) for _ in range(2))
        for cache in caches.values():
            cache.update(key, value, layer)
    caches["keywise, forked"] = caches["keywise"].fork()

    def step(cache: Any) -> float:
        start = time.perf_counter()
        model(torch.tensor([[100]]), past_key_values=cache, use_cache=True)
        return time.perf_counter() - start

    with torch.no_grad():
        seconds = [{name: step(cache) for name, cache in caches.items()} for _ in range(STEPS + 3)][3:]
        found = {}
        for name, cache in caches.items():
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as run:
                step(cache)
            found[name] = {
                "median_seconds": statistics.median(step[name] for step in seconds),
                "least_seconds": min(step[name] for step in seconds),
                "allocated_bytes": sum(max(event.self_cpu_memory_usage, 0) for event in run.events()),
            }
    return {"past_tokens": past, "dtype": dtype, "steps": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--past", type=int, default=8000)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of decoding")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(json.dumps(ask(options.tokens, *options.ask)))
        return
    with tempfile.TemporaryDirectory() as cache_dir:
        asked = []
        for question in QUESTIONS:
            command = [sys.executable, __file__, "--tokens", str(options.tokens), "--ask", cache_dir, question]
            line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            asked.append(json.loads(line))
    decoded = decode(options.past, options.dtype)
    if options.json:
        print(json.dumps({"asked": asked, "decoded": decoded}, indent=2))
        return
    for name, found in zip(("first", "second"), asked, strict=True):
        print(
            f"{name} question: {found['document_tokens']} tokens, {found['reused_tokens']} of them reused; read after "
            f"{found['read_seconds']:.3f} s, first token after {found['first_token_seconds']:.3f} s"
        )
    print(f"second / first: {asked[1]['first_token_seconds'] / asked[0]['first_token_seconds']:.1%}")
    for name, found in decoded["steps"].items():
        print(
            f"a step at {options.past} tokens, {options.dtype}, {name}: median {found['median_seconds'] * 1e3:.1f} ms, "
            f"least {found['least_seconds'] * 1e3:.1f} ms, {found['allocated_bytes'] / 1e6:,.1f} MB allocated"
        )


if __name__ == "__main__":
    main()
