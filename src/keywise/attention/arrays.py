"""Conversion of NumPy arrays, torch CPU tensors and DLPack arrays, without a copy."""

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
_SMALL_RESULT_ELEMENTS = 1 << 17
_BFLOAT16_BITS = np.dtype(np.uint16)

Array = npt.NDArray[Any]


class HostArray(NamedTuple):
    """A caller's array as a NumPy array over the same memory.

    bfloat16 is stored as uint16 because NumPy has no such type. Keys and values [batch, heads, tokens, head_dim] in
    int8 have a float32 scale [batch, heads, tokens] that multiplies every element.

    Attributes
    ----------
    data
        The elements.
    dtype
        Name of the element type: ``"bfloat16"`` where `data` is its bits.
    like
        The caller's own array; results are returned in its library.
    scale
        Scales of int8 elements.
    """

    data: Array
    dtype: str
    like: Any
    scale: Array | None = None

    def floats(self, dtype: npt.DTypeLike) -> Array:
        """Return the elements as NumPy floats, copying if a conversion is needed.

        Parameters
        ----------
        dtype
            NumPy's float32 or float64.
        """
        if self.scale is not None:
            return np.multiply(self.data, self.scale[..., None], dtype=dtype)
        if self.dtype == "bfloat16":
            wide = self.data.astype(np.uint32) << 16
            return wide.view(np.float32).astype(dtype, copy=False)
        return self.data.astype(dtype, copy=False)


