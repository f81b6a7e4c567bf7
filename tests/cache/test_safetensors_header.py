"""Headers of safetensors files: ours are read by the package, the package's by us."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keywise.cache.safetensors_header import (
    CODES,
    DTYPES,
    LENGTH_WORD,
    PAGE_BYTES,
    HeaderError,
    TensorEntry,
    encode_header,
    parse_header,
    place_tensor,
)

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
LAYOUTS = st.lists(st.tuples(st.text(max_size=5), st.sampled_from(sorted(CODES)), SHAPES), max_size=6)
METADATA = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)


def place_all(layout: list[tuple[str, str, tuple[int, ...]]]) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    end = 0
    for name, dtype, shape in layout:
        if name not in tensors:
            tensors[name] = place_tensor(dtype, shape, end)
            end = tensors[name].end
    return tensors


@settings(max_examples=200, deadline=None, derandomize=True)
@given(layout=LAYOUTS, metadata=METADATA)
def test_encoded_headers_parse_to_the_same_and_open_with_the_package(
    layout: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    tensors = place_all([entry for entry in layout if entry[0] != "__metadata__"])
    data = encode_header(metadata, tensors)
    assert len(data) % PAGE_BYTES == 0
    assert parse_header(data[LENGTH_WORD.size :]) == (metadata, tensors)
    payload_bytes = max((tensor.end for tensor in tensors.values()), default=0)
    entries = dict(safetensors.deserialize(data + bytes(payload_bytes)))
    assert {name: (CODES[tensor.dtype], list(tensor.shape)) for name, tensor in tensors.items()} == {
        name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()
    }


def test_headers_of_the_package_are_parsed() -> None:
    arrays: dict[str, Any] = {
        "floats": np.ones((2, 3), np.float16),
        "flags": np.array([True]),
        "empty": np.zeros((0, 4), np.int64),
        "scalar": np.array(3.0),
    }
    data = safetensors.numpy.save(arrays, {"format": "pt"})
    length = LENGTH_WORD.unpack_from(data)[0]
    metadata, tensors = parse_header(data[LENGTH_WORD.size : LENGTH_WORD.size + length])
    assert metadata == {"format": "pt"}
    assert tensors.keys() == arrays.keys()
    payload = data[LENGTH_WORD.size + length :]
    for name, array in arrays.items():
        entry = tensors[name]
        stored = np.frombuffer(payload[entry.begin : entry.end], DTYPES[entry.dtype]).reshape(entry.shape)
        np.testing.assert_array_equal(stored, array)


def test_bfloat16_is_the_packages_bfloat16() -> None:
    import safetensors.torch

    data = safetensors.torch.save({"x": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)})
    length = LENGTH_WORD.unpack_from(data)[0]
    _, tensors = parse_header(data[LENGTH_WORD.size : LENGTH_WORD.size + length])
    assert tensors == {"x": TensorEntry("bfloat16", (2,), 0, 4)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the header must be JSON"),
        (b"[]", "the header must be an object"),
        (b"3", "the header must be an object"),
        (b'{"__metadata__":[]}', "__metadata__ must be an object of strings"),
        (b'{"__metadata__":{"a":1}}', "__metadata__ must be an object of strings"),
        (b'{"__metadata__":{"a":null}}', "__metadata__ must be an object of strings"),
        (b'{"x":1}', "tensor 'x' must have dtype, shape and data_offsets"),
        (b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "tensor 'x' must begin at byte 0, got 4"),
        ('{"x":1}'.encode("utf-16"), "the header must be JSON"),
        (b'\xef\xbb\xbf{"x":1}', "the header must be JSON"),
    ],
)
def test_other_texts_are_refused(text: bytes, message: str) -> None:
    with pytest.raises(HeaderError, match=f"^has an invalid header: {message}"):
        parse_header(text)
