"""Headers of GGUF files: every count, length, type and place is checked before it is used."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf", reason="knows GGML's types; it comes with keywise[hf]")

from keywise.models.gguf_header import check_gguf, write_without_vocabulary
from keywise.models.safetensors_files import ModelFileError

TEXT, ARRAY, WORD = 8, 9, 4


def encode_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def encode_entry(name: str, code: int, value: bytes) -> bytes:
    return encode_text(name) + struct.pack("<I", code) + value


def encode_tensor(name: str, shape: tuple[int, ...] = (4,), code: int = 0, begin: int = 0) -> bytes:
    return encode_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, code, begin)


ENTRIES = {
    "architecture": encode_entry("general.architecture", TEXT, encode_text("llama")),
    "blocks": encode_entry("llama.block_count", WORD, struct.pack("<I", 1)),
    "tokens": encode_entry("tokens", ARRAY, struct.pack("<IQ", TEXT, 2) + encode_text("a") + encode_text("b")),
}
TENSORS = {
    "norm": encode_tensor("blk.0.attn_norm.weight", (4,), begin=0),
    "output": encode_tensor("output_norm.weight", (4,), begin=32),
}


def write(
    path: Path, *, version: int = 3, counts: tuple[int, int] | None = None, payload: int = 64, **parts: bytes | None
) -> Path:
    """Write a file of a header and a payload of zeros; parts replace or remove entries and tensors."""
    entries = [value for name in ENTRIES if (value := parts.get(name, ENTRIES[name])) is not None]
    entries += [value for name, value in parts.items() if name.startswith("entry") and value is not None]
    tensors = [value for name in TENSORS if (value := parts.get(name, TENSORS[name])) is not None]
    header = (
        b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(entries)))) + b"".join(entries + tensors)
    )
    path.write_bytes(header + bytes(-len(header) % 32 + payload))
    return path


def test_a_valid_header_is_summarised(tmp_path: Path) -> None:
    summary = check_gguf(write(tmp_path / "model.gguf"))
    assert dict(summary.dtypes) == {"blk.0.attn_norm.weight": "F32", "output_norm.weight": "F32"}
    assert (summary.tensors, summary.elements, summary.largest_size) == (2, 8, 4)


def test_a_header_is_written_without_its_vocabulary(tmp_path: Path) -> None:
    strings = struct.pack("<IQ", TEXT, 3) + b"".join(map(encode_text, ("a", "bc", "def")))
    path = write(
        tmp_path / "model.gguf",
        entry0=encode_entry("tokenizer.ggml.tokens", ARRAY, strings),
        entry1=encode_entry("llama.sizes", ARRAY, struct.pack("<IQ2I", WORD, 2, 7, 9)),
        entry2=encode_entry("tokenizer.ggml.merges", ARRAY, struct.pack("<IQ", TEXT, 1) + encode_text("a b")),
        entry3=encode_entry("tokenizer.ggml.eos_token_id", WORD, struct.pack("<I", 2)),
    )
    short = tmp_path / "short.gguf"
    assert write_without_vocabulary(path, short) == (3, None)
    expected = write(
        tmp_path / "expected.gguf",
        entry1=encode_entry("llama.sizes", ARRAY, struct.pack("<IQ2I", WORD, 2, 7, 9)),
        entry3=encode_entry("tokenizer.ggml.eos_token_id", WORD, struct.pack("<I", 2)),
    )
    assert short.read_bytes() == expected.read_bytes()
    promising = write(tmp_path / "promising.gguf", entry=encode_entry("llama.vocab_size", WORD, struct.pack("<I", 5)))
    assert write_without_vocabulary(promising, short) == (0, 5)


HUGE = 2**63


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"version": 1}, "version must be 2 or 3"),
        ({"version": 3 << 24}, "version must be 2 or 3"),
        ({"counts": (HUGE, 0)}, "at most 65,536 tensors and entries"),
        ({"counts": (2, 2**32)}, "at most 65,536 tensors and entries"),
        ({"counts": (2, 4)}, "cut short|string|unknown type|UTF-8|dimensions"),
        ({"blocks": encode_entry("llama.block_count", WORD, struct.pack("<I", 2**31))}, "tensors of 2147483648 blocks"),
        ({"blocks": encode_entry("llama.block_count", 10, struct.pack("<Q", 2**64 - 1))}, "blocks"),
        ({"blocks": None}, "tensors of None blocks"),
        ({"architecture": None}, "does not name the architecture"),
        ({"entry": ENTRIES["tokens"]}, "repeats 'tokens'"),
        ({"entry": struct.pack("<Q", 2**62) + b"name"}, "must have at most 1,024 bytes"),
        ({"entry": struct.pack("<Q", 2) + b"\xff\xfe" + bytes(12)}, "no UTF-8"),
        ({"entry": encode_entry("a", TEXT, struct.pack("<Q", 2**62))}, "must have at most 1,048,576 bytes"),
        ({"entry": encode_entry("a", 13, bytes(8))}, "unknown type 13"),
        ({"entry": encode_entry("a", 6, struct.pack("<f", float("nan")))}, "NaN"),
        ({"entry": encode_entry("a", ARRAY, struct.pack("<IQ", 0, 2**60))}, "at most 2,097,152 elements"),
        ({"entry": encode_entry("a", ARRAY, struct.pack("<IQ", 0, 2**20))}, "cut short"),
        ({"entry": encode_entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1))}, "elements of the unknown type 9"),
        ({"entry": encode_entry("general.alignment", WORD, struct.pack("<I", 0))}, "power of two"),
        ({"entry": encode_entry("general.alignment", WORD, struct.pack("<I", 48))}, "power of two"),
        ({"entry": encode_entry("general.alignment", WORD, struct.pack("<I", 2**31))}, "power of two"),
        ({"output": encode_tensor("blk.0.attn_norm.weight", begin=32)}, "repeats the tensor"),
        ({"output": encode_tensor("output_nord.weight", begin=32)}, "unknown name"),
        ({"output": encode_tensor("output_norm.weighs", begin=32)}, "unknown name"),
        ({"output": encode_tensor("blk.7.attn_norm.weight", begin=32)}, "blocks"),
        ({"output": encode_tensor("output_norm.weight", (), begin=32)}, "1 to 4 dimensions"),
        ({"output": encode_tensor("output_norm.weight", (1,) * 5, begin=32)}, "1 to 4 dimensions"),
        ({"output": encode_tensor("output_norm.weight", (2**40, 2**40), begin=32)}, "behind its end"),
        ({"output": encode_tensor("output_norm.weight", (0,), begin=32)}, "damaged shape"),
        ({"output": encode_tensor("output_norm.weight", (4,), code=99, begin=32)}, "unknown type 99"),
        ({"output": encode_tensor("output_norm.weight", (4,), code=2, begin=32)}, "damaged shape"),
        ({"output": encode_tensor("output_norm.weight", (4,), begin=0)}, "must begin at byte 32"),
        ({"output": encode_tensor("output_norm.weight", (32,), code=1, begin=32), "payload": 160}, "160 bytes, got 96"),
        ({"payload": 128}, "must have 128 bytes, got 64"),
        ({"output": encode_tensor("output_norm.weight", (4,), begin=33)}, "damaged shape or place"),
        ({"output": encode_tensor("output_norm.weight", (4,), begin=64)}, "must begin at byte 32"),
        ({"output": encode_tensor("output_norm.weight", (4,), begin=2**63)}, "must begin at byte 32"),
    ],
)
def test_headers_out_of_bounds_are_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        check_gguf(write(tmp_path / "model.gguf", **parts))


def encode_split(part: int, parts: int, tensors: int) -> dict[str, bytes]:
    numbers = {"split.no": (2, "<H", part), "split.count": (2, "<H", parts), "split.tensors.count": (5, "<i", tensors)}
    return {
        f"entry {name}": encode_entry(name, code, struct.pack(layout, number))
        for name, (code, layout, number) in numbers.items()
    }


def write_parts(folder: Path, *, tensors: int = 2, norm: bytes | None = None) -> list[Path]:
    """Write a tensor each to two parts; `norm` replaces the name of the second."""
    output = norm or encode_tensor("output_norm.weight")
    return [
        write(folder / "1.gguf", payload=32, output=None, **encode_split(0, 2, tensors)),
        write(folder / "2.gguf", payload=32, norm=None, output=output, **encode_split(1, 2, tensors)),
    ]


def test_parts_are_summarised_together(tmp_path: Path) -> None:
    summary = check_gguf(*write_parts(tmp_path))
    assert [(tensor.name, tensor.part) for tensor in summary.places] == [
        ("blk.0.attn_norm.weight", 0),
        ("output_norm.weight", 1),
    ]


def test_parts_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="must have 3 tensors, got 2"):
        check_gguf(*write_parts(tmp_path, tensors=3))
    with pytest.raises(ModelFileError, match="two of its parts have a tensor of the same name"):
        check_gguf(*write_parts(tmp_path, norm=encode_tensor("blk.0.attn_norm.weight")))


@pytest.mark.parametrize("cut", [lambda content: b"", lambda content: b"GGUF", lambda content: b"x" + content[1:]])
def test_files_of_another_kind_are_refused(tmp_path: Path, cut: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path / "model.gguf")
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(ModelFileError):
        check_gguf(path)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", payload=48)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelFileError):
            check_gguf(path)
