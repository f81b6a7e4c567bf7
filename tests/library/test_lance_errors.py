"""Errors of Lance become errors of keywise; interrupts and errors of keywise pass."""

from __future__ import annotations

import pytest

from keywise.errors import FormatError, KeywiseError, OptionError
from keywise.library.lance_errors import convert_lance_errors


class PanicException(BaseException):
    """Stands for a panic, whose type cannot be imported."""


def fail_inside(error: BaseException, where: str | None) -> None:
    with convert_lance_errors("papers.library", "cannot be read", where=where):
        raise error


@pytest.mark.parametrize(
    "error",
    [OSError("bad page\nhere, /home/lance/file.rs:3:1"), PanicException("bad page here"), ValueError("bad page")],
)
def test_errors_and_panics_name_the_library_or_where_in_a_line(error: BaseException) -> None:
    with pytest.raises(FormatError, match=r"^path 'papers\.library' cannot be read; bad page( here)?$"):
        fail_inside(error, None)
    with pytest.raises(OptionError, match=r"^where must be .*, got '1/0 = 1'; bad page( here)?$"):
        fail_inside(error, "1/0 = 1")


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(1), KeywiseError("top", "must be 1"), AssertionError()]
)
def test_interrupts_and_errors_of_keywise_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        fail_inside(error, None)
    assert caught.value is error
