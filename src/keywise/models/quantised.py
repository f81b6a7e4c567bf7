"""Layers whose weights stay in the blocks of a GGUF file.

Rows are multiplied by the blocks themselves, which costs little more than reading them. Only where the CPU multiplies
bfloat16 directly, and for gradients, some rows of the matrix at a time become ordinary numbers in a buffer that all
layers share, which torch multiplies.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from keywise.attention.quantised import BLOCK_FORMATS, QuantisedMatrix
from keywise.errors import DtypeError, ModelError
from keywise.models.safetensors_files import ModelFileError

# From so many rows on, torch multiplies bfloat16 where the CPU has instructions for it. Layers of Qwen2.5 0.5B on a CPU
# with AMX, two threads: 24 rows take 22 ms by torch and 17 by the kernel, 32 rows 20 and 34.
MIN_TORCH_ROWS: Final = 32
# Weights that are written out at a time; they stay in the last cache until they are multiplied.
BUFFER_BYTES: Final = 1 << 24

_DTYPES: Final = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_buffers = threading.local()


class QuantisedLinear(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
    """A linear layer that multiplies by a matrix in blocks.

    Gradients reach its inputs; the matrix has none.

    Parameters
    ----------
    matrix
        The weights, [out_features, in_features].
    bias
        Tensor [out_features] or None.

    Attributes
    ----------
    matrix : QuantisedMatrix
        The weights.
    in_features, out_features : int
        As in `torch.nn.Linear`.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from keywise.attention.quantised import BLOCK_FORMATS, QuantisedMatrix
    >>> from keywise.models.quantised import QuantisedLinear
    >>> layer = QuantisedLinear(QuantisedMatrix(np.zeros((4, 34), np.uint8), "Q8_0"), None)
    >>> layer(torch.ones(2, 32)).shape
    torch.Size([2, 4])
    """

    def __init__(self, matrix: QuantisedMatrix, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.out_features, self.in_features = matrix.shape
        self.register_parameter("bias", bias)

    def extra_repr(self) -> str:
        """Return the sizes and the format of the blocks."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, block_format={self.matrix.block_format}"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the product with the transpose of the matrix, plus the bias."""
        if torch.is_grad_enabled() and input.requires_grad:
            output = _Product.apply(input, self.matrix)
        else:
            output = _multiply(input, self.matrix)
        return output if self.bias is None else output.add_(self.bias)

    def _save_to_state_dict(self, *_arguments: Any, **_options: Any) -> None:
        raise _refuse_saving()


class QuantisedEmbedding(torch.nn.Module):  # type: ignore[misc]
    """An embedding whose rows lie in blocks.

    Parameters
    ----------
    matrix
        The rows, [num_embeddings, embedding_dim].
    dtype
        Data type of the result.
    """

    def __init__(self, matrix: QuantisedMatrix, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = matrix
        self.num_embeddings, self.embedding_dim = matrix.shape
        # Holds no numbers: it follows the model's changes of dtype.
        self.register_buffer("_like", torch.empty(0, dtype=dtype), persistent=False)

    def extra_repr(self) -> str:
        """Return the sizes and the format of the blocks."""
        return f"{self.num_embeddings}, {self.embedding_dim}, block_format={self.matrix.block_format}"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the rows of some token ids."""
        numbers = input.reshape(-1).numpy()
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < self.num_embeddings:
            raise IndexError(
                f"token ids must be 0 to {self.num_embeddings - 1}, got {numbers.min()} to {numbers.max()}"
            )
        rows = expand(QuantisedMatrix(self.matrix.blocks[numbers], self.matrix.block_format), self._like.dtype)
        return rows.view(*input.shape, self.embedding_dim)

    def _save_to_state_dict(self, *_arguments: Any, **_options: Any) -> None:
        raise _refuse_saving()


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """A product whose backward pass writes the weights out once more."""

    @staticmethod
    def forward(context: Any, input: torch.Tensor, matrix: QuantisedMatrix) -> torch.Tensor:
        context.matrix = matrix
        return _multiply(input.detach(), matrix)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        matrix = context.matrix
        rows = gradient.reshape(-1, matrix.shape[0])
        total = rows.new_zeros(rows.shape[0], matrix.shape[1])
        for begin, weights in _write_panels(matrix, rows.dtype):
            total.addmm_(rows[:, begin : begin + len(weights)], weights)
        return total.view(*gradient.shape[:-1], matrix.shape[1]), None


