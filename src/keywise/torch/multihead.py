"""Multi-head attention as a module, and its use in place of torch's own in a model."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from keywise.errors import DtypeError
from keywise.torch.projections import Projections, attend_with_projections


class MultiheadAttention(nn.MultiheadAttention):  # type: ignore[misc]  # torch has no types here
    """Multi-head attention on keywise, with the arguments and the state dict of ``torch.nn.MultiheadAttention``.

    Unlike there, `need_weights` is False by default, and weights are those before dropout. A query that may see no key
    has attention output 0, not NaN.

    Parameters
    ----------
    *args, **kwargs
        Those of ``torch.nn.MultiheadAttention``: embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim,
        vdim, batch_first, device, dtype.

    Examples
    --------
    >>> import torch, keywise.torch
    >>> layer = keywise.torch.MultiheadAttention(16, 2, batch_first=True)
    >>> x = torch.randn(1, 5, 16)
    >>> output, nothing = layer(x, x, x)
    >>> output, stats = layer(x, x, x, stats=keywise.torch.StatsRequest(top_k=2))
    >>> stats.key_mass.shape, stats.top_keys.shape
    (torch.Size([1, 2, 5]), torch.Size([1, 2, 5, 2]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _require_forward(self)

    def forward(  # noqa: PLR0917  (torch orders the arguments)
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = False,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        stats: Any = None,
    ) -> tuple[Any, Any]:
        """Compute the layer's output.

        Parameters
        ----------
        query, key, value : tensor
            [B, tokens, features] with `batch_first`, else [tokens, B, features]; [tokens, features] without a batch.
        key_padding_mask : tensor [B, S] or [S], optional
            Boolean, True where a key is ignored, or floats that are added to the scores.
        need_weights : bool
            Whether to return the weights, a dense matrix of n x n elements.
        attn_mask : tensor [L, S] or [B * heads, L, S], optional
            Boolean, True where a query may not attend, or floats that are added to the scores.
        average_attn_weights : bool
            Whether the weights are averaged over the heads.
        is_causal : bool
            Whether `attn_mask` is the causal mask; it is not read then.
        stats : StatsRequest or keywise.hf.StatsSpec, optional
            Which attention statistics to compute; not together with `need_weights`.

        Returns
        -------
        (tensor, tensor or AttentionStats or None)
            The output in the layout of the query, and the weights, the differentiable statistics (whose `output` is
            None) or None.

        Raises
        ------
        ShapeError, DtypeError, OptionError, TargetError
            An argument cannot be used; the error names it, its value and the rule.
        """
        projections = Projections(
            num_heads=self.num_heads,
            in_proj_weight=self.in_proj_weight,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            in_proj_bias=self.in_proj_bias,
            bias_k=self.bias_k,
            bias_v=self.bias_v,
            add_zero_attn=self.add_zero_attn,
            out_proj_weight=self.out_proj.weight,
            out_proj_bias=self.out_proj.bias,
        )
        return attend_with_projections(
            projections,
            query,
            key,
            value,
            batch_first=self.batch_first,
            dropout_p=self.dropout if self.training else 0.0,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            is_causal=is_causal,
            need_weights=need_weights,
            average_attn_weights=average_attn_weights,
            stats=stats,
        )


class Replacement(NamedTuple):
    """Which layers of a model `replace_attention` changed.

    Attributes
    ----------
    layers : list of str
        Names of the layers that attend with keywise now.
    kept : dict of str to str
        Names of the layers that keep their attention, and why.

    Examples
    --------
    >>> Replacement(["layers.0.self_attn"], {}).layers
    ['layers.0.self_attn']
    """

    layers: list[str]
    kept: dict[str, str]


def replace_attention(model: Any) -> Replacement:
    """Make every ``torch.nn.MultiheadAttention`` of a model a `MultiheadAttention` of keywise.

    The layers stay the objects that they are, with their parameters, hooks and mode. Encoder layers of torch that hold
    one no longer call the fused kernel that reads their weights directly, and encoders do not build nested tensors.

    Parameters
    ----------
    model : torch.nn.Module
        The model; it is changed in place.

    Returns
    -------
    Replacement
        The names of the layers that were replaced, and of those that were not.

    Raises
    ------
    DtypeError
        `model` is not a module of torch.

    Examples
    --------
    >>> import torch, keywise.torch
    >>> model = torch.nn.Transformer(16, 2, num_encoder_layers=1, num_decoder_layers=1, batch_first=True)
    >>> for name in keywise.torch.replace_attention(model).layers:
    ...     print(name)
    encoder.layers.0.self_attn
    decoder.layers.0.self_attn
    decoder.layers.0.multihead_attn
    """
    if not isinstance(model, nn.Module):
        raise DtypeError("model", f"must be a torch.nn.Module, got a {type(model).__name__}")
    layers: list[str] = []
    kept: dict[str, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.MultiheadAttention) or isinstance(module, MultiheadAttention):
            continue
        if type(module) is not nn.MultiheadAttention:
            kept[name] = f"{type(module).__name__} is a subclass of torch.nn.MultiheadAttention"
            continue
        # The class has no state of its own, so the object keeps everything that refers to it.
        module.__class__ = MultiheadAttention
        _require_forward(module)
        layers.append(name)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and _has_replaced_layer(module):
            module.use_nested_tensor = False
    return Replacement(layers, kept)


def _has_replaced_layer(encoder: Any) -> bool:
    return any(isinstance(module, MultiheadAttention) for module in encoder.modules())


def _require_forward(module: Any) -> None:
    """Make the encoder layers of torch call a layer's forward.

    In inference they pass its weights to a fused kernel instead, unless a module inside them has a hook.
    """
    module.register_forward_pre_hook(_do_nothing)


def _do_nothing(_module: Any, _arguments: Any) -> None:
    return None


__all__ = ["MultiheadAttention", "Replacement", "replace_attention"]
