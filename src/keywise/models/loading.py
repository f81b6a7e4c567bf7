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
from keywise.models.gguf import convert_gguf
from keywise.models.packed_linear import pack_linear_layers
from keywise.models.quiet_transformers import quiet_transformers
from keywise.models.sources import ModelSource, describe_model, download_model, find_model, refuse_offline
from keywise.util.checks import check_bool
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
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", use_safetensors=True, trust_remote_code=False, local_files_only=True
            )
            is_small = model.num_parameters() <= MAX_SMALL_PARAMETERS
            model.to(getattr(torch, dtype or _choose_dtype(is_small=is_small))).eval()
            # Packing runs in torch, without the interpreter lock, while the tokenizer is loaded.
            with _pack_in_background(model) if pack_linear and is_small else nullcontext():
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            "source",
            f"{describe_model(name, folder)} cannot be loaded: {' '.join(str(error).split())}",
            remedy="use a causal language model with safetensors weights that transformers knows without extra code",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            "source", f"must have a fast tokenizer (tokenizer.json), which character offsets need; {name!r} has none"
        )
    return LoadedModel(model, tokenizer, name, folder)


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
