"""GGUF files that are split into parts, such as ``model-00001-of-00003.gguf``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from keywise.models.safetensors_files import ModelFileError

MAX_PARTS: Final = 1000
_NAME: Final = re.compile(r"(?P<model>.+)-(?P<part>[0-9]{5})-of-(?P<parts>[0-9]{5})(?P<suffix>\.gguf)", re.IGNORECASE)


def list_gguf_parts(path: Path) -> tuple[Path, ...]:
    """Return all parts of a GGUF file, in order.

    Parameters
    ----------
    path : pathlib.Path
        The file, or any of its parts.

    Returns
    -------
    tuple of pathlib.Path
        The file alone, unless its name is that of a part.

    Raises
    ------
    ModelFileError
        A part is missing.

    Examples
    --------
    >>> from pathlib import Path
    >>> list_gguf_parts(Path("model.gguf"))[0].name
    'model.gguf'
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["parts"])
    if not 1 <= int(match["part"]) <= count <= MAX_PARTS:
        raise ModelFileError(f"it is part {int(match['part'])} of {count}, of at most {MAX_PARTS:,}")
    parts = tuple(
        path.with_name(f"{match['model']}-{part:05d}-of-{match['parts']}{match['suffix']}")
        for part in range(1, count + 1)
    )
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelFileError(f"{len(missing)} of its {count} parts are missing beside it: {', '.join(missing[:3])}")
    return parts


def name_gguf_model(path: Path) -> str:
    """Return the name of a GGUF file without its suffix and the number of its part.

    Parameters
    ----------
    path : pathlib.Path
        The file, or any of its parts.

    Examples
    --------
    >>> from pathlib import Path
    >>> name_gguf_model(Path("large-00002-of-00003.gguf"))
    'large'
    """
    match = _NAME.fullmatch(path.name)
    return path.stem if match is None else match["model"]
