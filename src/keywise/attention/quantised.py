"""Matrices whose weights stay in the blocks of a GGUF file, and products with them.

The blocks are described at https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.attention import native
from keywise.attention.targets import REFERENCE, choose_target, get_num_threads
from keywise.errors import OptionError

# The number of each format among GGML's types, and the elements and bytes of a block.
BLOCK_FORMATS: Final = {
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ4_NL": (20, 32, 18),
}


class QuantisedMatrix:
    """A matrix whose weights stay in blocks, and are unpacked where they are multiplied.

    Parameters
    ----------
    blocks
        uint8 array [rows, bytes of a row], contiguous. It is not copied and must not change.
    block_format
        A name in `BLOCK_FORMATS`.

    Attributes
    ----------
    blocks : ndarray
        The blocks.
    block_format : str
        Their format.
    shape : tuple of int
        (rows, columns).

    Raises
    ------
    OptionError
        The format is unknown, or the rows are not whole blocks.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.quantised import QuantisedMatrix
    >>> block = np.concatenate([np.array([0.5], np.float16).view(np.uint8), np.arange(32, dtype=np.uint8)])
    >>> matrix = QuantisedMatrix(np.stack([block, block]), "Q8_0")
    >>> matrix.shape, float(matrix.multiply(np.ones((1, 1, 1, 32), np.float32))[0, 0, 0, 1])
    ((2, 32), 248.0)
    """

    def __init__(self, blocks: NDArray[np.uint8], block_format: str) -> None:
        if block_format not in BLOCK_FORMATS:
            raise OptionError("block_format", f"must be one of {', '.join(BLOCK_FORMATS)}", got=block_format)
        number, elements, block_bytes = BLOCK_FORMATS[block_format]
        if blocks.ndim != 2 or not blocks.shape[1] or blocks.shape[1] % block_bytes:
            rule = f"must be rows of whole blocks of {block_bytes} bytes"
            raise OptionError("blocks", rule, got=blocks.shape)
        self.blocks = blocks
        self.block_format = block_format
        self.shape = blocks.shape[0], blocks.shape[1] // block_bytes * elements
        self._native = native.QuantisedMatrix(blocks, number, self.shape[1])

    def __reduce__(self) -> tuple[type[QuantisedMatrix], tuple[NDArray[np.uint8], str]]:
        return QuantisedMatrix, (self.blocks, self.block_format)

    def multiply(self, inputs: Any) -> Any:
        """Return the product of some rows and the transpose of the matrix.

        Up to 31 rows are rounded to 16 bits with a scale per 16 or 32 numbers. More rows are rounded to 15 bits with a
        scale per 256 numbers, and weights of formats of 32 elements to 13 bits. Sums are float32. The result has the
        same bits on any number of threads. A number that is not finite makes all results of its row NaN.

        Parameters
        ----------
        inputs
            Contiguous array [1, 1, n, columns] of float32, bfloat16 or float16.

        Returns
        -------
        array [1, 1, n, rows] of the dtype and library of `inputs`
        """
        return self._native.multiply(inputs, _choose_target(), get_num_threads())

    def write_weights(self, first_row: int, last_row: int, output: NDArray[np.uint8], dtype: str) -> None:
        """Write the weights of some rows into a buffer.

        Parameters
        ----------
        first_row, last_row
            The rows, the last one excluded.
        output
            uint8 array [bytes] with room for them.
        dtype
            ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        """
        self._native.write_weights(first_row, last_row, output, dtype, _choose_target(), get_num_threads())


def _choose_target() -> str:
    name = choose_target("float32")
    # The reference defines attention; it has no product with blocks of its own.
    return "portable" if name == REFERENCE else name
