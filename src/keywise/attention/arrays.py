"""Conversion of NumPy arrays, torch CPU tensors and DLPack arrays, without a copy."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import byte_bounds

from keywise.errors import DtypeError, KeywiseError, ShapeError, TargetError

FLOATS = ("float32", "float16", "bfloat16", "float64")
_DLPACK_CPU = 1
_SMALL_RESULT_ELEMENTS = 1 << 17
_BFLOAT16_BITS = np.dtype(np.uint16)
_MIN_ADDRESS = 1 << 16
"""Operating systems map nothing below."""
_MAX_ADDRESS = 1 << 48
"""End of a process's memory on the 64-bit machines that keywise supports."""

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
        The value is not such an array, or its elements cannot be read.
    TargetError
        The array is on another device, requires gradients, has a tangent or is traced.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.arrays import as_host_array
    >>> as_host_array("query", np.ones(3, np.float16)).dtype
    'float16'
    """
    torch = _find_torch()
    if torch is not None and isinstance(value, torch.Tensor):
        return _convert_torch(name, value, torch)
    if isinstance(value, np.ndarray):
        return _convert_numpy(name, value, value)
    if isinstance(value, HostArray):
        return value
    # On the type: tracers answer to every name.
    if not hasattr(type(value), "__dlpack__") or not hasattr(type(value), "__dlpack_device__"):
        raise DtypeError(
            name, f"must be a NumPy array, a torch CPU tensor or a DLPack array, got a {type(value).__name__}"
        )
    return _convert_dlpack(name, value)


def _find_torch() -> Any:
    torch = sys.modules.get("torch")
    # A torch that is being imported has no Tensor yet.
    return torch if hasattr(torch, "Tensor") else None


# ---- DLPack ----


def _convert_dlpack(name: str, value: Any) -> HostArray:
    if not hasattr(value, "__array_namespace__"):
        raise DtypeError(
            name,
            f"must have an __array_namespace__ for its results, got a {type(value).__name__}",
            remedy="pass a NumPy array of it",
        )
    try:
        device = tuple(value.__dlpack_device__())
        if device[0] != _DLPACK_CPU:
            raise TargetError(name, f"must be on the CPU, got DLPack device {device}", remedy="move it there")
        # NumPy's DLPack has no bfloat16.
        is_bfloat16 = "bfloat16" in str(getattr(value, "dtype", ""))
        data = np.asarray(value) if is_bfloat16 else np.from_dlpack(value)
    except KeywiseError:
        raise
    except Exception as error:
        raise DtypeError(
            name,
            f"must export its elements by DLPack, got a {type(value).__name__} ({_quote(error)})",
            remedy="pass a NumPy array of it",
        ) from error
    if not is_bfloat16:
        _check_exported_memory(name, data, value)
    return _convert_numpy(name, data, value)


def _check_exported_memory(name: str, data: Array, value: Any) -> None:
    """Raise an error if an array that NumPy took by DLPack cannot lie in memory."""
    first, end = byte_bounds(data)
    # NumPy allocates memory of its own where the exporter gives none.
    if data.size and (data.flags.owndata or first < _MIN_ADDRESS or end > _MAX_ADDRESS):
        raise DtypeError(
            name,
            f"must export memory by DLPack, got a {type(value).__name__} of shape {list(data.shape)} "
            f"and strides {list(data.strides)} without it",
            remedy="pass a NumPy array of it",
        )


# ---- torch ----


def _convert_torch(name: str, tensor: Any, torch: Any) -> HostArray:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise TargetError(
            name,
            "must not require gradients: keywise.attend has no backward pass",
            remedy=f"call keywise.torch.attend or keywise.torch.attention_stats, or pass {name}.detach()",
        )
    _refuse_transforms(name, tensor, torch)
    try:
        return _read_tensor(name, tensor, torch)
    except KeywiseError:
        raise
    except Exception as error:
        raise DtypeError(
            name,
            f"must be a tensor whose elements can be read, got a {type(tensor).__name__} ({_quote(error)})",
            remedy="call keywise outside of torch.vmap, torch.func and traces, with a plain tensor",
        ) from error


def _refuse_transforms(name: str, tensor: Any, torch: Any) -> None:
    """Raise an error if torch would lose track of a result: when it traces, and for tangents."""
    proxy_tensor = sys.modules.get("torch.fx.experimental.proxy_tensor")
    tracer = None
    if torch.jit.is_tracing():
        tracer = "torch.jit.trace"
    elif proxy_tensor is not None and proxy_tensor.get_proxy_mode() is not None:
        tracer = "make_fx"
    if tracer is not None:
        raise TargetError(
            name,
            f"must not be traced by {tracer}, because the result would be a constant of the trace",
            remedy="call keywise outside of the trace",
        )
    if torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None:
        raise TargetError(
            name,
            "must not have a tangent: keywise.attend has no forward-mode derivative",
            remedy=f"pass torch.autograd.forward_ad.unpack_dual({name}).primal",
        )


def _read_tensor(name: str, tensor: Any, torch: Any) -> HostArray:
    tensor = _as_plain_tensor(name, tensor, torch)
    if not tensor.is_cpu:
        remedy = "meta tensors have no elements" if tensor.is_meta else f"use {name}.cpu()"
        raise TargetError(name, f"must be on the CPU, got device '{tensor.device}'", remedy=remedy)
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = "torch.nested" if tensor.is_nested else tensor.layout
        raise DtypeError(name, f"must be a dense tensor, got layout {layout}", remedy=f"use {name}.to_dense()")
    if tensor.is_quantized:
        raise DtypeError(name, f"must not be quantized, got {tensor.dtype}", remedy=f"use {name}.dequantize()")
    if not _has_storage(tensor):
        raise DtypeError(
            name,
            f"must have its elements in memory, got shape {list(tensor.shape)} and a storage of "
            f"{tensor.untyped_storage().nbytes()} bytes",
            remedy="its storage was freed or resized, or belongs to a transform of torch; pass a copy made before",
        )
    if tensor.numel() * tensor.element_size() >= 1 << 63:  # NumPy counts bytes in 64 bits
        raise ShapeError(name, f"must have fewer elements, got shape {list(tensor.shape)}")
    if tensor.is_neg():
        raise TargetError(name, "must not have the negative bit set", remedy=f"use {name}.resolve_neg()")
    if tensor.dtype is torch.bfloat16:
        return HostArray(tensor.view(torch.uint16).numpy(), "bfloat16", tensor)
    try:
        data = tensor.numpy()
    except TypeError as error:
        raise DtypeError(name, f"must have an element type that NumPy knows, got {tensor.dtype}") from error
    return HostArray(data, _get_dtype_name(data.dtype), tensor)


def _as_plain_tensor(name: str, tensor: Any, torch: Any) -> Any:
    """Return the elements of a tensor as a torch.Tensor without gradient, or raise."""
    if type(tensor) is torch.Tensor:
        return tensor.detach() if tensor.requires_grad else tensor
    # A subclass may store its elements elsewhere; its own detach() knows.
    plain = tensor.detach()
    if type(plain) is torch.Tensor:
        return plain
    if _overrides_operations(type(plain), torch):
        raise DtypeError(
            name,
            f"must be a plain tensor, got a {type(tensor).__module__}.{type(tensor).__name__}",
            remedy="pass a torch.Tensor of its elements",
        )
    return plain.as_subclass(torch.Tensor)


def _overrides_operations(tensor_type: type, torch: Any) -> bool:
    """Return whether a subclass gives operations on its tensors another meaning."""
    inherited = (None, torch._C._disabled_torch_function_impl, torch._C._disabled_torch_dispatch_impl)
    subclasses = tensor_type.__mro__[: tensor_type.__mro__.index(torch.Tensor)]
    hooks = ("__torch_function__", "__torch_dispatch__")
    return any(vars(subclass).get(hook) not in inherited for subclass in subclasses for hook in hooks)


def _has_storage(tensor: Any) -> bool:
    """Return whether all elements of a plain tensor lie in its storage."""
    if tensor.numel() == 0:
        return True
    storage = tensor.untyped_storage()
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + steps + 1) * tensor.element_size()
    return bool(storage.data_ptr() != 0 and end <= storage.nbytes())


def _quote(error: Exception) -> str:
    """Return the first line of another library's error."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ---- NumPy ----


