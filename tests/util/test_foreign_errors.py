"""Errors of other libraries are raised again as one kind; interrupts and errors of keywise pass."""

from __future__ import annotations

import pytest

from keywise.errors import OptionError
from keywise.util.foreign_errors import translate_errors


class PanicException(BaseException):
    """What a panic in Rust raises in Python."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no\n  lamp"), "no lamp"),
        (KeyError("lamp"), "KeyError: 'lamp'"),
        (MemoryError(), "MemoryError"),
        (PanicException("index out of bounds"), "index out of bounds"),
        (RuntimeError("a" * 1000), "a" * 400 + " …"),
    ],
)
def test_errors_of_libraries_are_translated(error: BaseException, message: str) -> None:
    with pytest.raises(LookupError) as caught, translate_errors(LookupError, ImportError):
        raise error
    assert caught.value.args == (message,)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(2), OptionError("top_k", "must be 0 or more"), ImportError("torch")]
)
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, translate_errors(LookupError, ImportError):
        raise error
    assert caught.value is error
