"""Registration of keywise as an attention implementation of transformers, and its use by models."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from keywise.errors import ModelError
from keywise.hf import support, whisper
from keywise.hf.compatibility import set_attention
from keywise.hf.parts import ATTENTION_NAME, import_transformers, list_parts, unwrap_model

Model = TypeVar("Model")

_MODELS_MODULE = "transformers.modeling_utils"


def register() -> None:
    """Register the attention implementation ``"keywise"`` with transformers.

    Afterwards ``model.set_attn_implementation("keywise")`` and ``from_pretrained(..., attn_implementation="keywise")``
    work. Importing keywise.hf does the same, once transformers is imported too. Only `use` checks that keywise serves
    the model. A second call changes nothing.

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


class _TransformersFinder:
    """Change a module of transformers as soon as it is imported.

    Parameters
    ----------
    module : str
        The module's name.
    change : callable
        Called with the module after its import.
    """

    def __init__(self, module: str, change: Callable[[Any], None]) -> None:
        self.module = module
        self._change = change

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        """Return the module's own spec, whose loader also makes the change."""
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_change(module: Any) -> None:
                execute(module)
                self._change(module)

            spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


def register_on_import() -> None:
    """Register keywise with transformers now if it is imported, otherwise as soon as it is."""
    _change_on_import(_MODELS_MODULE, _register_or_warn)
    _change_on_import(whisper.MODULE, whisper.adapt_generation)


def _change_on_import(name: str, change: Callable[[Any], None]) -> None:
    """Change a module now if it is imported, otherwise as soon as it is."""
    if name in sys.modules:
        change(sys.modules[name])
    elif not any(isinstance(finder, _TransformersFinder) and finder.module == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _TransformersFinder(name, change))


def _register_or_warn(_module: Any) -> None:
    # transformers stays usable without keywise.
    try:
        register()
    except ModelError as error:
        warnings.warn(f"keywise is not registered with transformers: {error}", stacklevel=2)


def use(model: Model) -> Model:
    """Make keywise the attention of a model, and check that it is.

    A warning names the parts that keep torch's attention (``torch.nn.MultiheadAttention``), and a model without any
    attention: their attention is not recorded.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model. All its parts (text, vision, ...) use the attention. It may be wrapped by ``torch.compile``,
        ``torch.nn.DataParallel`` or ``peft.get_peft_model``.

    Returns
    -------
    transformers.PreTrainedModel
        The same model.

    Raises
    ------
    DtypeError
        `model` is not a transformers model.
    ModelError
        The model, or a part of it, has attention that would not call keywise, or is of a family whose results are not
        tested. No part is changed then.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> import keywise.hf
    >>> small = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    >>> keywise.hf.use(LlamaForCausalLM(small)).config._attn_implementation
    'keywise'
    """
    inner = unwrap_model(model)
    reason = support.explain_refusal(inner)
    if reason is not None:
        raise _make_refusal(inner, reason)
    parts = list_parts(inner)
    previous = [part.config._attn_implementation for part in parts]
    register()
    try:
        inner.set_attn_implementation(ATTENTION_NAME)
        for part in parts:
            # Some versions skip parts with a copy of the configuration of the model around them.
            if part.config._attn_implementation != ATTENTION_NAME:
                part.set_attn_implementation(ATTENTION_NAME)
    except ValueError as error:
        _restore_attention(parts, previous)
        raise _make_refusal(inner, f"transformers cannot replace it ({error})") from error
    unchanged = {
        f"{type(part).__name__} (keeps {part.config._attn_implementation!r})"
        for part in parts
        if part.config._attn_implementation != ATTENTION_NAME
    }
    if unchanged:
        _restore_attention(parts, previous)
        raise _make_refusal(inner, f"transformers cannot replace it in {', '.join(sorted(unchanged))}")
    _warn_of_unrecorded_layers(inner)
    return model


def _make_refusal(model: Any, reason: str) -> ModelError:
    parts = [f"keywise.hf.use(model.get_submodule({name!r}))" for name in support.find_servable_parts(model)]
    own = sorted({repr(part.config._attn_implementation) for part in list_parts(model)})
    return ModelError(
        "model",
        f"must have attention that keywise serves; in {type(model).__name__}, {reason}",
        remedy=f"serve parts of it alone: {', '.join(parts)}" if parts else f"keep its attention: {', '.join(own)}",
    )


def _warn_of_unrecorded_layers(model: Any) -> None:
    unrecorded = support.find_unrecorded_layers(model)
    if not support.count_served_layers(model):
        reason = "has no attention layer"
    elif unrecorded:
        reason = f"keeps the attention of {', '.join(unrecorded)}"
    else:
        return
    warnings.warn(f"{type(model).__name__} {reason}: keywise records nothing there", stacklevel=3)


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
