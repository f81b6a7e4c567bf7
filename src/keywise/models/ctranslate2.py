"""Files of weights that CTranslate2 converts models to (``model.bin``): named arrays and aliases.

The file is read as data: nothing in it is run. ``ctranslate2/specs/model_spec.py`` of CTranslate2 writes it, in the
versions 4 to 6.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.models.safetensors_files import ModelFileError

MODEL_FILE: Final = "model.bin"
VERSIONS: Final = range(4, 7)
MAX_VARIABLES: Final = 1 << 16
MAX_AXES: Final = 8
# Codes of data types in the file.
_DTYPES: Final = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_SCALE: Final = "_scale"


@dataclass(frozen=True)
class StoredArray:
    """The place of an array in a file.

    Attributes
    ----------
    dtype
        NumPy's name of its data type.
    shape
        Its shape.
    offset_bytes
        Where it begins in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int


class Ct2File:
    """The arrays of a file by their names.

    Parameters
    ----------
    path : pathlib.Path
        The file ``model.bin``.

    Raises
    ------
    ModelFileError
        The file is no file of CTranslate2, is damaged, or of a version that is not known.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> Ct2File(Path("model.bin")).specification  # doctest: +SKIP
    'WhisperSpec'
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            version = _read_number(file, "I")
            if version not in VERSIONS:
                rule = f"must be a file of CTranslate2 of the versions {VERSIONS[0]} to {VERSIONS[-1]}"
                raise ModelFileError(f"{path.name} {rule}, got {version}")
            self.specification = _read_string(file)
            _read_number(file, "I")  # revision of the specification
            count = _read_number(file, "I")
            if count > MAX_VARIABLES:
                raise ModelFileError(f"{path.name} must have at most {MAX_VARIABLES:,} arrays, got {count:,}")
            self.arrays = dict(_read_place(file, size) for _ in range(count))
            for _ in range(_read_number(file, "I")):
                alias, name = _read_string(file), _read_string(file)
                if name not in self.arrays:
                    raise ModelFileError(f"{path.name} must hold {name!r:.80}, which {alias!r:.80} is an alias of")
                self.arrays[alias] = self.arrays[name]

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        """Return an array; integers with a scale are returned as float32 numbers.

        Parameters
        ----------
        name : str
            Its name, such as ``"encoder/conv1/weight"``.
        shape : tuple of int, optional
            The shape that it must have.

        Raises
        ------
        ModelFileError
            There is no such array, or it has another shape.
        """
        place = self.arrays.get(name)
        if place is None:
            raise ModelFileError(f"{self.path.name} must hold {name!r}")
        if shape is not None and place.shape != shape:
            raise ModelFileError(f"{name} of {self.path.name} must have the shape {shape}, got {place.shape}")
        values = self._map(place)
        if name + _SCALE not in self.arrays:
            return values
        scale = self._map(self.arrays[name + _SCALE]).astype(np.float32)
        return values.astype(np.float32) / scale.reshape(scale.shape + (1,) * (values.ndim - scale.ndim))

    def read_setting(self, name: str) -> int:
        """Return an integer that is stored as an array without axes.

        Parameters
        ----------
        name : str
            Its name, such as ``"encoder/num_heads"``.

        Raises
        ------
        ModelFileError
            There is no such number.
        """
        return int(self.read(name, ()))

    def _map(self, place: StoredArray) -> NDArray[Any]:
        count = math.prod(place.shape)
        return np.fromfile(self.path, place.dtype, count, offset=place.offset_bytes).reshape(place.shape)


def is_ct2_folder(folder: Path) -> bool:
    """Return whether a folder holds a model that CTranslate2 has converted.

    Parameters
    ----------
    folder : pathlib.Path
        A folder.
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4)
    return len(start) == 4 and struct.unpack("<I", start)[0] in VERSIONS


def _read_place(file: IO[bytes], size: int) -> tuple[str, StoredArray]:
    """Read the header of an array and skip its numbers."""
    name = _read_string(file)
    axes = _read_number(file, "B")
    if axes > MAX_AXES:
        raise ModelFileError(f"{name!r:.80} must have at most {MAX_AXES} axes, got {axes}")
    shape = tuple(_read_number(file, "I") for _ in range(axes))
    code = _read_number(file, "B")
    if code not in _DTYPES:
        raise ModelFileError(f"{name!r:.80} must have one of the data types {sorted(_DTYPES)}, got {code}")
    size_bytes = _read_number(file, "I")
    offset_bytes = file.tell()
    if math.prod(shape) * np.dtype(_DTYPES[code]).itemsize != size_bytes or offset_bytes + size_bytes > size:
        raise ModelFileError(f"{name!r:.80} must have the size of its shape {shape} and lie inside of the file")
    file.seek(size_bytes, 1)
    return name, StoredArray(_DTYPES[code], shape, offset_bytes)


def _read_number(file: IO[bytes], kind: str) -> int:
    count = struct.calcsize(f"<{kind}")
    content = file.read(count)
    if len(content) < count:
        raise ModelFileError(f"{MODEL_FILE} is cut short")
    return int(struct.unpack(f"<{kind}", content)[0])


def _read_string(file: IO[bytes]) -> str:
    length = _read_number(file, "H")
    content = file.read(length)
    if len(content) < length or not content.endswith(b"\0"):
        raise ModelFileError(f"{MODEL_FILE} must hold text that ends with a zero byte")
    try:
        return content[:-1].decode()
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{MODEL_FILE} must hold names in UTF-8") from error
