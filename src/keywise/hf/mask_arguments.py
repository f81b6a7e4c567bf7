"""Masks of transformers' layers as visible keys and a bias of the scores."""

from __future__ import annotations

from typing import Any

from keywise.attention.mask import Mask
from keywise.errors import ModelError
from keywise.hf.support import is_eager_only


def is_causal_without_mask(module: Any, option: bool | None) -> bool:
    """Return whether a layer's attention without a mask is causal, aligned at the last key.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer.
    option : bool or None
        The keyword ``is_causal`` of the call; None for the layer's own attribute.
    """
    import torch

    from keywise.hf.masks import is_eager_only_constant

    # Eager attention does not read is_causal, so models that are written for it alone may set it wrong.
    config = getattr(module, "config", None)
    if config is not None:
        find = is_eager_only_constant if torch.compiler.is_compiling() else is_eager_only
        if find(type(config)):  # type: ignore[arg-type]  # classes are hashable
            return False
    return bool(getattr(module, "is_causal", True) if option is None else option)


def read_mask(
    module: Any, attention_mask: Any, *, causal: bool, shape: tuple[int, int, int] | None = None
) -> tuple[Mask | None, Any]:
    """Return the visible keys of a mask, and its bias of the scores.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer, for errors.
    attention_mask : tensor or None
        The result of `keywise.hf.masks.make_mask`, possibly changed by the model, or the user's own mask: boolean
        (True = visible), or numbers added to the scores.
    causal : bool
        Whether attention without a mask is causal, aligned at the last key.
    shape : (int, int, int), optional
        Numbers of sequences, queries and keys of the call; default those of the mask.

    Returns
    -------
    keywise.Mask or None, tensor or None
        The visible keys, and the bias of the scores; None where there is none.

    Raises
    ------
    ModelError
        The mask has a dtype that is neither boolean nor floating point.

    Examples
    --------
    >>> import torch
    >>> hidden = torch.tensor([[[[0.0, float("-inf"), 1.5]]]])
    >>> mask, bias = read_mask(torch.nn.Identity(), hidden, causal=False)
    >>> mask.allowed.tolist(), bias.tolist()
    ([[[[True, False, True]]]], [[[[0.0, 0.0, 1.5]]]])
    """
    import torch

    from keywise.hf.masks import LazyMask

    if attention_mask is None:
        return (Mask(causal=True) if causal else None), None
    if isinstance(attention_mask, LazyMask):
        has_call_shape = shape is None or shape == (attention_mask.shape[0], *attention_mask.shape[2:])
        if has_call_shape and attention_mask.mask is not None:
            return attention_mask.mask, None
        # A mask for one query serves all queries by its elements, not by its rule about positions.
        attention_mask = attention_mask.dense
    if attention_mask.dtype == torch.bool:
        return Mask(allowed=attention_mask), None
    if not attention_mask.is_floating_point():
        raise ModelError(
            "attention_mask",
            f"must be boolean or floating point in {type(module).__name__}",
            got=str(attention_mask.dtype),
            remedy="pass mask.bool() (True = visible) or a float mask that is added to the scores",
        )
    # Models hide by the lowest number of the mask's dtype, or by the sum of two such numbers.
    hidden = attention_mask <= torch.finfo(attention_mask.dtype).min / 2
    bias = attention_mask.masked_fill(hidden, 0)
    # While a graph is traced there are no elements to look at.
    has_bias = torch.compiler.is_compiling() or attention_mask.requires_grad or bool(bias.any())
    return Mask(allowed=~hidden), bias if has_bias else None


def add_biases(position_bias: Any, mask_bias: Any, dtype: Any) -> Any:
    """Return the sum of two biases of the scores.

    Parameters
    ----------
    position_bias, mask_bias : tensor or None
        Numbers added to the scores.
    dtype : torch.dtype
        Dtype of the queries: a bias of this dtype or float32 stays as it is, another becomes float32.

    Returns
    -------
    tensor or None
        None where both are None.

    Examples
    --------
    >>> import torch
    >>> add_biases(torch.ones(2), torch.ones(2), torch.float32).tolist()
    [2.0, 2.0]
    """
    import torch

    if position_bias is not None and mask_bias is not None:
        return position_bias.float() + mask_bias.float()
    bias = mask_bias if position_bias is None else position_bias
    if bias is None:
        return None
    if bias.dtype in (torch.float32, dtype):
        return bias
    return bias.float()
