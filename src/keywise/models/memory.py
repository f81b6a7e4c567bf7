"""Memory that a model needs, compared with what is available before anything is loaded."""

from __future__ import annotations

from keywise.errors import ModelError
from keywise.util.machine import measure_available_memory


def check_memory(name: str, needed_bytes: int) -> None:
    """Raise an error if the weights of a model do not fit the available memory.

    Parameters
    ----------
    name : str
        The model's name.
    needed_bytes : int
        Size of its weights in memory.

    Raises
    ------
    ModelError
        Fewer bytes are available.

    Examples
    --------
    >>> check_memory("tiny", 1_000)
    """
    available_bytes = measure_available_memory()
    if needed_bytes > available_bytes:
        raise ModelError(
            "source",
            f"{name!r} needs {needed_bytes / 1e9:.1f} GB of memory for its weights, "
            f"and {available_bytes / 1e9:.1f} GB are available",
            remedy="close other programs, choose a smaller model, or a .gguf file of it with 4-bit weights",
        )
