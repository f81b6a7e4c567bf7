"""check_function: correct functions are healthy, faults that cannot show are not testable, mistakes are refused."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.diagnosis import check_function
from tests.support.planted_functions import attention

SDPA = torch.nn.functional.scaled_dot_product_attention


def test_torch_sdpa_is_healthy() -> None:
    assert check_function(SDPA).healthy


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_attend_is_healthy(target: str, arrays: str) -> None:
    if target == "reference":
        pytest.skip("check_function compares with the reference target")
    diagnosis = check_function(kw.attend, mask_argument="mask", arrays=arrays)
    assert diagnosis.healthy, diagnosis
    assert {"scale-missing", "mask-inverted", "hidden-nan-leak", "dead-row-nan"} <= {
        check.code for check in diagnosis.checks if check.state == "clean"
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=str)
def test_attend_with_every_option_is_healthy(dtype: str, heads: tuple[int, int]) -> None:
    options = {"scale": 0.3, "softcap": 2.0, "sinks": np.random.default_rng(0).normal(size=4).astype(np.float32)}
    attend = functools.partial(kw.attend, mask=kw.Mask(causal=True, window=(6, 0)), **options)
    diagnosis = check_function(
        attend,
        causal=True,
        window=(6, 0),
        **options,
        query_heads=heads[0],
        key_heads=heads[1],
        dtype=dtype,
        arrays="torch",
    )
    assert diagnosis.healthy, diagnosis
    detectable = {"softcap-dropped", "sinks-dropped", "window-off-by-one"}
    detectable |= {"heads-grouped-wrong"} if heads == (4, 2) else set()
    # Within bfloat16's rounding some faults have the correct output.
    states = {diagnosis.state(code) for code in detectable}
    assert states <= {"clean", "not testable"} if dtype == "bfloat16" else states == {"clean"}
    if heads != (4, 2):
        assert diagnosis.state("heads-grouped-wrong") == "not testable"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_attention_is_healthy(dtype: str) -> None:
    assert check_function(attention, dtype=dtype).healthy
    assert check_function(attention, key_heads=2, dtype=dtype).healthy


def test_faults_that_cannot_show_are_not_testable() -> None:
    diagnosis = check_function(SDPA)
    for code in ("window-dropped", "heads-grouped-wrong", "mask-inverted", "sinks-dropped", "future-leak"):
        assert diagnosis.state(code) == "not testable"
        assert next(check for check in diagnosis.checks if check.code == code).reason


def test_transposed_output_is_reported_as_output_shape() -> None:
    diagnosis = check_function(lambda query, key, value: SDPA(query, key, value).transpose(1, 2))
    assert diagnosis.codes == ("output-shape",)


def test_unknown_fault_is_reported_as_output_differs() -> None:
    diagnosis = check_function(lambda query, key, value: SDPA(query, key, value).sin())
    assert diagnosis.codes == ("output-differs",)


def test_function_may_return_weights_too() -> None:
    assert check_function(lambda query, key, value: (SDPA(query, key, value), None)).healthy


def test_error_of_the_function_is_not_caught() -> None:
    def broken(query: object, key: object, value: object) -> object:
        raise ArithmeticError("its own")

    with pytest.raises(ArithmeticError, match="its own"):
        check_function(broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arrays": "jax"}, "arrays must be one of torch, numpy, got 'jax'"),
        ({"dtype": "float8"}, "dtype must be one of float32, float16, bfloat16, got 'float8'"),
        ({"dtype": "bfloat16", "arrays": "numpy"}, "pass arrays='torch'"),
        ({"query_heads": 4, "key_heads": 3}, "key_heads must divide query_heads=4, got 3"),
        ({"head_dim": 0}, "head_dim must be between 1"),
        ({"scale": float("nan")}, "scale must be finite"),
        ({"window": (-1, 0)}, "window"),
    ],
)
def test_unusable_option_is_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(kw.KeywiseError, match=message):
        check_function(SDPA, **options)


def test_function_that_is_not_callable_is_refused() -> None:
    with pytest.raises(kw.DtypeError, match="function must be callable, got 'attention'"):
        check_function("attention")


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"arrays": "jax"}, "arrays"),
        ({"dtype": "float8"}, "dtype"),
        ({"dtype": "bfloat16", "arrays": "numpy"}, "dtype"),
        ({"key_heads": 3}, "key_heads"),
        ({"head_dim": 2.5}, "head_dim"),
    ],
)
def test_error_carries_the_name_of_the_argument(options: dict[str, object], argument: str) -> None:
    with pytest.raises(kw.KeywiseError) as error:
        check_function(SDPA, **options)
    assert error.value.argument == argument
