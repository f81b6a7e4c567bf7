"""Which parts of a model choose their attention, and the name under which they choose keywise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keywise.errors import DtypeError, ModelError

NAME = "keywise"


def named_modules(model: Any) -> dict[Any, str]:
    """Give all modules of a model, itself included, with their qualified names."""
    try:
        from transformers import PreTrainedModel  # noqa: PLC0415 - slow to import, or absent
    except ImportError as error:
        raise ModelError(f"the plug-in needs torch and transformers ({error}): pip install 'keywise[hf]'") from error
    if not isinstance(model, PreTrainedModel):
        raise DtypeError(f"model is a {type(model).__name__}; give a loaded transformers model (a PreTrainedModel)")
    return {module: name for name, module in model.named_modules()}


def parts_among(modules: Iterable[Any]) -> list[Any]:
    """List the modules that have a configuration, and so a choice of attention, of their own."""
    from transformers import PreTrainedModel  # noqa: PLC0415 - slow to import

    return [module for module in modules if isinstance(module, PreTrainedModel)]


def model_parts(model: Any) -> list[Any]:
    """List the parts of a model, itself included, that have a configuration of their own."""
    return parts_among(named_modules(model))
