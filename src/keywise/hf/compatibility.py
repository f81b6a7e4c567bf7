"""The internals of transformers that keywise uses, looked for by name and not by version."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from keywise.errors import ModelError

TESTED_VERSIONS = "transformers>=5.5,<5.25"
"""The versions that `make test-versions` tests."""

REQUIRED_FEATURES = {
    "cache_utils": ("CacheLayerMixin", "DynamicLayer", "DynamicSlidingWindowLayer"),
    "masking_utils": (
        "and_masks",
        "bidirectional_mask_function",
        "causal_mask_function",
        "eager_mask",
        "packed_sequence_mask_function",
        "sdpa_mask(q_offset)",
        "sliding_window_bidirectional_overlay",
        "sliding_window_overlay",
    ),
    "modeling_utils": ("AttentionInterface", "PreTrainedModel"),
    "models.whisper.generation_whisper": ("WhisperGenerationMixin",),
    "models.whisper.tokenization_whisper": ("TO_LANGUAGE_CODE",),
    "models.auto.configuration_auto": ("CONFIG_MAPPING_NAMES", "model_type_to_module_name"),
    "models.auto.tokenization_auto": ("TOKENIZER_MAPPING_NAMES", "tokenizer_class_from_name"),
    "utils.output_capturing": ("_active_collector",),
}
"""What every supported version has, by module; of sdpa_mask, the argument q_offset too."""

# The helpers of masking_utils that return closures, with arguments to call them; not every version has all of them.
_CLOSURE_MAKERS: dict[str, tuple[Any, ...]] = {
    "and_masks": (),
    "packed_sequence_mask_function": (None,),
    "remap_positions_for_packed_sequence": (None, None),
    "sliding_window_bidirectional_overlay": (1,),
    "sliding_window_overlay": (1,),
}


def check_features() -> None:
    """Raise an error if an installed transformers lacks a feature that keywise needs.

    transformers is not imported: its source is read, which takes milliseconds.

    Raises
    ------
    ModelError
        A feature is missing.
    """
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return
    package = Path(spec.submodule_search_locations[0])
    for module, features in REQUIRED_FEATURES.items():
        for feature in features:
            if not _has_feature(package, module, feature):
                version = re.search(r'^__version__ = "(.+)"', _read_source(package / "__init__.py"), re.MULTILINE)
                raise ModelError(
                    "transformers",
                    f"must have {module}.{feature}, which version {version[1] if version else 'unknown'} lacks",
                    remedy=f'install a version that keywise is tested with: pip install "{TESTED_VERSIONS}"',
                )


def _has_feature(package: Path, module: str, feature: str) -> bool:
    name, _, argument = feature.rstrip(")").partition("(")
    loaded = sys.modules.get(f"transformers.{module}")
    if loaded is not None:
        found = getattr(loaded, name, None)
        return found is not None and (not argument or argument in inspect.signature(found).parameters)
    source = _read_source(package.joinpath(*module.split(".")).with_suffix(".py"))
    definition = re.search(rf"^(?:(?:def|class) {name}\b(?:\([^)]*)?|{name}\b)", source, re.MULTILINE)
    return definition is not None and argument in definition[0]


def _read_source(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def import_internals(module: str) -> Any:
    """Import a module of transformers.

    Parameters
    ----------
    module : str
        A key of `REQUIRED_FEATURES`, which lists the names to use.

    Examples
    --------
    >>> import_internals("cache_utils").DynamicLayer.__name__
    'DynamicLayer'
    """
    return importlib.import_module(f"transformers.{module}")


def identify_mask_function(function: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of the helper of transformers that is, or has made, a mask function, and its variables.

    Parameters
    ----------
    function : callable
        A mask function of ``transformers.masking_utils``, or any other.

    Returns
    -------
    str
        Empty for functions of others.
    dict
        The closure's variables by name.

    Examples
    --------
    >>> identify_mask_function(import_internals("masking_utils").sliding_window_overlay(4))
    ('sliding_window_overlay', {'sliding_window': 4})
    >>> identify_mask_function(lambda batch, head, query, key: query >= key)
    ('', {})
    """
    masking_utils = import_internals("masking_utils")
    for name in ("causal_mask_function", "bidirectional_mask_function"):
        if function is getattr(masking_utils, name):
            return name, {}
    code = getattr(function, "__code__", None)
    for name, known in _list_closure_codes():
        if code is not None and code is known:
            cells = function.__closure__ or ()
            return name, dict(zip(code.co_freevars, (cell.cell_contents for cell in cells), strict=True))
    return "", {}


