"""Files of CTranslate2: arrays inside of the file, or `ModelFileError`."""

import math
import tempfile
from pathlib import Path

import numpy as np

from keywise.models.ctranslate2 import Ct2File
from keywise.models.safetensors_files import ModelFileError
from tests.fuzz.targets.files import MemoryFile
from tests.support.speech import write_ct2

_FILE = MemoryFile()


def make_seeds() -> list[bytes]:
    """Return files with every data type, and with an alias."""
    arrays = {
        "encoder/weight": np.arange(6, dtype=np.int8).reshape(2, 3),
        "encoder/weight_scale": np.array([2.0, 4.0], np.float32),
        "decoder/heads": np.array(6, np.int16),
        "decoder/bias": np.ones(3, np.float16),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bin"
        seeds = []
        for version in (4, 6):
            write_ct2(path, arrays, {"projection": "encoder/weight"}, version=version)
            seeds.append(path.read_bytes())
    return seeds


def execute(data: bytes) -> None:
    """Read the header, and every array of it."""
    path = Path(_FILE.replace(data))
    try:
        file = Ct2File(path)
    except ModelFileError:
        return
    for name, place in file.arrays.items():
        size = math.prod(place.shape) * np.dtype(place.dtype).itemsize
        assert place.offset_bytes + size <= len(data), "an array lies outside of the file"
        if f"{name}_scale" not in file.arrays:
            assert file.read(name).shape == place.shape
