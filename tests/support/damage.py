"""Damage to the files of models, and how keywise judges the damaged files.

``python -m tests.support.damage 100000`` damages so many files of each format and prints the figures.
"""

from __future__ import annotations

import collections
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from keywise.errors import ModelError
from keywise.models import load_model
from keywise.models.gguf_header import check_gguf
from keywise.models.safetensors_files import ModelFileError, summarise_headers
from tests.support.chat_models import write_chat_model
from tests.support.gguf_models import write_gguf

REFUSED = "refused"
RENAMED = "lacks a weight"
UNCHANGED = "read with the same tensors"
VALUES = "read with another fingerprint"
ACCEPTED = "accepted"
LOADED_SHARE = 0.02


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


def judge_safetensors(folder: Path, original: bytes, damaged: bytes) -> str:
    """Return what becomes of a folder with damaged weights."""
    path = folder / "model.safetensors"
    path.write_bytes(original)
    expected = summarise_headers({path.name: path})
    path.write_bytes(damaged)
    try:
        summary = summarise_headers({path.name: path})
    except ModelFileError:
        return REFUSED
    header_bytes = 8 + int.from_bytes(original[:8], "little")
    if damaged[:header_bytes] == original[:header_bytes]:
        return VALUES
    # Loading takes long: of the headers without a name that the model needs, a few are loaded.
    if expected.dtypes.keys() - summary.dtypes.keys() and random.random() > LOADED_SHARE:
        return RENAMED
    try:
        loaded = load_model(folder, dtype="float32")
    except ModelError:
        return REFUSED
    path.write_bytes(original)
    weights = load_model(folder, dtype="float32").model.state_dict()
    is_same = all(weights[name].equal(value) for name, value in loaded.model.state_dict().items())
    return UNCHANGED if is_same else ACCEPTED


def judge_gguf(path: Path, original: bytes, damaged: bytes) -> str:
    """Return what becomes of a damaged GGUF file; the converted model's fingerprint includes the file's digest."""
    path.write_bytes(original)
    expected = check_gguf(path)
    path.write_bytes(damaged)
    try:
        return VALUES if check_gguf(path) == expected else ACCEPTED
    except ModelFileError:
        return REFUSED


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


def main() -> None:
    """Damage as many files of each format as the argument says, and print the figures."""
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        for kind, counts in run_campaigns(Path(name), count).items():
            sys.stdout.write(f"{kind}: {dict(counts)}\n")


def run_campaigns(scratch: Path, count: int) -> dict[str, collections.Counter[str]]:
    """Damage files of both formats, and count the judgements."""
    folder = write_chat_model(scratch / "model", num_hidden_layers=1)
    safetensors = (folder / "model.safetensors").read_bytes()
    gguf_file = write_gguf(scratch / "model.gguf")
    gguf = gguf_file.read_bytes()
    header_bytes = 8 + int.from_bytes(safetensors[:8], "little")
    # The payload of the tiny file is float32 numbers of a known count.
    gguf_header_bytes = len(gguf) - 4 * check_gguf(gguf_file).elements
    return {
        "safetensors": run_campaign(
            count, safetensors, header_bytes, lambda damaged: judge_safetensors(folder, safetensors, damaged)
        ),
        "GGUF": run_campaign(count, gguf, gguf_header_bytes, lambda damaged: judge_gguf(gguf_file, gguf, damaged)),
    }


if __name__ == "__main__":
    main()
