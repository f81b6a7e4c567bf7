"""Loading of language models and their tokenizers from safetensors and GGUF files.

Nothing is unpickled, and no code that lies beside weights is run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keywise.attention.quantised import BLOCK_FORMATS
from keywise.attention.targets import targets
from keywise.errors import ModelError, OptionError
from keywise.models.construction import limit_construction
from keywise.models.ctranslate2 import MODEL_FILE
from keywise.models.fingerprints import fingerprint
from keywise.models.folder import CONFIG, MAX_PARTS, check_config, list_model_files, read_json, stage_files
from keywise.models.gguf import GgufModel, convert_gguf
from keywise.models.loading_report import check_loading
from keywise.models.memory import check_memory
from keywise.models.output_streams import discard_output
from keywise.models.packed_linear import pack_linear_layers
from keywise.models.quiet_transformers import quiet_transformers
from keywise.models.safetensors_files import HeaderSummary, ModelFileError
from keywise.models.sources import ModelSource, describe_model, download_model, find_model, refuse_offline
from keywise.models.tokenizer_check import check_tokenizer
from keywise.util.checks import check_bool
from keywise.util.foreign_errors import translate_errors
from keywise.util.garbage import pause_garbage_collection
from keywise.util.optional_imports import require_modules
from keywise.util.progress import Status

# Larger models are loaded in bfloat16 and not packed, to save memory.
MAX_SMALL_PARAMETERS = 1_000_000_000
DTYPES = ("float32", "bfloat16")
WEIGHTS = ("as-is", "expanded", "int4", "int8")
# Formats of 4 and 8 bits with a scale per 32 weights, into which gguf converts numbers.
_FORMATS = {"int4": "Q4_1", "int8": "Q8_0"}


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
        The folder that the tokenizer, and weights of safetensors, were loaded from; None for a model made in memory.
    weights_file : pathlib.Path or None
        The GGUF file, or its first part, or the file of CTranslate2, that the weights were loaded from.
    weights : str
        Form of the weights: ``"as-is"``, ``"expanded"``, ``"int4"`` or ``"int8"``; see `load_model`.
    processor : transformers.ProcessorMixin or None
        Makes the input of a model that hears; None for models of text.

    Examples
    --------
    >>> from keywise.models import LoadedModel
    >>> LoadedModel(model, tokenizer, "my model", folder=None)  # doctest: +SKIP
    """

    model: Any
    tokenizer: Any
    name: str
    folder: Path | None
    weights_file: Path | None = None
    weights: str = "as-is"
    processor: Any = None

    @property
    def parameters(self) -> int:
        """Number of weights, each counted once."""
        matrices = {id(layer.matrix): layer.matrix for layer in self.model.modules() if hasattr(layer, "matrix")}
        in_blocks = sum(math.prod(matrix.shape) for matrix in matrices.values())
        return int(self.model.num_parameters() + in_blocks)

    def fingerprint(self, cache_dir: str | os.PathLike[str] | None = None) -> dict[str, str]:
        """Return the digests of `keywise.models.fingerprint` for this model, its tokenizer and its files.

        Parameters
        ----------
        cache_dir : path, optional
            Where digests of files are stored.
        """
        return fingerprint(
            self.model, self.tokenizer, folder=self.folder, weights_file=self.weights_file, cache_dir=cache_dir
        )


