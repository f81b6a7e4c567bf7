"""Train a translator twice, plain and with guided attention, and show which source words each target word used.

python examples/translator/translator.py --steps 700
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from language import Pair, draw_pairs
from model import Translator
from training import GUIDED_SHARE, Errors, choose_head, decode_words, encode_sources, measure_errors, train

CHOICE_PAIRS = 200
"""Pairs with known alignments by which a head is chosen."""


def show_translation(model: Translator, pair: Pair, head: int) -> None:
    """Print the source words that each target word used, with their weights."""
    numbers, mass = model.translate(encode_sources([pair.source]))
    words = decode_words(numbers[0])
    print(f"{' '.join(pair.source)}\n{' '.join(words)}")
    for word, weights in zip(words, mass[0, head], strict=False):
        shares, positions = torch.topk(weights, min(2, len(pair.source)))
        used = [
            f"{pair.source[position]} {share:.0%}"
            for share, position in zip(shares.tolist(), positions.tolist(), strict=True)
            if share >= 0.1
        ]
        print(f"  {word:<8} {', '.join(used)}")


def show_errors(errors: dict[str, Errors]) -> None:
    """Print the errors of each training as a table."""
    print(f"{'':<8} {'exact match':>12} {'alignment error':>16}")
    for name, each in errors.items():
        print(f"{name:<8} {each.exact_match:>12.1%} {each.alignment_error:>16.1%}")


def main(arguments: Sequence[str] | None = None) -> dict[str, Errors]:
    """Train, translate held-out sentences and print the results."""
    parser = argparse.ArgumentParser(description="Train a translator with and without guided attention.")
    parser.add_argument("--pairs", type=int, default=20_000, help="training pairs (default 20000)")
    parser.add_argument("--held-out", type=int, default=500, help="pairs that are only translated (default 500)")
    parser.add_argument("--steps", type=int, default=700, help="training steps of 64 pairs (default 700)")
    options = parser.parse_args(arguments)
    pairs = draw_pairs(options.pairs + options.held_out, seed=0)
    held_out, training_pairs = pairs[: options.held_out], pairs[options.held_out :]
    known_pairs = training_pairs[: min(CHOICE_PAIRS, int(len(training_pairs) * GUIDED_SHARE))]
    errors: dict[str, Errors] = {}
    for name in ("plain", "guided"):
        print(f"{name} training on {len(training_pairs)} pairs")
        model = train(
            training_pairs, steps=options.steps, guided=name == "guided", report=lambda line: print("  " + line)
        )
        head = choose_head(model, known_pairs)
        errors[name] = measure_errors(model, held_out, head)
        print()
        show_translation(model, held_out[1], head)
        print()
    show_errors(errors)
    return errors


if __name__ == "__main__":
    torch.set_num_threads(1)  # two threads lose more time by waiting than products of this size take
    main()