def replace_layer(model: torch.nn.Module, name: str, matrix: QuantisedMatrix, dtype: torch.dtype) -> None:
    """Replace a linear layer or an embedding by one with a matrix in blocks.

    Parameters
    ----------
    model
        The model, changed in place.
    name
        Name of the layer in the model.
    matrix
        The weights.
    dtype
        Data type of an embedding's result.
    """
    parent, _, child = name.rpartition(".")
    layer = model.get_submodule(name)
    new: torch.nn.Module
    if isinstance(layer, torch.nn.Embedding):
        new = QuantisedEmbedding(matrix, dtype)
    else:
        new = QuantisedLinear(matrix, layer.bias)
    setattr(model.get_submodule(parent), child, new.eval())


def quantise_layers(model: Any, block_format: str) -> None:
    """Replace a model's linear layers and embeddings by ones whose weights are rounded to blocks.

    Layers that share a weight share the blocks.

    Parameters
    ----------
    model
        A model of transformers, changed in place.
    block_format
        ``"Q4_1"`` or ``"Q8_0"``.

    Raises
    ------
    ModelFileError
        The size of a layer is no multiple of the weights of a block.
    """
    matrices: dict[int, QuantisedMatrix] = {}
    for name, layer in list(model.named_modules()):
        # A subclass may use its weight in another way.
        if type(layer) in (torch.nn.Linear, torch.nn.Embedding):
            address = layer.weight.data_ptr()
            if address not in matrices:
                matrices[address] = quantise(name, layer.weight.detach().float().numpy(), block_format)
            replace_layer(model, name, matrices[address], layer.weight.dtype)


def quantise(name: str, weights: NDArray[np.float32], block_format: str) -> QuantisedMatrix:
    """Round weights to blocks.

    Parameters
    ----------
    name
        Name of the layer, for errors.
    weights
        float32 array [rows, columns].
    block_format
        ``"Q4_1"`` or ``"Q8_0"``.

    Raises
    ------
    ModelFileError
        The columns are no multiple of the weights of a block.
    """
    from gguf import GGMLQuantizationType, quants

    elements = BLOCK_FORMATS[block_format][1]
    if weights.shape[1] % elements:
        rule = f"must be a multiple of the {elements} weights of a block, got {weights.shape[1]:,}"
        raise ModelFileError(f"the input size of {name!r} {rule}")
    return QuantisedMatrix(quants.quantize(weights, GGMLQuantizationType[block_format]), block_format)


def expand(matrix: QuantisedMatrix, dtype: torch.dtype) -> torch.Tensor:
    """Return the weights of a matrix as a tensor.

    Parameters
    ----------
    matrix
        The matrix.
    dtype
        float32, bfloat16 or float16.
    """
    weights = torch.empty(matrix.shape, dtype=dtype)
    matrix.write_weights(0, matrix.shape[0], view_bytes(weights), _DTYPES[dtype])
    return weights


def view_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return the memory of a contiguous tensor as uint8 array [bytes]."""
    array: NDArray[np.uint8] = tensor.view(-1).view(torch.uint8).numpy()
    return array


def _multiply(input: torch.Tensor, matrix: QuantisedMatrix) -> torch.Tensor:
    if input.dtype not in _DTYPES:
        raise DtypeError("input", "must be of float32, bfloat16 or float16", got=input.dtype)
    rows = input.reshape(1, 1, -1, matrix.shape[1]).contiguous()
    count = rows.shape[2]
    if count >= MIN_TORCH_ROWS and input.dtype is torch.bfloat16 and _multiplies_bfloat16():
        output = rows.new_empty(count, matrix.shape[0])
        for begin, weights in _write_panels(matrix, rows.dtype):
            torch.mm(rows[0, 0], weights.t(), out=output[:, begin : begin + len(weights)])
    else:
        output = matrix.multiply(rows)
    return output.view(*input.shape[:-1], matrix.shape[0])


@functools.cache
def _multiplies_bfloat16() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _write_panels(matrix: QuantisedMatrix, dtype: torch.dtype) -> Any:
    """Yield the number of the first row of each part of a matrix, and its weights in the buffer of this thread."""
    buffer = vars(_buffers).get(_DTYPES[dtype])
    if buffer is None:
        buffer = torch.empty(BUFFER_BYTES // dtype.itemsize, dtype=dtype)
        setattr(_buffers, _DTYPES[dtype], buffer)
    rows, columns = matrix.shape
    if columns > buffer.numel():
        buffer = torch.empty(columns, dtype=dtype)
    step = buffer.numel() // columns
    output = view_bytes(buffer)
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        matrix.write_weights(begin, end, output, _DTYPES[dtype])
        yield begin, buffer[: (end - begin) * columns].view(end - begin, columns)


def _refuse_saving() -> ModelError:
    return ModelError(
        "model",
        "must have ordinary weights to be saved; this one has the blocks of a GGUF file",
        remedy="load it with weights='expanded'",
    )
