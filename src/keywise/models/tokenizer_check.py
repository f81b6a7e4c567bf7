"""Checks that a tokenizer from a file neither multiplies a text nor works on it for ever."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from math import prod
from typing import Any, Final

from keywise.models.safetensors_files import ModelFileError
from keywise.util.foreign_errors import translate_errors

MAX_GROWTH: Final = 4096
MAX_STEPS: Final = 256
MAX_SECONDS: Final = 5.0

_PARTS: Final = ("normalizer", "pre_tokenizer", "decoder")
# Entries of the parts that insert text.
_INSERTING: Final = ("content", "prepend", "replacement", "prefix")
# A pattern that tries all ways to divide a text takes years for one of these.
_PROBES: Final = (
    *(f"{unit * 48}!\n" for unit in ("a", "A", "1", " ", "-", "x", "ab ", "é", "中")),
    'The lamp isn\'t lit in 1862;\tits keeper (Ann Low) paid £3.50 \u2013 "too much"! naïve, 日本語, 😀 \u0301',
)


def check_tokenizer(tokenizer: Any) -> None:
    """Raise an error if a tokenizer multiplies texts, or does not end on a short one.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast
        A tokenizer from a file.

    Raises
    ------
    ModelFileError
        Its rules insert too much text, or its patterns take too long.
    """
    backend = tokenizer.backend_tokenizer
    for name in _PARTS:
        part = getattr(backend, name)
        if part is None:
            continue
        steps = list(_list_steps(json.loads(part.__getstate__())))
        growth = prod(max(1, len(text)) for step in steps for text in _list_inserted(step))
        if growth > MAX_GROWTH or len(steps) > MAX_STEPS:
            raise ModelFileError(f"the {name} of its tokenizer must not make a text {MAX_GROWTH:,} times longer")
    if getattr(backend.model, "dropout", None):
        raise ModelFileError("its tokenizer must not drop merges at random")
    # Every call sets these anew, but only after a length in a file could have been allocated.
    backend.no_padding()
    backend.no_truncation()
    _probe(backend)


def _probe(backend: Any) -> None:
    """Encode and decode short texts; raise an error if this fails or takes long."""
    errors: list[ModelFileError] = []

    def run() -> None:
        try:
            with translate_errors(ModelFileError):
                encodings = backend.encode_batch(list(_PROBES), add_special_tokens=False)
                backend.decode_batch([encoding.ids for encoding in encodings])
        except ModelFileError as error:
            errors.append(error)

    # The library releases the interpreter's lock, but cannot be interrupted.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    if thread.is_alive():
        raise ModelFileError(f"its tokenizer takes longer than {MAX_SECONDS:g} seconds for a few words")
    if errors:
        raise ModelFileError(f"its tokenizer fails: {errors[0]}") from errors[0]


def _list_steps(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every JSON object inside the description of a part of a tokenizer, itself included."""
    pending = [value]
    while pending:
        inner = pending.pop()
        if isinstance(inner, dict):
            yield inner
            pending += inner.values()
        elif isinstance(inner, list):
            pending += inner


def _list_inserted(step: dict[str, Any]) -> Iterator[str]:
    for name in _INSERTING:
        text = step.get(name)
        if isinstance(text, str):
            yield text
