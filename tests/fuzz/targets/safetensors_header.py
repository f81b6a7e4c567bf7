"""Headers of safetensors files of models: the tensors that the package safetensors finds, or `ModelFileError`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from keywise.models.safetensors_files import ModelFileError, summarise_headers
from keywise.util.foreign_errors import translate_errors
from tests.fuzz.targets.choices import ODD_VALUES, Bytes, edit_json
from tests.fuzz.targets.files import MemoryFile

_FILE = MemoryFile()
_EDITED = b"\xff"
"""First byte of inputs that edit the JSON of a header; as the length of a header it would be far too long."""
_HEADER = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c.bias": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
    "d": {"dtype": "F8_E4M3", "shape": [0, 7], "data_offsets": [40, 40]},
}
_VALUES = (*ODD_VALUES, *range(0, 48, 4), "F4", "F16", "F64", "U8", "BOOL", "C64", [24], [3, 2], [0, 24], [24, 40])


class _OtherReaderError(Exception):
    """Report a file that the package safetensors does not read."""


def make_seeds() -> list[bytes]:
    """Return whole files and edits of a header."""
    random_numbers = np.random.default_rng(0)
    arrays = {"x": np.ones((2, 3), np.float32), "y": np.ones((0, 2), np.int8), "z": np.ones((), np.float16)}
    whole = [save(arrays, metadata={"format": "np"}), save({}), _encode(_HEADER)]
    edits = [_EDITED + random_numbers.integers(0, 256, 16, dtype=np.uint8).tobytes() for _ in range(20)]
    return [*whole, *edits]


def execute(data: bytes) -> None:
    """Check a header."""
    content = _encode(edit_json(_HEADER, Bytes(data[1:]), values=_VALUES)) if data.startswith(_EDITED) else data
    path = Path(_FILE.replace(content))
    try:
        summary = summarise_headers({"model.safetensors": path})
    except ModelFileError:
        return
    assert 4 * summary.elements <= 8 * len(content), "tensors are larger than the file"
    try:
        with translate_errors(_OtherReaderError), safe_open(path, "np") as opened:
            found = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            dtypes = {name: tensor.get_dtype() for name, tensor in found.items()}
            elements = sum(int(np.prod(tensor.get_shape(), dtype=object)) for tensor in found.values())
    except _OtherReaderError:
        return
    assert dtypes == summary.dtypes
    assert elements == summary.elements


def _encode(header: Any) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + bytes(40)
