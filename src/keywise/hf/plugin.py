"""Registration of keywise as an attention implementation of transformers, and its use by models."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from keywise.errors import ModelError
from keywise.hf.compatibility import list_model_types, set_attention
from keywise.hf.parts import ATTENTION_NAME, import_transformers, list_parts

Model = TypeVar("Model")


def register() -> None:
    """Register the attention implementation ``"keywise"`` with transformers.

    Afterwards ``model.set_attn_implementation("keywise")`` and ``from_pretrained(..., attn_implementation="keywise")``
    work. A second call changes nothing.

    Raises
    ------
    ModelError
        torch or transformers is not installed.

    Examples
    --------
    >>> import keywise.hf
    >>> keywise.hf.register()
    """
    transformers = import_transformers()
    from keywise.hf.attention import forward
    from keywise.hf.masks import make_mask

    transformers.AttentionInterface.register(ATTENTION_NAME, forward)
    transformers.AttentionMaskInterface.register(ATTENTION_NAME, make_mask)


def use(model: Model) -> Model:
    """Make keywise the attention of a model, and check that it is.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model. All its parts (text, vision, ...) use the attention.

    Returns
    -------
    transformers.PreTrainedModel
        The same model.

    Raises
    ------
    DtypeError
        `model` is not a transformers model.
    ModelError
        The model, or a part of it, has attention of its own that transformers cannot replace. No part is changed then.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> import keywise.hf
    >>> small = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    >>> keywise.hf.use(LlamaForCausalLM(small)).config._attn_implementation
    'keywise'
    """
    parts = list_parts(model)
    previous = [part.config._attn_implementation for part in parts]
    register()
    model.set_attn_implementation(ATTENTION_NAME)  # type: ignore[attr-defined]  # list_parts() has checked the type
    unchanged = {
        f"{type(part).__name__} (keeps {part.config._attn_implementation!r})"
        for part in parts
        if part.config._attn_implementation != ATTENTION_NAME
    }
    if unchanged:
        _restore_attention(parts, previous)
        raise ModelError(
            "model",
            f"must have attention that transformers can replace; it cannot in {', '.join(sorted(unchanged))}",
            remedy="use a model whose attention goes through AttentionInterface (see keywise.hf.supported()), or set "
            'its other parts alone: model.set_attn_implementation({"text_config": "keywise"})',
        )
    return model


@contextmanager
def use_temporarily(model: Any) -> Iterator[None]:
    """Make keywise the attention of a model inside a ``with`` block.

    Afterwards every part of the model has the attention that it had before.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model.

    Raises
    ------
    DtypeError, ModelError
        As in `use`.
    """
    parts = list_parts(model)
    previous = [part.config._attn_implementation for part in parts]
    use(model)
    try:
        yield
    finally:
        _restore_attention(parts, previous)


def _restore_attention(parts: list[Any], names: list[str]) -> None:
    for part, name in zip(parts, names, strict=True):
        set_attention(part, name)


def supported() -> list[str]:
    """List the model types whose attention layers keywise can replace.

    These are the types of the installed transformers whose source calls the attention interface; no model is imported.
    A type that only combines other models, such as an image encoder with a language model, is not listed: its parts
    decide.

    Returns
    -------
    list of str
        Values of ``config.model_type``, sorted.

    Raises
    ------
    ModelError
        torch or transformers is not installed.

    Examples
    --------
    >>> import keywise.hf
    >>> "llama" in keywise.hf.supported(), "xlnet" in keywise.hf.supported()
    (True, False)
    """
    return list(_find_supported_types())


@functools.cache
def _find_supported_types() -> tuple[str, ...]:
    import_transformers()
    return tuple(sorted(name for name, folder in list_model_types().items() if _calls_attention_interface(folder)))


def _calls_attention_interface(folder: Path) -> bool:
    # transformers decides by the same text whether set_attn_implementation() may change a model.
    return any(
        "ALL_ATTENTION_FUNCTIONS.get_interface(" in path.read_text(encoding="utf-8")
        for path in folder.glob("modeling_*.py")
    )
