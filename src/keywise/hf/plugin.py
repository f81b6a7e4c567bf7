"""Gives transformers an attention named "keywise", and models that attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from keywise.errors import ModelError
from keywise.hf.attention import forward
from keywise.hf.masks import make_mask
from keywise.hf.parts import NAME, model_parts

Model = TypeVar("Model")


def register() -> None:
    """Make ``model.set_attn_implementation("keywise")`` and ``attn_implementation="keywise"`` known to transformers.

    Calling it again changes nothing.

    Raises
    ------
    ModelError
        When torch or transformers is not installed.

    Examples
    --------
    >>> import keywise.hf
    >>> keywise.hf.register()
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415 - slow to import, or absent
    except ImportError as error:
        raise ModelError(f"the plug-in needs torch and transformers ({error}): pip install 'keywise[hf]'") from error
    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, make_mask)


def use(model: Model) -> Model:
    """Register keywise, make it the model's attention, and check that it really is.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model; all its parts (text, vision, ...) get the attention.

    Returns
    -------
    transformers.PreTrainedModel
        The same model.

    Raises
    ------
    ModelError
        When the model, or a part of it, has attention of its own that transformers cannot exchange.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> import keywise.hf
    >>> small = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    >>> keywise.hf.use(LlamaForCausalLM(small)).config._attn_implementation
    'keywise'
    """
    parts = model_parts(model)
    before = [part.config._attn_implementation for part in parts]
    register()
    model.set_attn_implementation(NAME)  # type: ignore[attr-defined]  # model_parts() has checked the type
    after = [part.config._attn_implementation for part in parts]
    kept = {f"{type(part).__name__} (stays {name!r})" for part, name in zip(parts, after, strict=True) if name != NAME}
    if kept:
        for part, name in zip(parts, before, strict=True):
            part.config._attn_implementation_internal = name
        raise ModelError(
            f"model={type(model).__name__}: transformers cannot exchange the attention of {', '.join(sorted(kept))}; "
            "take a model whose attention goes through AttentionInterface, or set its other parts alone: "
            'model.set_attn_implementation({"text_config": "keywise"})'
        )
    return model


@contextmanager
def borrowed(model: Any) -> Iterator[None]:
    """Let a model attend by keywise inside the block; afterwards all its parts attend as before."""
    parts = model_parts(model)
    before = [part.config._attn_implementation for part in parts]
    use(model)
    try:
        yield
    finally:
        for part, name in zip(parts, before, strict=True):
            part.config._attn_implementation_internal = name