def _convert_numpy(name: str, data: Array, like: Any) -> HostArray:
    if type(data) is not np.ndarray:
        data = _as_plain_numpy(name, data)
    if not data.dtype.isnative:
        raise DtypeError(
            name,
            f"must have the machine's byte order, got {data.dtype.str}",
            remedy=f"use {name}.astype({name}.dtype.newbyteorder('='))",
        )
    dtype = _get_dtype_name(data.dtype)
    return HostArray(data.view(np.uint16) if dtype == "bfloat16" else data, dtype, like)


def _as_plain_numpy(name: str, data: Array) -> Array:
    """Return an array of a subclass as a numpy.ndarray, or raise if the subclass adds meaning to its elements."""
    kind = type(data)
    if isinstance(data, np.ma.MaskedArray):
        raise DtypeError(
            name,
            f"must not be a masked array, because its mask would be ignored, got a {kind.__name__}",
            remedy=f"pass {name}.filled(0), and hide keys by mask=",
        )
    if kind.__array_ufunc__ is not np.ndarray.__array_ufunc__ or (
        kind.__array_function__ is not np.ndarray.__array_function__
    ):
        raise DtypeError(
            name,
            f"must be a plain NumPy array, got a {kind.__module__}.{kind.__name__}",
            remedy=f"pass numpy.asarray({name})",
        )
    return np.asarray(data)


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
        torch = _find_torch()
        if torch is not None and isinstance(like, torch.Tensor):
            # NumPy allocates huge pages. Between torch's own tensors they fragment the heap by hundreds of megabytes.
            memory: Array = torch.empty(shape, dtype=getattr(torch, stored), device="cpu").numpy()
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
    torch = _find_torch()
    if torch is not None and isinstance(like, torch.Tensor):
        tensor = torch.from_numpy(data)
        return tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    if is_bfloat16:
        import ml_dtypes  # noqa: PLC0415  (installed wherever there is a NumPy bfloat16 array)

        data = data.view(ml_dtypes.bfloat16)
    if isinstance(like, np.ndarray):
        return data
    return like.__array_namespace__().asarray(data)
