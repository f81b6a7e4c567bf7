"""Headers of a model's safetensors files: sizes, places and names are checked before transformers opens them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from keywise.models.safetensors_files import ModelFileError, summarise_headers

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(path: Path, header: Any, payload: int = 24) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(payload))
    return path


def test_headers_of_the_package_are_summarised(tmp_path: Path) -> None:
    arrays = {"a": np.ones((2, 5), np.float32), "b": np.ones((0, 3), np.int64), "c": np.ones((), np.float16)}
    save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "pt"})
    write(tmp_path / "b.safetensors", {"d": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, 2)
    files = {name: tmp_path / name for name in ("a.safetensors", "b.safetensors")}
    summary = summarise_headers(files)
    assert dict(summary.dtypes) == {"a": "F32", "b": "I64", "c": "F16", "d": "F4"}
    assert (summary.elements, summary.largest_size) == (15, 5)


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        (b"", 0),
        (b"[", 0),
        ([], 0),
        (b"[" * 100_000, 0),
        ({"a": ENTRY}, 23),
        ({"a": ENTRY}, 25),
        ({"a": {**ENTRY, "shape": [2, 4]}}, 24),
        ({"a": {**ENTRY, "shape": [2**40, 2**40]}}, 24),
        ({"a": {**ENTRY, "shape": [-2, -3]}}, 24),
        ({"a": {**ENTRY, "shape": [True, 6]}}, 24),
        ({"a": {**ENTRY, "shape": [1] * 100 + [6]}}, 24),
        ({"a": {**ENTRY, "dtype": "F31"}}, 24),
        ({"a": {**ENTRY, "dtype": ["F32"]}}, 24),
        ({"a": {**ENTRY, "data_offsets": [0, 24, 24]}}, 24),
        ({"a": {**ENTRY, "data_offsets": [24, 48]}}, 48),
        ({"a": {**ENTRY, "data_offsets": [2**70, 2**70 + 24]}}, 24),
        ({"a": {**ENTRY, "more": 1}}, 24),
        ({"a": ENTRY, "b": ENTRY}, 24),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [25, 49]}}, 49),
        (f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY)}}}'.encode(), 24),
        ({"a": ENTRY, "__metadata__": {"format": 1}}, 24),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, header: Any, payload: int) -> None:
    with pytest.raises(ModelFileError, match=r"^m\.safetensors "):
        summarise_headers({"m.safetensors": write(tmp_path / "m.safetensors", header, payload)})


@pytest.mark.parametrize("content", [b"", b"\0" * 7, struct.pack("<Q", 2**63), struct.pack("<Q", 2**64 - 1) + b"{}"])
def test_lengths_beyond_the_file_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"too short|cut short"):
        summarise_headers({"m.safetensors": tmp_path / "m.safetensors"})
