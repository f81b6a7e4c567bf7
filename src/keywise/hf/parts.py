"""The modules of a transformers model, and its parts with separate attention settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keywise.errors import DtypeError, ModelError

ATTENTION_NAME = "keywise"
"""Name of keywise's attention and mask functions in transformers."""


def import_transformers() -> Any:
    """Import torch and transformers.

    Returns
    -------
    module
        The module ``transformers``.

    Raises
    ------
    ModelError
        One of the two packages cannot be imported.

    Examples
    --------
    >>> import_transformers().__name__
    'transformers'
    """
    try:
        import torch  # noqa: F401  (transformers imports without it, but has no models then)
        import transformers
    except ImportError as error:
        raise ModelError(
            "model",
            f"needs torch and transformers, which cannot be imported ({error})",
            remedy="install them with `pip install 'keywise[hf]'`",
        ) from error
    return transformers


def check_model(model: Any) -> None:
    """Raise an error unless an argument is a transformers model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model.

    Raises
    ------
    DtypeError
        `model` is not a transformers model.
    ModelError
        torch or transformers is not installed.
    """
    model_class = import_transformers().PreTrainedModel
    if not isinstance(model, model_class):
        raise DtypeError(
            "model",
            "must be a loaded transformers model (PreTrainedModel)",
            got=type(model).__name__,
            remedy=_name_inner_model(model, model_class),
        )


def unwrap_model(model: Any) -> Any:
    """Return the transformers model inside of the wrappers of torch and peft.

    Parameters
    ----------
    model : transformers.PreTrainedModel or torch.nn.Module
        A loaded model, or what `torch.compile`, `torch.nn.DataParallel`, `DistributedDataParallel` or
        `peft.get_peft_model` made of it.

    Returns
    -------
    transformers.PreTrainedModel
        The model itself where it is not wrapped.

    Raises
    ------
    DtypeError
        `model` is neither a transformers model nor such a wrapper of one.
    ModelError
        torch or transformers is not installed.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaModel
    >>> small = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    >>> model = LlamaModel(small)
    >>> unwrap_model(torch.nn.DataParallel(torch.compile(model))) is model
    True
    """
    model_class = import_transformers().PreTrainedModel
    inner = model
    while not isinstance(inner, model_class) and (wrapped := _get_wrapped(inner)) is not None:
        inner = wrapped
    if not isinstance(inner, model_class):
        check_model(model)
    return inner


def _get_wrapped(module: Any) -> Any:
    """Return the module inside a wrapper of torch or peft, or None."""
    for name in ("_orig_mod", "module"):
        if name in getattr(module, "_modules", ()):
            return module._modules[name]
    get_base_model = getattr(type(module), "get_base_model", None)
    return None if get_base_model is None else get_base_model(module)


def _name_inner_model(module: Any, model_class: type) -> str:
    """Return the advice to pass the transformers model inside a module, if there is one."""
    modules = module.named_modules() if hasattr(module, "named_modules") else ()
    names = [name for name, inner in modules if isinstance(inner, model_class)]
    return f"pass the transformers model inside: model.get_submodule({names[0]!r})" if names else ""


def name_modules(model: Any) -> dict[Any, str]:
    """Return the qualified name of every module of a model, itself included.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model, which may be wrapped (see `unwrap_model`). Names are those inside the wrapper.

    Raises
    ------
    DtypeError
        `model` is not a transformers model.
    ModelError
        torch or transformers is not installed.
    """
    return {module: name for name, module in unwrap_model(model).named_modules()}


def select_parts(modules: Iterable[Any]) -> list[Any]:
    """Return the modules that have an attention setting of their own.

    Parameters
    ----------
    modules : iterable of torch.nn.Module
        Modules of one model.
    """
    from transformers import PreTrainedModel

    return [module for module in modules if isinstance(module, PreTrainedModel)]


def list_parts(model: Any) -> list[Any]:
    """Return the parts of a model that have an attention setting of their own.

    The model itself is one of them.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model.

    Raises
    ------
    DtypeError
        `model` is not a transformers model.
    ModelError
        torch or transformers is not installed.
    """
    return select_parts(name_modules(model))


def list_model_classes() -> list[Any]:
    """Return the classes of models that are loaded: those derived from ``transformers.PreTrainedModel``."""
    found = list(import_transformers().PreTrainedModel.__subclasses__())
    for model_class in found:
        found += model_class.__subclasses__()
    return found
