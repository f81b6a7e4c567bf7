"""Headers of GGUF files: the tensors that the package gguf finds, or `ModelFileError`."""

import tempfile
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from keywise.models.gguf_header import check_gguf
from keywise.models.safetensors_files import ModelFileError
from keywise.util.foreign_errors import translate_errors
from tests.fuzz.targets.files import MemoryFile

_FILE = MemoryFile()
# Fewer bits for an element than any type of GGML has.
_LEAST_BITS = 1


class _OtherReaderError(Exception):
    """Report a file that the package gguf does not read."""


def make_seeds() -> list[bytes]:
    """Return small files with entries of every type."""
    with tempfile.TemporaryDirectory() as folder:
        return [
            _write(Path(folder) / "small.gguf", "F32", 1),
            _write(Path(folder) / "large.gguf", "Q8_0", 2),
        ]


def execute(data: bytes) -> None:
    """Check a header."""
    path = Path(_FILE.replace(data))
    try:
        summary = check_gguf(path)
    except ModelFileError:
        return
    assert summary.elements * _LEAST_BITS <= 8 * len(data), "tensors are larger than the file"
    try:
        with translate_errors(_OtherReaderError):
            tensors = GGUFReader(path).tensors
    except _OtherReaderError:
        return
    assert {tensor.name: tensor.tensor_type.name for tensor in tensors} == summary.dtypes
    assert sum(int(tensor.n_elements) for tensor in tensors) == summary.elements


def _write(path: Path, dtype: str, blocks: int) -> bytes:
    """Return a file with every type of entry and a tensor per block."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(blocks)
    writer.add_custom_alignment(64)
    for name, add in _list_entries(writer).items():
        add(f"a.{name}")
    for block in range(blocks):
        raw_dtype = gguf.GGMLQuantizationType[dtype]
        array = np.zeros((2, 34), np.uint8) if dtype == "Q8_0" else np.ones((2, 3), np.float32)
        writer.add_tensor(f"blk.{block}.attn_q.weight", array, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _list_entries(writer: Any) -> dict[str, Any]:
    return {
        "bool": lambda name: writer.add_bool(name, True),
        "float": lambda name: writer.add_float32(name, 0.5),
        "double": lambda name: writer.add_float64(name, 0.5),
        "int": lambda name: writer.add_int64(name, -3),
        "byte": lambda name: writer.add_uint8(name, 3),
        "text": lambda name: writer.add_string(name, "é"),
        "texts": lambda name: writer.add_array(name, ["a", "", "é"]),
        "numbers": lambda name: writer.add_array(name, [1, 2, 3]),
    }
