"""Damage to the files of models, and how keywise judges the damaged files.

``python -m tests.support.damaged_models gguf 25000 3`` damages so many files, from the third sequence of random
numbers, and prints the figures. What is read with the same tensors must have another fingerprint. It is computed for
every safetensors file, and for a share of the GGUF files, because these have to be converted first.
"""

from __future__ import annotations

import collections
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keywise.errors import ModelError
from keywise.models import fingerprint, load_model
from keywise.models.gguf_header import check_gguf
from keywise.models.safetensors_files import HeaderSummary, ModelFileError, summarise_headers
from tests.support.chat_models import write_chat_model
from tests.support.gguf_models import write_gguf

REFUSED = "refused"
RENAMED = "lacks a weight"
VALUES = "read with the same tensors and another fingerprint"
UNCHECKED = "read with the same tensors, fingerprint not computed"
SAME = "read with the same tensors and the same fingerprint"
ACCEPTED = "accepted"
LOADED_SHARE = 0.02
CONVERTED_SHARE = 0.05


def damage(content: bytes, generator: random.Random, header_bytes: int) -> bytes:
    """Return a damaged file; four of five are damaged in their header."""
    in_header = generator.random() < 0.8
    begin, end = (0, header_bytes) if in_header else (header_bytes, len(content))
    place = generator.randrange(begin, end)
    changed = bytearray(content)
    kind = generator.choice(["bit", "byte", "zeros", "cut", "insert", "delete", "swap", "word"])
    if kind == "bit":
        changed[place] ^= 1 << generator.randrange(8)
    elif kind == "byte":
        changed[place] = generator.randrange(256)
    elif kind == "zeros":
        changed[place : place + 8] = bytes(len(changed[place : place + 8]))
    elif kind == "cut":
        del changed[place:]
    elif kind == "insert":
        changed[place:place] = generator.randbytes(generator.randrange(1, 9))
    elif kind == "delete":
        del changed[place : place + generator.randrange(1, 9)]
    elif kind == "swap":
        other = generator.randrange(begin, end)
        changed[place], changed[other] = changed[other], changed[place]
    else:
        changed[place : place + 8] = generator.choice([2**31, 2**32 - 1, 2**63, 2**64 - 1]).to_bytes(8, "little")
    return bytes(changed)


def judge_safetensors(folder: Path, model: Any, known: dict[str, str], original: bytes, damaged: bytes) -> str:
    """Return what becomes of a folder with damaged weights, whose undamaged model and fingerprint are known."""
    path = folder / "model.safetensors"
    path.write_bytes(damaged)
    try:
        summary = summarise_headers({path.name: path})
    except ModelFileError:
        return REFUSED
    expected, found = parse_tensors(original), parse_tensors(damaged)
    if found == expected:
        # The undamaged model in memory has the fingerprint of the damaged file, if that of the file is not new.
        return VALUES if fingerprint(model, folder=folder, cache_dir=folder.parent / "cache") != known else SAME
    # Loading takes long: of the headers without a name that the model needs, a few are loaded.
    if expected.keys() - summary.dtypes.keys() and random.random() > LOADED_SHARE:
        return RENAMED
    try:
        load_model(folder, dtype="float32")
    except ModelError:
        return REFUSED
    return ACCEPTED


def parse_tensors(content: bytes) -> dict[str, object]:
    """Return the entries of the tensors in a header of safetensors."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header.pop("__metadata__", None)
    return dict(header)


def judge_gguf(path: Path, expected: HeaderSummary, known: dict[str, str], damaged: bytes) -> str:
    """Return what becomes of a damaged GGUF file, whose undamaged fingerprint is known."""
    path.write_bytes(damaged)
    try:
        has_same_tensors = check_gguf(path) == expected
        if has_same_tensors and random.random() > CONVERTED_SHARE:
            return UNCHECKED
        found = fingerprint_gguf(path)
    except (ModelFileError, ModelError):
        return REFUSED
    if not has_same_tensors:
        return ACCEPTED
    return VALUES if found != known else SAME


def fingerprint_gguf(path: Path) -> dict[str, str]:
    """Return the fingerprint of a GGUF file's model, which is converted and removed."""
    with tempfile.TemporaryDirectory() as cache:
        loaded = load_model(path, dtype="float32", cache_dir=cache)
        return fingerprint(loaded.model, loaded.tokenizer, folder=loaded.folder, weights_file=path, cache_dir=cache)


def run_campaign(
    count: int, original: bytes, header_bytes: int, judge: Callable[[bytes], str], *, seed: int = 0
) -> collections.Counter[str]:
    """Damage a file so often, and count the judgements; damage that changes nothing is drawn again."""
    generator = random.Random(seed)
    counts: collections.Counter[str] = collections.Counter()
    while counts.total() < count:
        damaged = damage(original, generator, header_bytes)
        if damaged != original:
            counts[judge(damaged)] += 1
    return counts


def damage_safetensors(scratch: Path, count: int, *, seed: int = 0) -> collections.Counter[str]:
    """Damage the weights of a tiny model, and count the judgements."""
    folder = write_chat_model(scratch / "model", num_hidden_layers=1)
    original = (folder / "model.safetensors").read_bytes()
    header_bytes = 8 + int.from_bytes(original[:8], "little")
    model = load_model(folder, dtype="float32").model
    known = fingerprint(model, folder=folder, cache_dir=folder.parent / "cache")
    return run_campaign(
        count,
        original,
        header_bytes,
        lambda damaged: judge_safetensors(folder, model, known, original, damaged),
        seed=seed,
    )


def damage_gguf(scratch: Path, count: int, *, seed: int = 0) -> collections.Counter[str]:
    """Damage a tiny GGUF file, and count the judgements."""
    path = write_gguf(scratch / "model.gguf")
    original, expected, known = path.read_bytes(), check_gguf(path), fingerprint_gguf(path)
    # The payload is float32 numbers.
    header_bytes = len(original) - 4 * expected.elements
    return run_campaign(
        count, original, header_bytes, lambda damaged: judge_gguf(path, expected, known, damaged), seed=seed
    )


FORMATS = {"safetensors": damage_safetensors, "gguf": damage_gguf}


def main() -> None:
    """Damage as many files of a format as the arguments say, and print the figures."""
    kind, count, *seeds = sys.argv[1:]
    seed = int(seeds[0]) if seeds else 0
    random.seed(seed)
    with tempfile.TemporaryDirectory() as name:
        counts = FORMATS[kind](Path(name), int(count), seed=seed)
    sys.stdout.write(f"{kind}: {dict(counts)}\n")


if __name__ == "__main__":
    main()
