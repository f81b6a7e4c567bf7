"""Weights of GGUF files, loaded into models of transformers.

A matrix whose rows keep their order, or change places as a whole, stays in the blocks of the file. All others become
ordinary numbers, in the way in which transformers reads GGUF files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from keywise.attention.quantised import BLOCK_FORMATS, QuantisedMatrix
from keywise.hf.compatibility import find_gguf_processor, keeps_rows, map_gguf_names
from keywise.models.construction import limit_construction
from keywise.models.gguf_header import GgufSummary, GgufTensor
from keywise.models.quantised import QuantisedEmbedding, expand, quantise, replace_layer
from keywise.models.safetensors_files import ModelFileError

_PLAIN: Final = {"F32": "<f4", "F16": "<f2"}
# Tensors of a file that transformers computes from the configuration.
_IGNORED: Final = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")


def build_gguf_model(
    files: tuple[Path, ...],
    header: GgufSummary,
    config: Any,
    dtype: torch.dtype,
    *,
    block_format: str | None = "as-is",
) -> Any:
    """Build a causal language model and load its weights from a GGUF file.

    Parameters
    ----------
    files
        The file, or its parts in order.
    header
        From `check_gguf`.
    config
        The configuration that transformers reads from the file.
    dtype
        Data type of the computation and of weights that are not in blocks.
    block_format
        Format of the blocks of linear layers and embeddings: ``"as-is"`` keeps those of the file, None writes all
        weights out as numbers, and a name of a format rounds to its blocks.

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode.

    Raises
    ------
    ModelFileError
        A tensor has no place in the model, does not fit there, or is missing.
    """
    from transformers import AutoModelForCausalLM

    with ThreadPoolExecutor(torch.get_num_threads()) as executor:
        # The file is read while transformers imports the model's code.
        contents = executor.map(partial(_read_tensor, files), header.places)
        with limit_construction(header), _without_memory():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        processor = find_gguf_processor(header.architecture, config)
        names = map_gguf_names(model, processor, [name for name in header.dtypes if not name.startswith(_IGNORED)])
        loader = _Loader(model, processor, names, dtype, block_format)
        for tensor, content in zip(header.places, contents, strict=True):
            loader.load(tensor, content)
    loader.finish()
    return model.eval()


def _read_tensor(files: tuple[Path, ...], tensor: GgufTensor) -> NDArray[np.uint8]:
    """Return the bytes of a tensor [rows, bytes of a row]."""
    content = np.fromfile(files[tensor.part], np.uint8, tensor.size_bytes, offset=tensor.begin_bytes)
    if content.size != tensor.size_bytes:
        raise ModelFileError(f"it is cut short: tensor {tensor.name!r:.80} lies behind its end")
    return content.reshape(math.prod(tensor.shape[:-1]), -1)


@contextmanager
def _without_memory() -> Iterator[None]:
    """Replace parameters that this thread builds by ones without memory; buffers stay."""
    from torch.nn.modules import module

    def replace(_module: Any, _name: str, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        return torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = module.register_module_parameter_registration_hook(replace)
    try:
        yield
    finally:
        hook.remove()


@dataclass
class _Loader:
    """Puts tensors into a model."""

    model: Any
    processor: Any
    names: dict[str, str]
    dtype: torch.dtype
    block_format: str | None
    # Parameters that are put together from several tensors, such as those of experts.
    parsed: dict[str, Any] = field(default_factory=lambda: {"tensors": {}})

    def load(self, tensor: GgufTensor, content: NDArray[np.uint8]) -> None:
        """Put a tensor into its place in the model."""
        name = self.names.get(tensor.name)
        module_name, _, parameter_name = (name or "").rpartition(".")
        if parameter_name == "weight":
            module = self.model.get_submodule(module_name)
            matrix = self._make_matrix(tensor, content, module)
            if matrix is not None:
                replace_layer(self.model, module_name, matrix, self.dtype)
                return
        processed = self._process(self._expand(tensor, content), tensor.name)
        if processed.name is None:
            return  # it is part of a parameter of several tensors
        name = self.names.get(processed.name)
        if name is not None:
            self._set_parameter(name, torch.from_numpy(processed.weights))
        elif not tensor.name.startswith(_IGNORED):
            raise ModelFileError(f"{type(self.model).__name__} has no place for its tensor {tensor.name!r:.80}")

    def _set_parameter(self, name: str, weights: torch.Tensor) -> None:
        module_name, _, parameter_name = name.rpartition(".")
        module = self.model.get_submodule(module_name)
        expected = tuple(getattr(module, parameter_name).shape)
        if weights.shape != expected:
            raise ModelFileError(
                f"its tensor for {name!r:.80} must have the shape {expected}, got {tuple(weights.shape)}"
            )
        # A model with blocks cannot be trained as a whole.
        parameter = torch.nn.Parameter(weights.to(self.dtype), requires_grad=self.block_format is None)
        setattr(module, parameter_name, parameter)

    def finish(self) -> None:
        """Tie the output layer to the embedding where the configuration says so; refuse a model that lacks weights."""
        for name, weights in self.parsed["tensors"].items():
            self._set_parameter(name, weights)
        output, embedding = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        if self.model.config.get_text_config().tie_word_embeddings:
            if isinstance(embedding, QuantisedEmbedding):
                replace_layer(self.model, _find_name(self.model, output), embedding.matrix, self.dtype)
            else:
                output.weight = embedding.weight
        missing = [name for name, parameter in self.model.named_parameters() if parameter.is_meta]
        if missing:
            raise ModelFileError(f"its tensors lack {', '.join(missing[:3])} of {type(self.model).__name__}")

    def _make_matrix(self, tensor: GgufTensor, content: NDArray[np.uint8], module: Any) -> QuantisedMatrix | None:
        """Return a matrix in blocks for a layer; None if the layer must have ordinary numbers."""
        is_layer = type(module) in (torch.nn.Linear, torch.nn.Embedding)
        if self.block_format is None or not is_layer or tuple(module.weight.shape) != tensor.shape:
            return None
        if self.block_format != "as-is":
            weights = self._process(self._expand(tensor, content), tensor.name).weights
            return quantise(tensor.name, weights, self.block_format)
        order = self._find_order(tensor) if tensor.block_format in BLOCK_FORMATS else None
        if order is None:
            return None
        is_kept = np.array_equal(order, np.arange(len(order)))
        return QuantisedMatrix(content if is_kept else content[order], tensor.block_format)

    def _find_order(self, tensor: GgufTensor) -> NDArray[np.int64] | None:
        """Return which row of a matrix goes where; None if more than the order of the rows changes."""
        if not keeps_rows(self.processor):
            return None
        numbers = np.arange(tensor.shape[0], dtype=np.float64)
        order: NDArray[Any] = self._process(numbers[:, None], tensor.name).weights
        if order.shape != (len(numbers), 1) or not np.array_equal(np.sort(order[:, 0]), numbers):
            return None
        return order[:, 0].astype(np.int64)

    def _process(self, weights: NDArray[Any], name: str) -> Any:
        """Return weights as the model's own code expects them, with the name of their tensor."""
        return self.processor.process(
            weights=weights, name=name, tensor_key_mapping=self.names, parsed_parameters=self.parsed
        )

    def _expand(self, tensor: GgufTensor, content: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the numbers of a tensor."""
        if tensor.block_format in _PLAIN:
            numbers = content.view(_PLAIN[tensor.block_format]).astype(np.float32)
        elif tensor.block_format in BLOCK_FORMATS:
            numbers = expand(QuantisedMatrix(content, tensor.block_format), torch.float32).numpy()
        else:
            from gguf import GGMLQuantizationType
            from gguf.quants import dequantize

            try:
                numbers = dequantize(content, GGMLQuantizationType[tensor.block_format])
            except NotImplementedError as error:
                rule = f"tensor {tensor.name!r:.80} has the type {tensor.block_format}, which cannot be read"
                raise ModelFileError(rule) from error
        return np.ascontiguousarray(numbers).reshape(tensor.shape)


def _find_name(model: Any, module: Any) -> str:
    return str(next(name for name, inner in model.named_modules() if inner is module))
