"""Linear layers that also store their weights in oneDNN's layout."""

from __future__ import annotations

import functools
from typing import Any

# oneDNN chooses the layout for this number of input rows; inputs of any number of rows work with it.
_LAYOUT_ROWS = 64


def pack_linear_layers(model: Any) -> None:
    """Pack the weights of a model's bfloat16 linear layers for oneDNN.

    The layers also store their weights in oneDNN's layout and multiply by this copy; torch alone reorders the weights
    at every call. The layers' own weights stay. A layer uses them again when they change (except by ``weight.data``,
    whose changes torch does not report), where gradients are recorded, and when it is compiled. Nothing happens where
    torch has no oneDNN, or oneDNN does not multiply bfloat16 on this CPU.

    Parameters
    ----------
    model : torch.nn.Module
        A model on the CPU. It is changed in place and needs the memory of its linear layers' weights twice.

    Examples
    --------
    >>> import torch
    >>> from keywise.models.packed_linear import pack_linear_layers
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32, dtype=torch.bfloat16))
    >>> rows = torch.randn(3, 64, dtype=torch.bfloat16)
    >>> with torch.no_grad():
    ...     expected = model(rows)
    ...     pack_linear_layers(model)
    ...     torch.allclose(model(rows), expected, rtol=0.02, atol=0.02)
    True
    """
    import torch

    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return
    for module in list(model.modules()):
        for name, layer in module.named_children():
            # A subclass may use its weight in another way.
            if type(layer) is torch.nn.Linear and _can_pack(layer.weight):
                setattr(module, name, _define_packed_linear()(layer))


def _can_pack(weight: Any) -> bool:
    import torch

    # A tensor made in inference mode has no version counter.
    return bool(weight.dtype is torch.bfloat16 and weight.is_cpu and not weight.is_inference())


@functools.cache
def _define_packed_linear() -> Any:
    import torch

    multiply = torch.ops.mkldnn._linear_pointwise.default

    class PackedLinear(torch.nn.Linear):  # type: ignore[misc]  # torch has no types here
        """A linear layer that replaces another and shares its state."""

        def __init__(self, layer: Any) -> None:
            self.__dict__.update(vars(layer))
            # Keeping the weight prevents another one from getting its address while the packed copy is in use.
            self._packed_from = layer.weight.detach()
            self._packed_version = layer.weight._version
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._packed_from, _LAYOUT_ROWS)

        def __reduce_ex__(self, _protocol: Any) -> Any:
            # A copy has weights of its own: it is an ordinary layer.
            state = {name: value for name, value in vars(self).items() if not name.startswith("_packed")}
            return object.__new__, (torch.nn.Linear,), state

        def _has_changed(self, weight: Any) -> bool:
            is_same = weight.data_ptr() == self._packed_from.data_ptr() and weight._version == self._packed_version
            return not is_same

        def forward(self, input: Any) -> Any:
            weight = self.weight
            if self._packed is not None and self._has_changed(weight):
                self._packed = None
                self._packed_from = None
            if self._packed is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
                return super().forward(input)
            if input.dtype is not weight.dtype or input.shape[-1:] != weight.shape[1:]:
                return super().forward(input)
            return multiply(input, self._packed, self.bias, "none", [], "")

    return PackedLinear
