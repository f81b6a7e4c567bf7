"""Checks that the weights of a loaded model are all those of its files, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from keywise.models.safetensors_files import ModelFileError

_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.)")
_INTEGERS: Final = frozenset({"BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"})
_NAMES_SHOWN: Final = 3


def check_loading(model: Any, report: Mapping[str, Any], dtypes: Mapping[str, str]) -> None:
    """Raise an error unless all weights of a model come from its files, and the files have no other layers.

    transformers draws missing weights at random and ignores unexpected ones.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.
    report : mapping
        From ``from_pretrained(..., output_loading_info=True)``.
    dtypes : mapping of str to str
        The code of the dtype of each tensor in its safetensors files.

    Raises
    ------
    ModelFileError
        Weights are missing, have another shape or are integers, or the files have more layers than the model.
    """
    for what in ("missing_keys", "mismatched_keys"):
        names = [name if isinstance(name, str) else name[0] for name in report.get(what) or ()]
        if names:
            rule = "lack" if what == "missing_keys" else "have other shapes for"
            raise ModelFileError(f"its files {rule} {_join(names)} of {type(model).__name__}")
    parameters = dict(model.named_parameters())
    kinds = {_NUMBER.sub("*", name) for name in parameters}
    surplus = [name for name in report.get("unexpected_keys") or () if _NUMBER.sub("*", name) in kinds]
    if surplus:
        raise ModelFileError(f"its files have {_join(surplus)}, for which {type(model).__name__} has no place")
    if getattr(model.config, "quantization_config", None) is None:
        integers = [name for name in parameters if dtypes.get(name) in _INTEGERS]
        if integers:
            raise ModelFileError(f"its files have integers for {_join(integers)}")


def _join(names: Iterable[str]) -> str:
    ordered = sorted(names)
    rest = len(ordered) - _NAMES_SHOWN
    return ", ".join(ordered[:_NAMES_SHOWN]) + (f" and {rest:,} more weights" if rest > 0 else "")
