"""The keywords that models hand to every attention call: which are served, ignored or refused."""

from __future__ import annotations

import functools
import inspect
from types import CodeType, FunctionType
from typing import Any

from keywise.errors import ModelError
from keywise.hf.parts import list_model_classes

# Keywords whose information is also in the mask, the rotated keys or the shapes.
IGNORED_KEYWORDS = frozenset(
    {
        "attention_gate",
        "deterministic",
        "encoder_attention_mask",
        "encoder_hidden_states",
        "encoder_position_embeddings",
        "interpolate_pos_encoding",
        "layer_idx",
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "query_length",
        "return_dict",
        "shared_kv_states",
        "sliding_window",
        "spatial_shapes",
        "token_type_ids",
        "use_cache",
    }
)

_PACKED_SEQUENCES = "pass packed sequences by position_ids, with use_cache=False and without attention_mask"
REFUSED_KEYWORDS = {
    "output_attentions": "use keywise.hf.record_stats(model), which needs no n x n weights per head",
    "indices": "attention to selected keys only is not supported; use another attention for this model",
    "block_indices": "attention to selected blocks only is not supported; use another attention for this model",
    "cache": "paged caches are not supported; use generate() with its ordinary caches",
    "cu_seq_lens_q": _PACKED_SEQUENCES,
    "cu_seq_lens_k": _PACKED_SEQUENCES,
    "seq_idx": _PACKED_SEQUENCES,
}
_UNKNOWN_KEYWORD = "keywise does not know this keyword; leave it out, or use another attention"

_model_keywords: set[str] = set()


def check_keywords(module: Any, keywords: dict[str, Any]) -> None:
    """Raise an error if a keyword that keywise does not serve may change a layer's attention.

    Models hand the keywords of their own call down to every layer (``labels``, ``pixel_values``). Such a keyword is
    ignored if the layer's eager attention does not read it and a loaded model names it. Other keywords may be new.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer.
    keywords : dict
        Keywords of the call that `keywise.hf.attention.forward` does not name.

    Raises
    ------
    ModelError
        A keyword is set that may change the result.
    """
    for name, value in keywords.items():
        if value is None or value is False or name in IGNORED_KEYWORDS:
            continue
        if _may_change_result(type(module), name):
            raise make_keyword_error(module, name, value)


def check_traced_keywords(module: Any, keywords: dict[str, Any]) -> None:
    """Do what `check_keywords` does, while torch traces a graph.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer.
    keywords : dict
        As in `check_keywords`.

    Raises
    ------
    ModelError
        A keyword is set that may change the result.
    """
    for name, value in keywords.items():
        if value is None or value is False or name in IGNORED_KEYWORDS:
            continue
        if _may_change_result(type(module), name):
            raise make_keyword_error(module, name, value)


def _may_change_result(layer_class: type, name: str) -> bool:
    return name in REFUSED_KEYWORDS or _reads_keyword(layer_class, name) or not _is_model_keyword(name)


def make_keyword_error(module: Any, name: str, value: Any) -> ModelError:
    """Return the error for a keyword that is not served.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer.
    name : str
        The keyword.
    value : object
        Its value.
    """
    shown = value if isinstance(value, (bool, int, float, str)) else type(value).__name__
    return ModelError(
        name,
        f"must be left out in {type(module).__name__}",
        got=shown,
        remedy=REFUSED_KEYWORDS.get(name, _UNKNOWN_KEYWORD),
    )


@functools.cache
def _reads_keyword(layer_class: type, name: str) -> bool:
    """Return whether the eager attention of a layer's Python module reads a keyword."""
    for base in layer_class.__mro__:
        # Decorators have the globals of another Python module.
        forward: Any = vars(base).get("forward")
        function = getattr(inspect.unwrap(forward), "__globals__", {}).get("eager_attention_forward")
        if function is not None and name in list_words(inspect.unwrap(function).__code__):
            return True
    return False


def _is_model_keyword(name: str) -> bool:
    """Return whether the code of a loaded model names a keyword."""
    if name not in _model_keywords:
        # Models that were loaded since may name it.
        for model_class in list_model_classes():
            for member in vars(model_class).values():
                function = inspect.unwrap(member) if callable(member) else None
                if isinstance(function, FunctionType):
                    _model_keywords.update(list_words(function.__code__))
    return name in _model_keywords


def list_words(code: CodeType) -> set[str]:
    """Return the names of a function's parameters, and the strings in its code.

    Parameters
    ----------
    code : types.CodeType
        The function's code.
    """
    words = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    for constant in code.co_consts:
        if isinstance(constant, str):
            words.add(constant)
        elif isinstance(constant, tuple):
            words.update(each for each in constant if isinstance(each, str))
        elif isinstance(constant, CodeType):
            words |= list_words(constant)
    return words
