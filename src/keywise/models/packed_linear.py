"""Weights of linear layers laid out once as oneDNN multiplies them; torch alone lays them out at every call."""

from __future__ import annotations

import functools
from typing import Any

# oneDNN asks for how many rows the weights are laid out; any number can be multiplied with them.
_ROWS = 64


def pack(model: Any) -> None:
    """Let the linear layers of a bfloat16 model multiply weights that are laid out once, by oneDNN, in torch.

    The layers' own weights stay as they are. A layer goes back to them when they change (but for changes through
    ``weight.data``, which torch hides), where gradients are kept, and when it is compiled. Nothing happens where torch
    is built without oneDNN, or oneDNN takes no bfloat16 on this CPU.

    Parameters
    ----------
    model : torch.nn.Module
        A model on the CPU; as many bytes as its linear layers have are taken in addition.

    Examples
    --------
    >>> import torch
    >>> from keywise.models.packed_linear import pack
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32, dtype=torch.bfloat16))
    >>> numbers = torch.randn(3, 64, dtype=torch.bfloat16)
    >>> with torch.no_grad():
    ...     before = model(numbers)
    ...     pack(model)
    ...     torch.allclose(model(numbers), before, rtol=0.02, atol=0.02)
    True
    """
    import torch  # noqa: PLC0415 - heavy

    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return
    for module in list(model.modules()):
        for name, layer in module.named_children():
            # A subclass may do something else with its weight.
            if type(layer) is torch.nn.Linear and _can_pack(layer.weight, torch):
                setattr(module, name, _packed_class()(layer))


def _can_pack(weight: Any, torch: Any) -> bool:
    # What is made in inference mode does not tell when it changes.
    return bool(weight.dtype is torch.bfloat16 and weight.is_cpu and not weight.is_inference())


@functools.cache
def _packed_class() -> Any:
    import torch  # noqa: PLC0415 - heavy

    multiply = torch.ops.mkldnn._linear_pointwise.default

    class PackedLinear(torch.nn.Linear):  # type: ignore[misc]  # torch has no types here
        """A linear layer in place of another, with all that it has."""

        def __init__(self, layer: Any) -> None:
            self.__dict__.update(vars(layer))
            # Held, so that no other weight can come to lie at its address while this layout is in use.
            self._packed_from = layer.weight.detach()
            self._packed_version = layer.weight._version
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._packed_from, _ROWS)

        def __reduce_ex__(self, _protocol: Any) -> Any:
            # A copy has weights of its own: it is an ordinary layer.
            state = {name: value for name, value in vars(self).items() if not name.startswith("_packed")}
            return object.__new__, (torch.nn.Linear,), state

        def forward(self, input: Any) -> Any:
            weight = self.weight
            if self._packed is not None and (
                weight.data_ptr() != self._packed_from.data_ptr() or weight._version != self._packed_version
            ):
                self._packed = self._packed_from = None
            if (
                self._packed is None
                or input.dtype is not weight.dtype
                or input.shape[-1:] != weight.shape[1:]
                or torch.is_grad_enabled()
                or torch.compiler.is_compiling()
            ):
                return super().forward(input)
            return multiply(input, self._packed, self.bias, "none", [], "")

    return PackedLinear
