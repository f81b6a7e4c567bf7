"""Which transformers models keywise serves: the rules and their exceptions.

A layer is served if it calls the attention interface of transformers. A model is refused if a layer computes scores of
queries and keys by code of its own: keywise could neither compute nor record them. It is also refused if its classes
declare ``_supports_sdpa = False`` and its family is not among `SERVED_WITHOUT_SDPA`. Such models are written for eager
attention alone: for additive masks, and for None as no mask at all.
"""

from __future__ import annotations

import dis
import enum
import functools
import inspect
from collections import defaultdict
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from keywise.hf.keywords import list_words
from keywise.hf.parts import list_model_classes, name_modules, select_parts

SERVED_WITHOUT_SDPA = frozenset(
    {
        "align",
        "bridgetower",
        "clap",
        "flint",
        "gemma2",
        "git",
        "gpt_oss",
        "granite_swa",
        "granitemoe_swa",
        "informer",
        "markuplm",
        "mimo_v2_flash",
        "nllb_moe",
        "openai_privacy_filter",
        "patchtsmixer",
        "speech_to_text",
        "splinter",
        "switch_transformers",
        "t5gemma",
        "time_series_transformer",
        "vaultgemma",
    }
)
"""Families that declare ``_supports_sdpa = False`` and are served: each is compared with eager attention by a test."""

_EMPTY_ROWS = "lets queries that see no key attend to hidden ones; keywise sets them to 0"
REFUSED_FAMILIES = {
    "deepseek_v4": "attends to compressed keys, which are not tokens",
    "timesfm": _EMPTY_ROWS,
    "videoprism": _EMPTY_ROWS,
}
"""Families that are refused although their layers call the attention interface, and why."""


class LayerKind(enum.Enum):
    """How a module attends."""

    SERVED = "calls the attention interface"
    OWN = "computes attention by code of its own"
    SPARSE = "attends to selected keys only"
    MINOR = "keeps torch's attention, or attends inside an image codec"
    NONE = "does not attend"


_INTERFACE_NAMES = frozenset({"get_interface", "ALL_ATTENTION_FUNCTIONS", "AttentionInterface"})
_ATTENTION_CALLS = frozenset(
    {
        "_flash_attention_forward",
        "flash_attn_func",
        "flex_attention",
        "memory_efficient_attention",
        "multi_head_attention_forward",
        "scaled_dot_product_attention",
    }
)
# Keywords that select keys: see REFUSED_KEYWORDS.
_SPARSE_KEYWORDS = frozenset({"block_indices", "indices"})
_PRODUCTS = frozenset({"baddbmm", "bmm", "einsum", "matmul"})
_BINARY_MATMUL = "@"
_HELPER_DEPTH = 3
# These attend to earlier layers, and pool by learned weights: they have no scores of queries and keys of tokens.
_WITHOUT_KEYS = frozenset({"EsmFold2RowAttentionPooling", "Inkling2BlockAttentionResidual"})


def explain_refusal(model: Any) -> str | None:
    """Return why keywise does not serve a model, or None if it does.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model.

    Returns
    -------
    str or None
        A clause about the model's layers, for an error.

    Raises
    ------
    DtypeError
        `model` is not a transformers model.
    ModelError
        torch or transformers is not installed.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaModel, XLNetConfig, XLNetModel
    >>> small = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    >>> explain_refusal(LlamaModel(small)) is None
    True
    >>> explain_refusal(XLNetModel(XLNetConfig(vocab_size=8, d_model=16, n_layer=1, n_head=2, d_inner=16)))
    'XLNetRelativeAttention (layer.0.rel_attn) computes attention by code of its own'
    """
    modules = name_modules(model)
    layers = _group_layers(modules)
    reasons = [
        f"{layer} ({name}) {kind.value}"
        for kind in (LayerKind.OWN, LayerKind.SPARSE)
        for layer, name in _list_first_names(layers[kind], modules)
    ]
    reasons += [
        f"{owner} {REFUSED_FAMILIES.get(family, f'declares _supports_sdpa=False, and {family} is not tested')}"
        for owner, family in sorted(_find_untested_owners(layers[LayerKind.SERVED], modules))
    ]
    if not reasons and not layers[LayerKind.SERVED]:
        named = [module for module in modules if "attention" in type(module).__name__.lower()]
        reasons = [
            f"{layer} ({name}) does not call the attention interface of transformers"
            for layer, name in _list_first_names(named, modules)
        ]
    return "; ".join(reasons) or None


def count_served_layers(model: Any) -> int:
    """Return the number of a model's layers that call the attention interface.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model.
    """
    return len(_group_layers(name_modules(model))[LayerKind.SERVED])


def find_unrecorded_layers(model: Any) -> list[str]:
    """Return the layers of a served model that keep their attention: they are exact, and not recorded.

    These are ``torch.nn.MultiheadAttention``, mostly in pooling heads, and attention inside the codecs of images.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model.
    """
    modules = name_modules(model)
    return [modules[module] for module in _group_layers(modules)[LayerKind.MINOR]]


def find_servable_parts(model: Any) -> list[str]:
    """Return the names of the largest parts of a refused model that can be served alone.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model.
    """
    modules = name_modules(model)
    found: list[str] = []
    for part in select_parts(modules):
        name = modules[part]
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if part is model or is_inside or explain_refusal(part) is not None or not count_served_layers(part):
            continue
        # A configuration that is shared with another part would change that part too.
        inner = set(part.modules())
        configs = {id(each.config) for each in select_parts(inner)}
        if not any(id(vars(other).get("config")) in configs for other in modules if other not in inner):
            found.append(name)
    return found


