"""vmap over attention: mapped axes become a part of the batch axis, or the operator runs once per item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from keywise.torch.settings import SideTensors

_BATCH_AXES = {"bias": 4, "allowed": 4, "query_weights": 3}
"""Number of axes of the tensors that broadcast to the scores or the queries."""
_PER_CALL = ("sinks", "segment_numbers", "seed")
"""Tensors without a batch axis."""
_INPUTS = 3
_BACKWARD_TENSORS = 13
_BACKWARD_GRADIENTS = 5

Operator = Callable[..., tuple[Any, ...]]


def batch_forward(operator: Operator, size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
    """Run the forward operator over a mapped axis.

    Parameters
    ----------
    operator : callable
        The forward operator.
    size : int
        Size of the mapped axis.
    in_dims : sequence of int or None
        The mapped axis of each argument.
    arguments : sequence
        Arguments of the operator.

    Returns
    -------
    (tuple of tensor, tuple of int or None)
        The results and their mapped axes.
    """
    mapped = _move_to_front(in_dims, arguments)
    sides = slice(_INPUTS, _INPUTS + len(SideTensors._fields))
    side_values, side_mapped = SideTensors(*arguments[sides]), SideTensors(*mapped[sides])
    # Each item has a dropout mask of its own position in the batch, so the batch must stay what it was.
    if side_values.seed is not None or any(getattr(side_mapped, name) is not None for name in _PER_CALL):
        return _run_per_item(operator, size, in_dims, arguments)
    batch = _find_batch(arguments[0], in_dims[0])
    inputs = [_merge(tensor, front, size) for tensor, front in zip(arguments[:_INPUTS], mapped, strict=False)]
    merged = _merge_sides(side_values, side_mapped, size, batch)
    results = operator(*inputs, *merged, *arguments[sides.stop :])
    return _unmerge(results, size)


def batch_backward(operator: Operator, size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
    """Run the backward operator over a mapped axis.

    Parameters
    ----------
    operator : callable
        The backward operator.
    size : int
        Size of the mapped axis.
    in_dims : sequence of int or None
        The mapped axis of each argument.
    arguments : sequence
        Arguments of the operator.

    Returns
    -------
    (tuple of tensor, tuple of int or None)
        The results and their mapped axes.
    """
    mapped = _move_to_front(in_dims, arguments)
    sides = slice(_BACKWARD_TENSORS, _BACKWARD_TENSORS + len(SideTensors._fields))
    side_values, side_mapped = SideTensors(*arguments[sides]), SideTensors(*mapped[sides])
    needs_bias, needs_sinks = arguments[-1][3:]
    is_per_call = any(getattr(side_mapped, name) is not None for name in _PER_CALL)
    # Gradients of bias and sinks are sums over the batch, in which the items must not mix.
    if side_values.seed is not None or is_per_call or needs_bias or needs_sinks:
        return _run_per_item(operator, size, in_dims, arguments)
    batch = _find_batch(arguments[_BACKWARD_GRADIENTS], in_dims[_BACKWARD_GRADIENTS])
    tensors = [
        None if tensor is None else _merge(tensor, front, size)
        for tensor, front in zip(arguments[: sides.start], mapped, strict=False)
    ]
    merged = _merge_sides(side_values, side_mapped, size, batch)
    results = operator(*tensors, *merged, *arguments[sides.stop :])
    return _unmerge(results, size)


def _move_to_front(in_dims: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Return each mapped tensor with the mapped axis first, None for other arguments."""
    return [
        argument.movedim(axis, 0) if isinstance(argument, torch.Tensor) and axis is not None else None
        for argument, axis in zip(arguments, in_dims, strict=True)
    ]


def _find_batch(query: Any, axis: int | None) -> int:
    return int(query.shape[0] if axis is None else query.movedim(axis, 0).shape[1])


def _merge(tensor: Any, front: Any, size: int) -> Any:
    """Return a tensor whose first axis holds the mapped axis and the batch axis."""
    if front is None:
        front = tensor.expand(size, *tensor.shape)
    if front.dim() == 2 and front.shape[1] == 0:  # a statistic that was not computed
        return front[0]
    return front.reshape(size * front.shape[1], *front.shape[2:])


def _merge_sides(values: SideTensors, mapped: SideTensors, size: int, batch: int) -> SideTensors:
    merged = {}
    for name in ("bias", "allowed", "query_weights", "lengths", "starts", "documents"):
        tensor, front = getattr(values, name), getattr(mapped, name)
        if tensor is None:
            continue
        front = tensor.expand(size, *tensor.shape) if front is None else front
        axes = _BATCH_AXES.get(name, 1)
        while front.dim() < axes + 1:
            front = front.unsqueeze(1)
        if front.shape[1] != batch:
            front = front.expand(size, batch, *front.shape[2:])
        merged[name] = front.reshape(size * batch, *front.shape[2:])
    return values._replace(**merged)


def _unmerge(results: tuple[Any, ...], size: int) -> tuple[Any, Any]:
    # Results that were not asked for have one axis without elements.
    is_absent = [result is None or result.dim() == 1 for result in results]
    unmerged = tuple(
        result if absent else result.reshape(size, result.shape[0] // size, *result.shape[1:])
        for result, absent in zip(results, is_absent, strict=True)
    )
    return unmerged, tuple(None if absent else 0 for absent in is_absent)


def _run_per_item(operator: Operator, size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
    items = []
    for index in range(size):
        selected = [
            argument.select(axis, index) if isinstance(argument, torch.Tensor) and axis is not None else argument
            for argument, axis in zip(arguments, in_dims, strict=True)
        ]
        items.append(operator(*selected))
    stacked = tuple(None if results[0] is None else torch.stack(results) for results in zip(*items, strict=True))
    return stacked, tuple(None if result is None else 0 for result in stacked)
