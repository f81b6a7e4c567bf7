"""Argument checks: values of the right type and range come back as Python's own types, others name the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from keywise.errors import DtypeError, KeywiseError, OptionError
from keywise.util.checks import MAX_FLOAT, MAX_TOKENS, check_bool, check_float, check_int


@pytest.mark.parametrize("value", [0, 7, np.int8(7), np.uint64(7), MAX_TOKENS])
def test_integers_are_returned_as_int(value: Any) -> None:
    result = check_int("top_k", value, minimum=0)
    assert type(result) is int
    assert result == value


@pytest.mark.parametrize("value", [True, np.True_, 2.0, 2.5, "2", None, [2], np.array([2])])
def test_other_types_than_integers_are_refused(value: Any) -> None:
    with pytest.raises(DtypeError, match=r"^top_k must be an integer, got ") as caught:
        check_int("top_k", value, minimum=0)
    assert caught.value.argument == "top_k"


@pytest.mark.parametrize("value", [1, 6, -(10**30), np.int64(-1), MAX_TOKENS + 1])
def test_integers_out_of_bounds_are_refused(value: Any) -> None:
    with pytest.raises(OptionError, match=f"^top_k must be between 2 and 5, got {int(value)}$"):
        check_int("top_k", value, minimum=2, maximum=5)


@pytest.mark.parametrize("value", [0, -2, 0.5, np.float16(0.5), np.int32(3), MAX_FLOAT, -MAX_FLOAT, 2**90])
def test_numbers_are_returned_as_float(value: Any) -> None:
    result = check_float("scale", value)
    assert type(result) is float
    assert result == value


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (float("nan"), OptionError, "must be finite and at most 1e"),
        (float("inf"), OptionError, "must be finite and at most 1e"),
        (np.float32("-inf"), OptionError, "must be finite and at most 1e"),
        (1e31, OptionError, "must be finite and at most 1e"),
        (10**400, OptionError, "must be finite and at most 1e"),
        (True, DtypeError, "must be a number, got True"),
        ("1", DtypeError, "must be a number, got '1'"),
        (None, DtypeError, "must be a number, got None"),
        (1j, DtypeError, "must be a number, got 1j"),
    ],
)
def test_other_values_than_finite_numbers_are_refused(value: Any, kind: type[KeywiseError], message: str) -> None:
    with pytest.raises(kind, match=f"^scale {message}") as caught:
        check_float("scale", value)
    assert caught.value.argument == "scale"


def test_other_values_than_bools_are_refused() -> None:
    assert check_bool("key_mass", True) is True
    assert check_bool("key_mass", False) is False
    for value in (0, 1, "yes", None, np.True_):
        with pytest.raises(DtypeError, match=r"^key_mass must be True or False, got "):
            check_bool("key_mass", value)
