"""The one seam to array libraries: NumPy, torch CPU tensors and whatever speaks DLPack, in and out without a copy."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keywise.errors import DtypeError, TargetError

FLOATS = ("float32", "float16", "bfloat16", "float64")
_DLPACK_CPU = 1
_FEW_ELEMENTS = 1 << 17
_BFLOAT16_BITS = np.dtype(np.uint16)

Array = npt.NDArray[Any]


class HostArray(NamedTuple):
    """An argument as a NumPy array over the same memory; bfloat16 travels as uint16 because NumPy has no such type.

    Keys and values [batch, heads, tokens, head_dim] in int8 have a float32 scale [batch, heads, tokens] that every
    element is to be multiplied by.
    """

    data: Array
    dtype: str
    like: Any
    scale: Array | None = None

    def floats(self, dtype: npt.DTypeLike) -> Array:
        """Give the elements as NumPy floats of `dtype` (a copy where a conversion is needed)."""
        if self.scale is not None:
            return np.multiply(self.data, self.scale[..., None], dtype=dtype)
        if self.dtype == "bfloat16":
            wide = self.data.astype(np.uint32) << 16
            return wide.view(np.float32).astype(dtype, copy=False)
        return self.data.astype(dtype, copy=False)


def as_host_array(name: str, value: Any) -> HostArray:
    """Take an array argument as it is; refuse what is not an array on this CPU without gradients."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _take_torch(name, value, torch)
    if isinstance(value, np.ndarray):
        return _take_numpy(name, value, value)
    if isinstance(value, HostArray):
        return value
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        device = value.__dlpack_device__()
        if not hasattr(value, "__array_namespace__"):
            raise DtypeError(
                f"{name} is a {type(value).__name__} without __array_namespace__; give a NumPy array of it"
            )
        if device[0] != _DLPACK_CPU:
            raise TargetError(
                f"{name} lives on DLPack device {tuple(device)}; keywise computes on the CPU: move it there"
            )
        if "bfloat16" in str(getattr(value, "dtype", "")):
            return _take_numpy(name, np.asarray(value), value)
        return _take_numpy(name, np.from_dlpack(value), value)
    raise DtypeError(
        f"{name} is a {type(value).__name__}; give a NumPy array, a torch CPU tensor or an array that speaks DLPack"
    )


def _take_torch(name: str, tensor: Any, torch: Any) -> HostArray:
    if not tensor.is_cpu:
        raise TargetError(f"{name} lives on device '{tensor.device}'; keywise computes on the CPU: use {name}.cpu()")
    if tensor.layout is not torch.strided:
        raise DtypeError(f"{name} has layout {tensor.layout}; use {name}.to_dense()")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise TargetError(
            f"{name} requires gradients and keywise has no backward pass: call inside torch.no_grad(), "
            f"or pass {name}.detach()"
        )
    if tensor.requires_grad or type(tensor) is not torch.Tensor:  # a subclass may hold its elements elsewhere
        tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        return HostArray(tensor.view(torch.uint16).numpy(), "bfloat16", tensor)
    try:
        data = tensor.numpy()
    except TypeError as error:
        raise DtypeError(f"{name} has dtype {tensor.dtype}, which keywise does not take") from error
    return HostArray(data, _name(data.dtype), tensor)


def _take_numpy(name: str, data: Array, like: Any) -> HostArray:
    if not data.dtype.isnative:
        raise DtypeError(f"{name} has byte order {data.dtype.str}; use {name}.astype({name}.dtype.newbyteorder('='))")
    name_of_dtype = _name(data.dtype)
    return HostArray(data.view(np.uint16) if name_of_dtype == "bfloat16" else data, name_of_dtype, like)


@functools.cache
def _name(dtype: np.dtype[Any]) -> str:
    """Give a dtype's name; NumPy composes it anew every time, which a small call would notice."""
    return dtype.name


def exchange_of(*tensors: Any) -> Any:
    """Give torch's DLPack exchange when all are tensors whose elements are as they lie in memory, else None.

    A subclass may hold its elements elsewhere, and a lazily negated tensor holds their opposites.
    """
    torch = sys.modules.get("torch")
    kind = getattr(torch, "Tensor", None)
    for tensor in tensors:
        if type(tensor) is not kind or tensor.requires_grad or tensor.is_neg():
            return None
    return getattr(kind, "__dlpack_c_exchange_api__", None)  # torch has it since 2.10


def countable(data: Array) -> Array:
    """Give the array itself when its strides are whole elements on their natural boundary, else a copy."""
    if data.flags.aligned and math.gcd(*data.strides) % data.itemsize == 0:
        return data
    return data.copy(order="C")


def rows_in_place(data: Array) -> Array:
    """Give the array itself when the kernels can read it in place (contiguous last axis), else a contiguous copy."""
    if data.flags.c_contiguous and data.flags.aligned:
        return data
    if data.shape[-1] <= 1 or data.strides[-1] == data.itemsize:
        return countable(data)
    return data.copy(order="C")


def empty(shape: tuple[int, ...], dtype: str, like: Any) -> Array:
    """Make an uninitialised array (bfloat16 as uint16) for a result in the library of `like`.

    NumPy asks for huge pages, and between torch's own tensors these fragment the heap by hundreds of megabytes; what
    is too small for huge pages NumPy makes faster.
    """
    stored = "uint16" if dtype == "bfloat16" else dtype
    if math.prod(shape) >= _FEW_ELEMENTS:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(like, torch.Tensor):
            memory: Array = torch.empty(shape, dtype=getattr(torch, stored)).numpy()
            return memory
    return np.empty(shape, stored)


def round_to(data: Array, dtype: str) -> Array:
    """Round float64 results to `dtype`, to nearest even; bfloat16 comes as uint16."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return data.astype(dtype)
    # Rounding to odd in float32 keeps what the second rounding needs: no double rounding.
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(data, np.float64).astype(np.float32)
    bits = single.view(np.uint32)
    exact = single.astype(np.float64) == data
    away = np.abs(single.astype(np.float64)) > np.abs(data)
    bits = np.where(exact | ~np.isfinite(single), bits, np.where(away, bits - 1, bits) | 1).astype(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(0x7FC0), rounded)


def to_library(data: Array, like: Any) -> Any:
    """Hand a result of `empty` back in the library of `like` (the query), without a copy for NumPy and torch."""
    bfloat16 = data.dtype == _BFLOAT16_BITS
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        tensor = torch.from_numpy(data)
        return tensor.view(torch.bfloat16) if bfloat16 else tensor
    if bfloat16:
        import ml_dtypes  # noqa: PLC0415  (only those who hold a NumPy bfloat16 array have it)

        data = data.view(ml_dtypes.bfloat16)
    if isinstance(like, np.ndarray):
        return data
    return like.__array_namespace__().asarray(data)
