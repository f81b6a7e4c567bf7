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
    if not isinstance(model, import_transformers().PreTrainedModel):
        raise DtypeError("model", "must be a loaded transformers model (PreTrainedModel)", got=type(model).__name__)


def name_modules(model: Any) -> dict[Any, str]:
    """Return the qualified name of every module of a model, itself included.

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
    check_model(model)
    return {module: name for name, module in model.named_modules()}


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
