"""Limits of what transformers may build from a configuration, enforced while it builds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from keywise.models.safetensors_files import HeaderSummary, ModelFileError

# Quantised weights pack up to eight elements in one; tied weights are counted twice.
MAX_GROWTH: Final = 16
SPARE_TENSORS: Final = 10_000
SPARE_ELEMENTS: Final = 1 << 26


@contextmanager
def limit_construction(headers: HeaderSummary) -> Iterator[None]:
    """Limit the tensors of modules that this thread builds inside a ``with`` block, by those that the files hold.

    transformers builds a model without memory first, and allocates afterwards what its files do not hold.

    Parameters
    ----------
    headers : HeaderSummary
        What the files hold.

    Raises
    ------
    ModelFileError
        The modules have far more tensors or elements than the files.
    """
    from torch.nn.modules import module

    max_tensors = MAX_GROWTH * headers.tensors + SPARE_TENSORS
    max_elements = MAX_GROWTH * headers.elements + SPARE_ELEMENTS
    thread = threading.get_ident()
    tensors = elements = 0

    def count(_module: Any, _name: str, tensor: Any) -> None:
        nonlocal tensors, elements
        # Weights that are loaded replace those without memory: they are not counted again.
        if tensor is None or not tensor.is_meta or threading.get_ident() != thread:
            return
        tensors += 1
        elements += tensor.numel()
        if tensors > max_tensors or elements > max_elements:
            raise ModelFileError(
                "config.json describes a model that is far larger than its weights: "
                f"{headers.tensors:,} tensors of {headers.elements:,} elements"
            )

    hooks = [
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