@functools.cache
def _list_closure_codes() -> list[tuple[str, Any]]:
    """Return the code objects of the closures, which no other function shares."""
    masking_utils = import_internals("masking_utils")
    makers = {name: getattr(masking_utils, name, None) for name in _CLOSURE_MAKERS}
    return [(name, make(*_CLOSURE_MAKERS[name]).__code__) for name, make in makers.items() if make is not None]


def is_collecting_weights() -> bool:
    """Return whether transformers collects attention weights by hooks now."""
    # Not every model passes output_attentions to its layers.
    collector = import_internals("utils.output_capturing")._active_collector.get()
    return collector is not None and any(key.endswith("attentions") for key in collector)


def stores_nothing(layer: Any) -> bool:
    """Return whether a layer of a cache stands for a model's layer that stores no keys and values.

    Parameters
    ----------
    layer : object
        A layer of a ``transformers.DynamicCache``. Older versions have no layers for these.
    """
    placeholder = getattr(import_internals("cache_utils"), "DummyLayer", None)
    return placeholder is not None and type(layer) is placeholder


@functools.cache
def crops_to_length() -> bool:
    """Return whether ``transformers.Cache.crop`` takes the tokens that remain, and not those to remove."""
    return "max_length" in inspect.signature(import_internals("cache_utils").Cache.crop).parameters


def set_attention(part: Any, name: str) -> None:
    """Set the attention of one part of a model, without the checks and the recursion of ``set_attn_implementation``.

    Parameters
    ----------
    part : transformers.PreTrainedModel
        The part.
    name : str
        Name of the attention implementation.
    """
    part.config._attn_implementation_internal = name


def list_model_types() -> dict[str, Path]:
    """Return every model type of the installed transformers, and the folder with its source."""
    auto = import_internals("models.auto.configuration_auto")
    models = Path(importlib.import_module("transformers").__file__ or "").parent / "models"
    return {name: models / auto.model_type_to_module_name(name) for name in auto.CONFIG_MAPPING_NAMES}


def find_tokenizer_class(model_type: str) -> Any:
    """Return the class of fast tokenizers for the models of a type.

    Parameters
    ----------
    model_type : str
        The type, as in a model's configuration.

    Examples
    --------
    >>> find_tokenizer_class("qwen2").__name__, find_tokenizer_class("llama").__name__
    ('Qwen2Tokenizer', 'TokenizersBackend')
    """
    auto = import_internals("models.auto.tokenization_auto")
    found = auto.tokenizer_class_from_name(auto.TOKENIZER_MAPPING_NAMES.get(model_type) or "")
    general = importlib.import_module("transformers").PreTrainedTokenizerFast
    return found if found is not None and issubclass(found, general) else general


def find_gguf_processor(architecture: str, config: Any) -> Any:
    """Return the object by which transformers changes tensors of GGUF files into its own.

    Parameters
    ----------
    architecture : str
        The architecture, as the file names it.
    config : transformers.PretrainedConfig
        The configuration that transformers reads from the file.
    """
    module = import_internals("modeling_gguf_pytorch_utils")
    return module.TENSOR_PROCESSORS.get(architecture, module.TensorProcessor)(config=config.to_dict())


def keeps_rows(processor: Any) -> bool:
    """Return whether a processor leaves each row of a matrix as it is, and only changes the order of the rows.

    Parameters
    ----------
    processor
        From `find_gguf_processor`.
    """
    # The last adds to norms only.
    return type(processor).__name__ in {"TensorProcessor", "LlamaTensorProcessor", "Gemma2TensorProcessor"}


def map_gguf_names(model: Any, processor: Any, expected: Collection[str]) -> dict[str, str]:
    """Return the name of a model's parameter for each tensor of a GGUF file.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.
    processor
        From `find_gguf_processor`.
    expected : collection of str
        The tensors of the file.
    """
    find_names = import_internals("modeling_gguf_pytorch_utils").get_gguf_hf_weights_map
    # transformers looks at every submodule too, which takes seconds, but few families need it.
    whole = SimpleNamespace(config=model.config, state_dict=model.state_dict, named_children=list)
    names: dict[str, str] = find_names(whole, processor)
    if not names.keys() >= set(expected):
        names = find_names(model, processor)
    return names