def as_host_array(name: str, value: Any) -> HostArray:
    """Return a caller's array as a `HostArray`, without a copy.

    Parameters
    ----------
    name
        The argument's name, for errors.
    value
        A NumPy array, a torch CPU tensor, a DLPack array with an array namespace, or a `HostArray`.

    Raises
    ------
    DtypeError
        The value is not such an array, or its element type cannot be read.
    TargetError
        The array is on another device, or requires gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.arrays import as_host_array
    >>> as_host_array("query", np.ones(3, np.float16)).dtype
    'float16'
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _convert_torch(name, value, torch)
    if isinstance(value, np.ndarray):
        return _convert_numpy(name, value, value)
    if isinstance(value, HostArray):
        return value
    if not hasattr(value, "__dlpack__") or not hasattr(value, "__dlpack_device__"):
        raise DtypeError(
            name, f"must be a NumPy array, a torch CPU tensor or a DLPack array, got a {type(value).__name__}"
        )
    return _convert_dlpack(name, value)


def _convert_dlpack(name: str, value: Any) -> HostArray:
    device = value.__dlpack_device__()
    if not hasattr(value, "__array_namespace__"):
        raise DtypeError(
            name,
            f"must have an __array_namespace__ for its results, got a {type(value).__name__}",
            remedy="pass a NumPy array of it",
        )
    if device[0] != _DLPACK_CPU:
        raise TargetError(name, f"must be on the CPU, got DLPack device {tuple(device)}", remedy="move it there")
    if "bfloat16" in str(getattr(value, "dtype", "")):
        return _convert_numpy(name, np.asarray(value), value)
    return _convert_numpy(name, np.from_dlpack(value), value)


def _convert_torch(name: str, tensor: Any, torch: Any) -> HostArray:
    if not tensor.is_cpu:
        raise TargetError(name, f"must be on the CPU, got device '{tensor.device}'", remedy=f"use {name}.cpu()")
    if tensor.layout is not torch.strided:
        raise DtypeError(name, f"must be a dense tensor, got layout {tensor.layout}", remedy=f"use {name}.to_dense()")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise TargetError(
            name,
            "must not require gradients: keywise.attend has no backward pass",
            remedy=f"call inside torch.no_grad(), or pass {name}.detach()",
        )
    # A subclass may store its elements elsewhere.
    if tensor.requires_grad or type(tensor) is not torch.Tensor:
        tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        return HostArray(tensor.view(torch.uint16).numpy(), "bfloat16", tensor)
    try:
        data = tensor.numpy()
    except TypeError as error:
        raise DtypeError(name, f"must have an element type that NumPy knows, got {tensor.dtype}") from error
    return HostArray(data, _get_dtype_name(data.dtype), tensor)


def _convert_numpy(name: str, data: Array, like: Any) -> HostArray:
    if not data.dtype.isnative:
        raise DtypeError(
            name,
            f"must have the machine's byte order, got {data.dtype.str}",
            remedy=f"use {name}.astype({name}.dtype.newbyteorder('='))",
        )
    dtype = _get_dtype_name(data.dtype)
    return HostArray(data.view(np.uint16) if dtype == "bfloat16" else data, dtype, like)


@functools.cache
def _get_dtype_name(dtype: np.dtype[Any]) -> str:
    # NumPy composes the name at every access, which takes noticeable time in a small call.
    return dtype.name


def as_element_aligned(data: Array) -> Array:
    """Return the array with strides of whole, aligned elements, copying if needed.

    Parameters
    ----------
    data
        Any NumPy array.
    """
    if data.flags.aligned and math.gcd(*data.strides) % data.itemsize == 0:
        return data
    return data.copy(order="C")


def as_row_contiguous(data: Array) -> Array:
    """Return the array with a contiguous last axis, copying if needed.

    Parameters
    ----------
    data
        Any NumPy array; kernels read the result in place.
    """
    if data.flags.c_contiguous and data.flags.aligned:
        return data
    if data.shape[-1] <= 1 or data.strides[-1] == data.itemsize:
        return as_element_aligned(data)
    return data.copy(order="C")


def as_readable_array(name: str, value: Any) -> HostArray:
    """Return a caller's array as kernels read it: with a contiguous last axis.

    Parameters
    ----------
    name
        The argument's name, for errors.
    value
        As in `as_host_array`, with the same errors.
    """
    array = as_host_array(name, value)
    if array.data.ndim == 0:
        return array
    data = as_row_contiguous(array.data)
    scale = None if array.scale is None else as_row_contiguous(array.scale)
    return array._replace(data=data, scale=scale)


def allocate_result(shape: tuple[int, ...], dtype: str, like: Any) -> Array:
    """Return an uninitialised NumPy array for a result in the library of `like`.

    Parameters
    ----------
    shape
        Sizes of the axes.
    dtype
        Name of the element type; bfloat16 is stored as uint16.
    like
        The caller's query.
    """
    stored = "uint16" if dtype == "bfloat16" else dtype
    if math.prod(shape) >= _SMALL_RESULT_ELEMENTS:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(like, torch.Tensor):
            # NumPy allocates huge pages. Between torch's own tensors they fragment the heap by hundreds of megabytes.
            memory: Array = torch.empty(shape, dtype=getattr(torch, stored)).numpy()
            return memory
    return np.empty(shape, stored)


def round_to(data: Array, dtype: str) -> Array:
    """Return float64 numbers rounded to `dtype`, to nearest even.

    Parameters
    ----------
    data
        Numbers in float64.
    dtype
        Name of a float type; bfloat16 is returned as uint16.
    """
    with np.errstate(over="ignore"):
        if dtype != "bfloat16":
            return data.astype(dtype)
        single = np.ascontiguousarray(data, np.float64).astype(np.float32)
    # The first rounding is to odd, so that the second one is not a double rounding.
    bits = single.view(np.uint32)
    is_final = (single == data) | ~np.isfinite(single)
    is_larger = np.abs(single) > np.abs(data)
    truncated = np.where(is_larger, bits - 1, bits)
    bits = np.where(is_final, bits, truncated | 1).astype(np.uint32)
    rounding = 0x7FFF + ((bits >> 16) & 1)
    rounded = ((bits.astype(np.uint64) + rounding) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(0x7FC0), rounded)


def to_library(data: Array, like: Any) -> Any:
    """Convert a result to the array library of `like`.

    Nothing is copied for NumPy and torch.

    Parameters
    ----------
    data
        A result; uint16 stands for bfloat16.
    like
        The caller's query.
    """
    is_bfloat16 = data.dtype == _BFLOAT16_BITS
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        tensor = torch.from_numpy(data)
        return tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    if is_bfloat16:
        import ml_dtypes  # noqa: PLC0415  (installed wherever there is a NumPy bfloat16 array)

        data = data.view(ml_dtypes.bfloat16)
    if isinstance(like, np.ndarray):
        return data
    return like.__array_namespace__().asarray(data)