def load_model(
    source: str | os.PathLike[str] | None = None,
    *,
    dtype: str | None = None,
    weights: str | None = None,
    pack_linear: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    status: Status | None = None,
) -> LoadedModel:
    """Load a language model and its tokenizer on the CPU.

    The weights of a GGUF file stay in its blocks: the model needs about as much memory as the file. The configuration
    and the tokenizer of such a file are converted once to a folder, which later calls reuse.

    Parameters
    ----------
    source : path or str, optional
        A folder with safetensors or of faster-whisper (CTranslate2), a ``.gguf`` file or a hub id. Default: see
        `find_model`. Besides causal language models, these are encoder-decoders for text and Whisper.
    dtype : str, optional
        Data type of the computation, for any file: ``"float32"``, or ``"bfloat16"`` in half the memory.
        Default: bfloat16 where the CPU multiplies it directly, and for models of over a billion parameters whose
        weights are not in blocks; otherwise float32, which represents bfloat16 weights exactly.
    weights : str, optional
        Form of the weights of linear layers and embeddings. ``"as-is"``: as in the file, in blocks for a GGUF.
        ``"expanded"``: as numbers of `dtype`. ``"int4"`` and ``"int8"``: in blocks of 32 weights with a scale (GGUF's
        Q4_1 and Q8_0), to which other weights are rounded. Default: as-is.
    pack_linear : bool
        Whether the linear layers of a bfloat16 model of up to a billion parameters also store their weights in oneDNN's
        layout. Calls with few tokens are faster; the layers need their memory twice. Layers in blocks stay as they
        are. See `keywise.models.packed_linear.pack_linear_layers`.
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
        There is no model, it cannot be loaded safely, it needs more memory than is available, it has no fast tokenizer,
        or a layer's size is no multiple of the 32 weights of a block.
    OptionError
        `dtype` or `weights` is not supported.
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
    if weights not in {None, *WEIGHTS}:
        raise OptionError("weights", f"must be one of {', '.join(WEIGHTS)}", got=weights)
    check_bool("pack_linear", pack_linear)
    require_modules("hf", "torch", "transformers", "safetensors", "huggingface_hub")
    report = status or _ignore_status
    with pause_garbage_collection():
        loaded = _load(find_model(source), dtype, weights or "as-is", cache_dir, report, pack_linear=pack_linear)
    if not loaded.tokenizer.is_fast:
        rule = "must have a fast tokenizer (tokenizer.json), which character offsets need"
        raise ModelError("source", f"{rule}; {loaded.name!r} has none")
    return loaded


def _load(
    source: ModelSource,
    dtype: str | None,
    weights: str,
    cache_dir: str | os.PathLike[str] | None,
    report: Status,
    *,
    pack_linear: bool,
) -> LoadedModel:
    if source.kind == "gguf" and source.path is not None:
        gguf_model = convert_gguf(source.path, cache_dir, report)
        report(f"Loading {source.name}")
        return _load_gguf(source.name, gguf_model, dtype, weights)
    if source.kind == "ctranslate2" and source.path is not None:
        report(f"Loading {source.name}")
        return _load_ct2(source.name, source.path, dtype, weights)
    folder = _find_folder(source, report)
    report(f"Loading {source.name}")
    return _load_folder(source.name, folder, dtype, weights, pack_linear=pack_linear)


def _ignore_status(_line: str) -> None:
    """Do nothing with a status line."""


def _find_folder(source: ModelSource, report: Status) -> Path:
    """Return the safetensors folder of a model, downloaded if necessary."""
    if source.path is not None:
        return source.path
    refuse_offline(source.name)
    report(f"Downloading {source.name} from the hub")
    return download_model(source)


def _load_folder(name: str, folder: Path, dtype: str | None, weights: str, *, pack_linear: bool) -> LoadedModel:
    try:
        with (
            translate_errors(ModelFileError, ModelFileError),
            stage_files(files := list_model_files(folder)) as (staged, headers),
            translate_errors(ModelFileError, ModelFileError),
            quiet_transformers(),
        ):
            number = _resolve_dtype(dtype, is_small=headers.elements <= MAX_SMALL_PARAMETERS)
            file_bytes = sum(file.stat().st_size for file in files.weights.values())
            check_memory(name, max(file_bytes, _count_bytes(headers.elements, weights, number)))
            model = _load_weights(staged, headers)
            is_small = model.num_parameters() <= MAX_SMALL_PARAMETERS
            if weights in _FORMATS:
                from keywise.models.quantised import quantise_layers

                quantise_layers(model, _FORMATS[weights])
            model.to(_resolve_dtype(dtype, is_small=is_small or weights in _FORMATS)).eval()
            # Packing runs in torch, without the interpreter lock, while the tokenizer is loaded.
            with _pack_in_background(model) if pack_linear and is_small else nullcontext():
                tokenizer = _load_tokenizer(staged)
            processor = _load_processor(staged, model, tokenizer)
    except ModelFileError as error:
        raise _refuse(describe_model(name, folder), error) from error
    _rename_folder(model, tokenizer, staged, folder)
    return LoadedModel(model, tokenizer, name, folder, weights=weights, processor=processor)


def _load_ct2(name: str, folder: Path, dtype: str | None, weights: str) -> LoadedModel:
    from transformers import AutoConfig, GenerationConfig

    from keywise.models.ct2_whisper import build_ct2_whisper, stage_ct2_whisper

    try:
        with (
            translate_errors(ModelFileError, ModelFileError),
            stage_ct2_whisper(folder) as (staged, file),
            quiet_transformers(),
        ):
            config = AutoConfig.from_pretrained(staged, local_files_only=True, trust_remote_code=False)
            model = build_ct2_whisper(file, config, _resolve_dtype(dtype, is_small=True))
            model.generation_config = GenerationConfig.from_pretrained(staged, local_files_only=True)
            if weights in _FORMATS:
                from keywise.models.quantised import quantise_layers

                quantise_layers(model, _FORMATS[weights])
            tokenizer = _load_tokenizer(staged)
            processor = _load_processor(staged, model, tokenizer)
    except ModelFileError as error:
        raise _refuse(describe_model(name, folder), error) from error
    _rename_folder(model, tokenizer, staged, folder)
    return LoadedModel(model, tokenizer, name, folder, folder / MODEL_FILE, weights, processor)


def _load_gguf(name: str, source: GgufModel, dtype: str | None, weights: str) -> LoadedModel:
    from transformers import AutoConfig

    from keywise.models.gguf_weights import build_gguf_model

    header = source.header
    is_small = weights != "expanded" or header.elements <= MAX_SMALL_PARAMETERS
    number = _resolve_dtype(dtype, is_small=is_small)
    file_bytes = sum(tensor.size_bytes for tensor in header.places)
    check_memory(name, file_bytes if weights == "as-is" else _count_bytes(header.elements, weights, number))
    try:
        with translate_errors(ModelFileError, ModelFileError), quiet_transformers():
            check_config(read_json(source.folder / CONFIG), max_parts=max(MAX_PARTS, header.largest_size))
            config = AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
            with ThreadPoolExecutor(1) as executor:
                tokenizer = executor.submit(_load_tokenizer, source.folder)
                model = build_gguf_model(
                    source.files,
                    header,
                    config,
                    number,
                    block_format=weights if weights == "as-is" else _FORMATS.get(weights),
                )
                return LoadedModel(model, tokenizer.result(), name, source.folder, source.files[0], weights)
    except ModelFileError as error:
        raise _refuse(repr(str(source.files[0])), error) from error


def _count_bytes(elements: int, weights: str, number: Any) -> int:
    """Return the memory of weights in a form."""
    if weights in _FORMATS:
        _, block_elements, block_bytes = BLOCK_FORMATS[_FORMATS[weights]]
        return elements // block_elements * block_bytes
    return elements * int(number.itemsize)


def _refuse(model: str, error: ModelFileError) -> ModelError:
    remedy = "use a language model with safetensors or GGUF weights that transformers knows without extra code"
    return ModelError("source", f"{model} cannot be loaded: {error}", remedy=remedy)


def _load_weights(staged: Path, headers: HeaderSummary) -> Any:
    with limit_construction(headers):
        model, report = _choose_class(read_json(staged / CONFIG)).from_pretrained(
            staged,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    check_loading(model, report, headers.dtypes)
    return model


def _choose_class(config: Any) -> Any:
    """Return the class of transformers that loads a model for generation."""
    import transformers

    if config.get("model_type") == "whisper":
        return transformers.WhisperForConditionalGeneration
    if config.get("is_encoder_decoder") is True:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def _load_processor(staged: Path, model: Any, tokenizer: Any) -> Any:
    """Return the processor of a model that hears; None for models of text."""
    if model.config.model_type != "whisper":
        return None
    from transformers import WhisperFeatureExtractor, WhisperProcessor

    extractor = WhisperFeatureExtractor.from_pretrained(staged, local_files_only=True)
    return WhisperProcessor(extractor, tokenizer)


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
