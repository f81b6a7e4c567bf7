"""Peak memory of a forward pass with readings on every layer, against transformers' sdpa without any.

Each way runs in a process of its own: `python bench/memory.py [--tokens 4096] [--model M] [--json]`. Freed tensors
leave holes in glibc's heap, so the peak of one and the same pass without readings differs from run to run; with
MALLOC_MMAP_THRESHOLD_=65536 in the environment it does not.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

WAYS = {
    "sdpa": "transformers sdpa, no readings",
    "plain": "keywise, no readings",
    "mass": "keywise, key mass, entropy and lse on every layer",
    "full": "keywise, key mass, entropy, lse, top 8 and 64 segments on every layer",
}


def measure(way: str, tokens: int, model_name: str | None) -> dict[str, Any]:
    """Run one forward pass and report the growth of this process's peak memory over the loaded model."""
    import torch

    import keywise.hf
    from keywise.hf.models import load_model

    model = load_model(model_name).model
    if way != "sdpa":
        keywise.hf.use(model)
    else:
        model.set_attn_implementation("sdpa")
    ids = torch.randint(100, 10000, (1, tokens), generator=torch.Generator().manual_seed(0))
    segments = [tokens * i // 64 for i in range(65)] if way == "full" else None
    with torch.no_grad():
        model(ids[:, :64])
        loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        if way in ("mass", "full"):
            with keywise.hf.reading(model, top=8 if way == "full" else 0, segments=segments) as readings:
                model(ids)
            assert len(readings) == model.config.num_hidden_layers
        else:
            model(ids)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"way": way, "tokens": tokens, "seconds": seconds, "loaded_bytes": loaded * 1024, "peak_bytes": peak * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--model", help="model to load (default: the default model)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.tokens, options.model)))
        return
    results = []
    for way, what in WAYS.items():
        command = [sys.executable, __file__, "--way", way, "--tokens", str(options.tokens)]
        command += ["--model", options.model] if options.model else []
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        results.append(json.loads(line))
        above = results[-1]["peak_bytes"] - results[0]["peak_bytes"]
        if not options.json:
            peak = results[-1]["peak_bytes"] / 1e9
            print(f"{what:<70} {results[-1]['seconds']:7.1f} s  peak {peak:.2f} GB  {above / 1e9:+.2f} GB against sdpa")
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
