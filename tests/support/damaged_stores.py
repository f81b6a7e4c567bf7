"""Damaged copies of keywise's own files: every copy that differs must be refused, or read as if it did not.

`python -m tests.support.damaged_stores --count 100000` damages cache files, the files of libraries and tuned heads.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import keywise as kw
from keywise.cache import file
from keywise.cache.safetensors_header import LENGTH_WORD
from keywise.documents.heads import LEXICAL, Heads
from keywise.errors import FormatError, KeywiseError
from keywise.library import checksums
from tests.support.library_tools import WordEncoder, write_documents

Random = np.random.Generator

BLOCK_BYTES = 512


def flip_bit(data: bytearray, random: Random) -> None:
    """Change one bit."""
    data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))


def truncate(data: bytearray, random: Random) -> None:
    """Remove the end."""
    del data[int(random.integers(len(data))) :]


def extend(data: bytearray, random: Random) -> None:
    """Append zeros or other bytes."""
    data += random.choice([bytes(1), bytes(4096), random.bytes(int(random.integers(1, 100)))])


def zero_block(data: bytearray, random: Random) -> None:
    """Overwrite a block by zeros."""
    begin = int(random.integers(len(data)))
    length = min(int(random.integers(1, BLOCK_BYTES)), len(data) - begin)
    data[begin : begin + length] = bytes(length)


def fill_block(data: bytearray, random: Random) -> None:
    """Overwrite a block by other bytes."""
    begin = int(random.integers(len(data)))
    length = min(int(random.integers(1, BLOCK_BYTES)), len(data) - begin)
    data[begin : begin + length] = random.bytes(length)


def swap_blocks(data: bytearray, random: Random) -> None:
    """Exchange two blocks of one length."""
    length = int(random.integers(1, max(min(BLOCK_BYTES, len(data) // 2), 2)))
    first, second = sorted(int(place) for place in random.integers(max(len(data) - length, 1), size=2))
    if second - first >= length:
        left, right = data[first : first + length], data[second : second + length]
        data[first : first + length] = right
        data[second : second + length] = left


def remove_bytes(data: bytearray, random: Random) -> None:
    """Remove bytes in the middle."""
    begin = int(random.integers(len(data)))
    del data[begin : begin + int(random.integers(1, 64))]


def edit_digits(data: bytearray, random: Random) -> None:
    """Change a digit near the start, as an editor of a header would; checksums stay."""
    digits = [place for place, byte in enumerate(data[:8192]) if 48 <= byte < 58]
    if digits:
        data[int(random.choice(digits))] = 48 + int(random.integers(10))


def edit_header(data: bytearray, random: Random) -> None:
    """Change a size, an offset or a name in the header of a safetensors file; checksums stay."""
    header_bytes = LENGTH_WORD.size + LENGTH_WORD.unpack_from(data)[0]
    root = json.loads(data[LENGTH_WORD.size : header_bytes])
    names = [name for name in root if name != "__metadata__"]
    entry = root[str(random.choice(names))]
    change = int(random.integers(4))
    if change == 0:
        entry["shape"][int(random.integers(len(entry["shape"])))] = int(random.integers(1, 2**40))
    elif change == 1:
        entry["data_offsets"][int(random.integers(2))] = int(random.integers(2**40))
    elif change == 2:
        entry["dtype"] = str(random.choice(["F32", "F16", "I8", "BF16", "I64"]))
    else:
        root["__metadata__"][str(random.choice(list(root["__metadata__"])))] = "0"
    text = json.dumps(root, separators=(",", ":")).encode()
    data[LENGTH_WORD.size : header_bytes] = text.ljust(header_bytes - LENGTH_WORD.size)[
        : header_bytes - LENGTH_WORD.size
    ]


def edit_json_entry(data: bytearray, random: Random) -> None:
    """Change a number, a text or a list of a JSON file, or remove an entry, and write it as before; checksums stay."""
    root = json.loads(data)
    entries = [(root, name) for name in root] + [(root["heads"], name) for name in root["heads"]]
    container, name = entries[int(random.integers(len(entries)))]
    values = (0, 1, -1, 0.5, 10**30, None, True, "", "0", [], [[0, 0]], {}, container[name])
    if random.integers(4):
        container[name] = values[int(random.integers(len(values)))]
    else:
        del container[name]
    data[:] = json.dumps(root, indent=1).encode() + b"\n"


def edit_space(data: bytearray, random: Random) -> None:
    """Add or remove white space, which means nothing in JSON."""
    places = [place for place, byte in enumerate(data) if byte in b" \n,:"]
    place = int(random.choice(places))
    if random.integers(2):
        data[place + 1 : place + 1] = random.choice([b" ", b"\n", b"\t"])
    elif data[place] in b" \n":
        del data[place]


DAMAGES: tuple[Callable[[bytearray, Random], None], ...] = (
    flip_bit,
    truncate,
    extend,
    zero_block,
    fill_block,
    swap_blocks,
    remove_bytes,
    edit_digits,
)


def damage(data: bytes, random: Random, damages: tuple[Callable[[bytearray, Random], None], ...]) -> bytes:
    """Return a copy with one damage."""
    changed = bytearray(data)
    if changed:
        damages[int(random.integers(len(damages)))](changed, random)
    return bytes(changed)


def make_cache_file(path: Path) -> None:
    """Write a cache of two layers, one of them with a window, and extra arrays."""
    random = np.random.default_rng(0)
    cache = kw.KVCache(layers=2, windows=[None, 9])
    for tokens in (20, 7):
        for layer in (0, 1):
            cache.append(layer, *(random.normal(size=(1, 2, tokens, 8)).astype(np.float32) for _ in "kv"))
    extra = {"mass": random.random((2, 5)), "text": np.frombuffer(b"The lamp is lit.", np.uint8)}
    file.save(path, cache, fingerprint={"weights": "1f"}, token_ids=np.arange(27), extra=extra)


def read_cache_file(path: Path) -> list[bytes]:
    """Return all that a file holds, as a user reads it."""
    opened = file.open(path, {"weights": "1f"})
    arrays = [opened.header.token_ids, opened.header.positions, *(opened.extra[name] for name in sorted(opened.extra))]
    arrays += [side.data for layer in (0, 1) for chunk in opened.cache.chunks(layer) for side in chunk]
    return [np.ascontiguousarray(array).tobytes() for array in arrays]


def damage_cache_files(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Damage a cache file many times, and count what becomes of the copies.

    Raises
    ------
    AssertionError
        A damaged file was read with another content.
    """
    random = np.random.default_rng(seed)
    path = folder / "cache"
    make_cache_file(path)
    intact = path.read_bytes()
    expected = read_cache_file(path)
    ends: Counter[str] = Counter()
    for number in range(count):
        content = damage(intact, random, (*DAMAGES, edit_header))
        path.write_bytes(content)
        try:
            actual = read_cache_file(path)
        except FormatError:
            ends["refused"] += 1
            continue
        assert actual == expected, f"damage {number} of seed {seed} was accepted"
        ends["unchanged" if content == intact else "same content"] += 1
    return ends


