"""Checks of the tensors of an attention call that work on traced tensors too: on shapes, dtypes and devices alone."""

from __future__ import annotations

from typing import Any

import torch

from keywise.errors import DtypeError, ShapeError, TargetError

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def explain_unsupported(name: str, tensor: Any) -> str | None:
    """Return why keywise cannot read a tensor, None if it can.

    Parameters
    ----------
    name : str
        The argument's name.
    tensor : torch.Tensor
        Its value.

    Examples
    --------
    >>> explain_unsupported("query", torch.zeros(2, dtype=torch.int32))
    'query has dtype torch.int32'
    """
    if tensor.is_nested:
        return f"{name} is a nested tensor"
    if tensor.layout is not torch.strided:
        return f"{name} has layout {tensor.layout}"
    if tensor.device.type != "cpu":
        return f"{name} is on device '{tensor.device.type}'"
    if tensor.dtype not in FLOAT_DTYPES:
        return f"{name} has dtype {tensor.dtype}"
    return None


def check_tensor(name: str, tensor: Any) -> None:
    """Raise an error unless an argument is a dense tensor of floats on the CPU.

    Parameters
    ----------
    name : str
        The argument's name.
    tensor : torch.Tensor
        Its value.

    Raises
    ------
    DtypeError
        It is no tensor, not dense, or not of a float dtype that keywise computes with.
    TargetError
        It is on another device, or has a tangent of forward-mode differentiation.
    """
    if not isinstance(tensor, torch.Tensor):
        raise DtypeError(name, f"must be a torch.Tensor, got a {type(tensor).__name__}")
    if tensor.is_nested or tensor.layout is not torch.strided:
        layout = "torch.nested" if tensor.is_nested else tensor.layout
        raise DtypeError(
            name, f"must be a dense tensor, got layout {layout}", remedy="pad it and pass a mask, or use torch's own"
        )
    if tensor.device.type != "cpu":
        raise TargetError(name, f"must be on the CPU, got device '{tensor.device}'", remedy=f"use {name}.cpu()")
    if tensor.dtype not in FLOAT_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        raise DtypeError(name, f"must have one of the dtypes {names}, got {tensor.dtype}")
    # Outside of dual levels no tensor has a tangent.
    if torch.autograd.forward_ad._current_level >= 0 and (
        torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None
    ):
        raise TargetError(
            name,
            "must not have a tangent: keywise has no forward-mode derivative",
            remedy="use reverse mode (backward, torch.func.grad), or torch's attention",
        )


def check_inputs(query: Any, key: Any, value: Any) -> None:
    """Raise an error unless three tensors fit together as query, key and value.

    Parameters
    ----------
    query, key, value : tensor
        [B, Hq, Q, D], [B, Hkv, N, D] and [B, Hkv, N, Dv].

    Raises
    ------
    DtypeError, ShapeError, TargetError
        A tensor cannot be used, or does not fit the others.
    """
    named = {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        check_tensor(name, tensor)
        if tensor.dim() != 4:
            raise ShapeError(name, f"must have 4 axes [batch, heads, tokens, head_dim], got shape {list(tensor.shape)}")
        if tensor.dtype != query.dtype:
            raise DtypeError(name, f"must have the query's dtype {query.dtype}, got {tensor.dtype}")
    if key.shape[0] != query.shape[0] or value.shape[0] != query.shape[0]:
        name = "key" if key.shape[0] != query.shape[0] else "value"
        shape = list(named[name].shape)
        raise ShapeError(name, f"must have the query's batch size {query.shape[0]}, got shape {shape}")
    if key.shape[3] != query.shape[3]:
        raise ShapeError("key", f"must have the query's head_dim {query.shape[3]}, got shape {list(key.shape)}")
    if value.shape[1:3] != key.shape[1:3]:
        raise ShapeError(
            "value", f"must have the key's heads and tokens, got shape {list(value.shape)} and key {list(key.shape)}"
        )
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ShapeError("query", f"must have a multiple of the key's heads, got {query.shape[1]} and {key.shape[1]}")


def cast_for_autocast(*tensors: Any) -> tuple[Any, ...]:
    """Return float tensors in the dtype of an active autocast, as torch's own attention casts them.

    Parameters
    ----------
    *tensors : tensor or None
        Those of dtype float64 and those that are not floats stay as they are.
    """
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(
        tensor.to(dtype)
        if isinstance(tensor, torch.Tensor)
        and tensor.is_floating_point()
        and tensor.dtype not in (dtype, torch.float64)
        else tensor
        for tensor in tensors
    )
