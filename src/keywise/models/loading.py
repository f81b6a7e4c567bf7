"""Loading of language models and their tokenizers from safetensors and GGUF files.

Nothing is unpickled, and no code that lies beside weights is run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keywise.attention.targets import targets
from keywise.errors import ModelError, OptionError
from keywise.models.construction import limit_construction
from keywise.models.folder import list_model_files, stage_files
from keywise.models.gguf import convert_gguf
from keywise.models.loading_report import check_loading
from keywise.models.output_streams import discard_output
from keywise.models.packed_linear import pack_linear_layers
from keywise.models.quiet_transformers import quiet_transformers
from keywise.models.safetensors_files import HeaderSummary, ModelFileError
from keywise.models.sources import ModelSource, describe_model, download_model, find_model, refuse_offline
from keywise.models.tokenizer_check import check_tokenizer
from keywise.util.checks import check_bool
from keywise.util.foreign_errors import translate_errors
from keywise.util.optional_imports import require_modules
from keywise.util.paths import locate_cache_folder
from keywise.util.progress import Status

# Larger models are loaded in bfloat16 and not packed, to save memory.
MAX_SMALL_PARAMETERS = 1_000_000_000
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class LoadedModel:
    """A loaded language model with its tokenizer.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        The model, in evaluation mode, on the CPU.
    tokenizer : transformers.PreTrainedTokenizerFast
        Its tokenizer.
    name : str
        A hub id, or the name of the model's folder or file.
    folder : pathlib.Path or None
        The safetensors folder that it was loaded from; None for a model made in memory.

    Examples
    --------
    >>> from keywise.models import LoadedModel
    >>> LoadedModel(model, tokenizer, "my model", folder=None)  # doctest: +SKIP
    """

    model: Any
    tokenizer: Any
    name: str
    folder: Path | None


def load_model(
    source: str | os.PathLike[str] | None = None,
    *,
    dtype: str | None = None,
    pack_linear: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    status: Status | None = None,
) -> LoadedModel:
    """Load a language model and its tokenizer on the CPU.

    A GGUF file is converted once to a folder of bfloat16 safetensors, which later calls reuse.

    Parameters
    ----------
    source : path or str, optional
        A folder with safetensors, a ``.gguf`` file or a hub id. Default: see `find_model`.
    dtype : str, optional
        Data type of the computation, for any file: ``"float32"``, or ``"bfloat16"`` in half the memory.
        Default: bfloat16 where the CPU multiplies it directly, and for models of over a billion parameters; otherwise
        float32, which represents bfloat16 weights exactly.
    pack_linear : bool
        Whether the linear layers of a bfloat16 model of up to a billion parameters also store their weights in oneDNN's
        layout. Calls with few tokens are faster; the layers need their memory twice. See
        `keywise.models.packed_linear.pack_linear_layers`.
    cache_dir : path, optional
        Folder of converted models; default ``KEYWISE_CACHE_DIR``, else keywise's folder in the user's cache.
    status : callable, optional
        Called with a line of text before every slow step.

    Returns
    -------
    LoadedModel

    Raises
    ------
    ModelError
        There is no model, it cannot be loaded safely, or it has no fast tokenizer.
    OptionError
        `dtype` is not supported.
    DtypeError
        `pack_linear` is neither True nor False.

    Examples
    --------
    >>> from keywise.models import load_model
    >>> loaded = load_model()  # doctest: +SKIP
    >>> loaded.model.config.model_type  # doctest: +SKIP
    'llama'
    """
    if dtype not in {None, *DTYPES}:
        raise OptionError("dtype", f"must be one of {', '.join(DTYPES)}", got=dtype)
    check_bool("pack_linear", pack_linear)
    require_modules("hf", "torch", "transformers", "safetensors", "huggingface_hub")
    report = status or _ignore_status
    model_source = find_model(source)
    folder = _prepare_folder(model_source, cache_dir, report)
    report(f"Loading {model_source.name}")
    return _load_folder(model_source.name, folder, dtype, pack_linear=pack_linear)


def _ignore_status(_line: str) -> None:
    """Do nothing with a status line."""


def _prepare_folder(source: ModelSource, cache_dir: str | os.PathLike[str] | None, report: Status) -> Path:
    """Return the safetensors folder of a model, downloaded or converted if necessary."""
    if source.path is None:
        refuse_offline(source.name)
        report(f"Downloading {source.name} from the hub")
        return download_model(source)
    if source.kind == "gguf":
        return convert_gguf(source.path, locate_cache_folder(cache_dir), report)
    return source.path


def _load_folder(name: str, folder: Path, dtype: str | None, *, pack_linear: bool) -> LoadedModel:
    try:
        with (
            translate_errors(ModelFileError, ModelFileError),
            stage_files(list_model_files(folder)) as (staged, headers),
            translate_errors(ModelFileError, ModelFileError),
            quiet_transformers(),
        ):
            model = _load_weights(staged, headers)
            is_small = model.num_parameters() <= MAX_SMALL_PARAMETERS
            model.to(_resolve_dtype(dtype, is_small=is_small)).eval()
            # Packing runs in torch, without the interpreter lock, while the tokenizer is loaded.
            with _pack_in_background(model) if pack_linear and is_small else nullcontext():
                tokenizer = _load_tokenizer(staged)
    except ModelFileError as error:
        raise ModelError(
            "source",
            f"{describe_model(name, folder)} cannot be loaded: {error}",
            remedy="use a causal language model with safetensors weights that transformers knows without extra code",
        ) from error
    _rename_folder(model, tokenizer, staged, folder)
    if not tokenizer.is_fast:
        raise ModelError(
            "source", f"must have a fast tokenizer (tokenizer.json), which character offsets need; {name!r} has none"
        )
    return LoadedModel(model, tokenizer, name, folder)


def _load_weights(staged: Path, headers: HeaderSummary) -> Any:
    from transformers import AutoModelForCausalLM

    with limit_construction(headers):
        model, report = AutoModelForCausalLM.from_pretrained(
            staged,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    check_loading(model, report, headers.dtypes)
    return model


def _load_tokenizer(staged: Path) -> Any:
    from transformers import AutoTokenizer

    with discard_output():
        tokenizer = AutoTokenizer.from_pretrained(staged, trust_remote_code=False, local_files_only=True)
        if tokenizer.is_fast:
            check_tokenizer(tokenizer)
    return tokenizer


def _rename_folder(model: Any, tokenizer: Any, staged: Path, folder: Path) -> None:
    """Replace the temporary folder by the model's own in every attribute that names it."""
    model.config.name_or_path = model.name_or_path = str(folder)
    for attributes in (vars(tokenizer), tokenizer.init_kwargs):
        for name, value in attributes.items():
            if isinstance(value, str) and Path(value).is_relative_to(staged):
                attributes[name] = str(folder / Path(value).relative_to(staged))


def _resolve_dtype(dtype: str | None, *, is_small: bool) -> Any:
    import torch

    return getattr(torch, dtype or _choose_dtype(is_small=is_small))


def _choose_dtype(*, is_small: bool) -> str:
    if not is_small or "avx512_bf16" in targets():
        return "bfloat16"
    return "float32"


@contextmanager
def _pack_in_background(model: Any) -> Iterator[None]:
    with ThreadPoolExecutor(1) as executor:
        packing = executor.submit(pack_linear_layers, model)
        yield
        packing.result()