def _group_layers(modules: dict[Any, str]) -> dict[LayerKind, list[Any]]:
    groups: dict[LayerKind, list[Any]] = defaultdict(list)
    for module in modules:
        groups[classify_layer(type(module))].append(module)  # type: ignore[arg-type]  # classes are hashable
    return groups


def _list_first_names(layers: list[Any], modules: dict[Any, str]) -> list[tuple[str, str]]:
    """Return each class of some modules and the name of its first module."""
    first: dict[str, str] = {}
    for layer in layers:
        first.setdefault(type(layer).__name__, modules[layer])
    return sorted(first.items())


def _find_untested_owners(layers: list[Any], modules: dict[Any, str]) -> set[tuple[str, str]]:
    """Return class and family of the models that are refused, or written for eager attention alone and not tested."""
    owners = {modules[part]: part for part in select_parts(modules)}
    untested = set()
    for layer in layers:
        owner = _find_owner(modules[layer], owners)
        family = get_family(type(owner))
        if family in REFUSED_FAMILIES or (not owner._supports_sdpa and family not in SERVED_WITHOUT_SDPA):
            untested.add((type(owner).__name__, family))
    return untested


def _find_owner(name: str, owners: dict[str, Any]) -> Any:
    """Return the innermost model that contains a module."""
    while name not in owners:
        name = name.rpartition(".")[0]
    return owners[name]


def get_family(layer_class: type) -> str:
    """Return the name of the folder of transformers that defines a class, or its package elsewhere.

    Parameters
    ----------
    layer_class : type
        A class of a model or layer.

    Examples
    --------
    >>> from transformers import LlamaModel
    >>> get_family(LlamaModel)
    'llama'
    """
    path = layer_class.__module__.split(".")
    return path[2] if path[:2] == ["transformers", "models"] else ".".join(path[:-1]) or path[0]


@functools.cache
def is_eager_only(config_class: type) -> bool:
    """Return whether the models of a configuration class are written for eager attention alone.

    Parameters
    ----------
    config_class : type
        The class of a model's configuration.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaModel
    >>> is_eager_only(LlamaConfig)
    False
    """
    family = [each for each in list_model_classes() if get_family(each) == get_family(config_class)]
    # Parts of some models have configurations that no class declares as its own.
    models = [each for each in family if each.config_class is config_class] or family
    return bool(models) and not any(each._supports_sdpa for each in models)


@functools.cache
def classify_layer(layer_class: type) -> LayerKind:
    """Return how modules of a class attend, by the names in their code.

    Parameters
    ----------
    layer_class : type
        The class of a module.

    Examples
    --------
    >>> from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP
    >>> classify_layer(LlamaAttention).name, classify_layer(LlamaMLP).name
    ('SERVED', 'NONE')
    """
    import torch
    from transformers import PreTrainedModel

    name = layer_class.__name__.lower()
    if issubclass(layer_class, torch.nn.MultiheadAttention):
        return LayerKind.MINOR
    if issubclass(layer_class, PreTrainedModel) or layer_class.__name__ in _WITHOUT_KEYS:
        return LayerKind.NONE
    methods = _list_methods(layer_class)
    names = set().union(*(_find_names(function, _HELPER_DEPTH) for function in methods))
    if names & _INTERFACE_NAMES:
        words = set().union(*(list_words(function.__code__) for function in methods))
        return LayerKind.SPARSE if words & _SPARSE_KEYWORDS else LayerKind.SERVED
    has_softmax = any(each.lower().endswith("softmax") for each in names)
    if not names & _ATTENTION_CALLS and not (has_softmax and names & {*_PRODUCTS, _BINARY_MATMUL}):
        return LayerKind.NONE
    # Losses, routers and indexers multiply and normalise too.
    if "attention" in name:
        return LayerKind.OWN
    return LayerKind.MINOR if "attn" in name else LayerKind.NONE


def _list_methods(layer_class: type) -> list[FunctionType]:
    """Return the methods of a class that calls of its objects can reach."""
    methods: dict[str, list[FunctionType]] = {}
    for base in layer_class.__mro__:
        if base is object or base.__module__.partition(".")[0] == "torch":
            continue
        for name, member in vars(base).items():
            function = inspect.unwrap(getattr(member, "__func__", member)) if callable(member) else None
            overriding = methods.setdefault(name, [])
            if isinstance(function, FunctionType) and (not overriding or "super" in overriding[-1].__code__.co_names):
                overriding.append(function)
    return [function for functions in methods.values() for function in functions]


def _find_names(function: FunctionType, depth: int) -> set[str]:
    """Return the names that a function's code uses, and those of the helpers in its package that it calls."""
    names = set().union(*(_list_code_names(code) for code in _list_code(function.__code__)))
    if depth == 0:
        return names
    package = function.__module__.partition(".")[0]
    for name in list(names):
        helper = function.__globals__.get(name)
        helper = inspect.unwrap(helper) if isinstance(helper, FunctionType) else None
        if helper is not None and helper is not function and (helper.__module__ or "").partition(".")[0] == package:
            names |= _find_names(helper, depth - 1)
    return names


def _list_code(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _list_code(constant)


def _list_code_names(code: CodeType) -> set[str]:
    operators = {each.argrepr for each in dis.get_instructions(code) if each.opname == "BINARY_OP"}
    return {*code.co_names, *code.co_freevars, *operators}
