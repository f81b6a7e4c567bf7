"""Which parts of a model choose their attention, and the name under which they choose keywise."""

from __future__ import annotations

from typing import Any

from keywise.errors import DtypeError, ModelError

NAME = "keywise"


def model_parts(model: Any) -> list[Any]:
    """List the parts of a model that have a configuration, and so a choice of attention, of their own."""
    try:
        from transformers import PreTrainedModel  # noqa: PLC0415 - slow to import, or absent
    except ImportError as error:
        raise ModelError(f"the plug-in needs torch and transformers ({error}): pip install 'keywise[hf]'") from error
    if not isinstance(model, PreTrainedModel):
        raise DtypeError(f"model is a {type(model).__name__}; give a loaded transformers model (a PreTrainedModel)")
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]