def make_heads(path: Path) -> Heads:
    """Write a file of tuned heads and return them."""
    powers = {LEXICAL: {"matching": 1.5, "copying": 0.25, "previous": 0.5, "lexical": 1.25, "paragraph_lexical": 4.0}}
    matching, copying = ((3, 0), (4, 7), (11, 2)), ((5, 1),)
    heads = Heads(matching, copying, powers, {}, answer_sentences=1, tuned_on="questions.json, 10 questions")
    heads.save(path, model="tiny", weights="files: 1f", architecture="llama")
    return heads


def damage_tuned_heads(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Damage a file of tuned heads many times, and count what becomes of the copies.

    Raises
    ------
    AssertionError
        A file that differs in any byte was accepted.
    """
    random = np.random.default_rng(seed)
    path = folder / "heads.json"
    expected = make_heads(path)
    intact = path.read_bytes()
    ends: Counter[str] = Counter()
    for number in range(count):
        content = damage(intact, random, (*DAMAGES, edit_json_entry, edit_space))
        path.write_bytes(content)
        try:
            actual = Heads.load(path)
        except FormatError:
            ends["refused"] += 1
            continue
        assert content == intact, f"damage {number} of seed {seed} was accepted"
        assert actual == expected
        ends["unchanged"] += 1
    return ends


def make_library(path: Path) -> kw.Library:
    """Create a library with two commits, deleted rows and an index."""
    documents = write_documents(path.parent / "documents", 30)
    library = kw.Library.open(path, "a", encoder=WordEncoder(), dtype="float32")
    library.add(documents[:20])
    library.add(documents[20:])
    library.remove([documents[3]])
    library.index(num_partitions=2)
    return library


def read_library(path: Path) -> Any:
    """Return what a library says, as a user reads it."""
    library = kw.Library.open(path, encoder=WordEncoder())
    hits = [(hit.text, hit.document, hit.weight) for hit in library.search("Who keeps the lamp of house 7?", top=5)]
    filtered = library.attend("Ann", where="sentence = 1", values="start", top=3)
    nearest = library.attend("Ann", approximate=True, candidates=5, top=2)
    values = [filtered.value.tolist(), filtered.rows.tolist(), nearest.rows.tolist(), nearest.lse.tolist()]
    return library.documents(), hits, values, library.temperature


def verify_library(path: Path, names: list[str]) -> None:
    """Make the checks that precede every use of a library, without Lance."""
    root = str(path)
    latest = checksums.find_latest_version(root)
    assert latest is not None
    checksums.verify_manifest(root, latest)
    for name in names:
        checksums.verify_file(root, name)


def damage_libraries(folder: Path, count: int, seed: int = 0, *, through_lance: bool = False) -> Counter[str]:
    """Damage the files of a library many times, and count what becomes of the copies.

    A copy that passes the checks which precede every use is read through Lance. With `through_lance` all copies are
    read as a user reads them.

    Raises
    ------
    AssertionError
        A damaged library was read with another content.
    """
    random = np.random.default_rng(seed)
    path = folder / "library"
    library = make_library(path)
    expected = read_library(path)
    names = checksums.list_dataset_files(str(path), library.dataset)
    manifests = checksums.name_manifests(library.version)
    used = [path / name for name in (*names, *manifests) if (path / name).exists()]
    records = [path / checksums.CHECKSUM_FOLDER / f"{each.relative_to(path)}.json" for each in used]
    paths = [*used, *used, *used, *records, path / "_versions" / "latest_version_hint.json"]
    intact = {each: each.read_bytes() for each in paths}
    ends: Counter[str] = Counter()
    for number in range(count):
        target = paths[int(random.integers(len(paths)))]
        content = damage(intact[target], random, DAMAGES)
        if content == intact[target]:
            ends["unchanged"] += 1
            continue
        target.write_bytes(content)
        try:
            if not through_lance:
                verify_library(path, names)
            actual = read_library(path)
        except KeywiseError:
            ends["refused"] += 1
        else:
            assert actual == expected, f"damage {number} of seed {seed} to {target} was accepted"
            ends["same content"] += 1
        finally:
            target.write_bytes(intact[target])
    return ends


def main() -> None:
    """Damage files and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="damages of each format")
    parser.add_argument("--through-lance", type=int, default=200, help="libraries that Lance opens in any case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="*", help="parts of their names; default all")
    arguments = parser.parse_args()
    runs: dict[str, Callable[[Path], Counter[str]]] = {
        "cache files": lambda folder: damage_cache_files(folder, arguments.count, arguments.seed),
        "libraries": lambda folder: damage_libraries(folder, arguments.count, arguments.seed),
        "libraries, opened by Lance": lambda folder: damage_libraries(
            folder, arguments.through_lance, arguments.seed, through_lance=True
        ),
        "tuned heads": lambda folder: damage_tuned_heads(folder, arguments.count, arguments.seed),
    }
    for name, run in runs.items():
        if arguments.formats and not any(part in name for part in arguments.formats):
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            ends = run(Path(folder))
        print(f"{name}: {dict(ends)} in {time.perf_counter() - start:.0f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
