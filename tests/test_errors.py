"""Errors of keywise: their messages, and copies of them by pickle."""

from __future__ import annotations

import pickle

import pytest

import keywise as kw


@pytest.mark.parametrize(
    "error_type",
    [
        kw.KeywiseError,
        kw.ShapeError,
        kw.DtypeError,
        kw.OptionError,
        kw.TargetError,
        kw.FormatError,
        kw.MissingFileError,
        kw.ModelError,
    ],
)
def test_unpickled_error_has_the_same_message_and_argument(error_type: type[kw.KeywiseError]) -> None:
    error = error_type("top_k", "must be 0 or more", got=-1, remedy="use 0 for none")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  (the bytes are made here)
    assert type(copy) is error_type
    assert str(copy) == str(error) == "top_k must be 0 or more, got -1; use 0 for none"
    assert copy.argument == "top_k"
    assert copy.describe("--top") == "--top must be 0 or more, got -1; use 0 for none"
