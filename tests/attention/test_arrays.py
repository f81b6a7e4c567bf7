"""Arrays in and out: NumPy, torch and DLPack, their dtypes and strides, and no copy where none is needed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention.arrays import as_host_array, as_row_contiguous, round_to
from keywise.attention.problem import make_problem
from tests.support.cases import DTYPES, LAYOUTS, Case, lay_out
from tests.support.judging import as_float64


class DlpackArray:
    """An array of another library, with DLPack and an array namespace."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array = array
        self.device = device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __array_namespace__(self) -> type[DlpackArray]:
        return DlpackArray

    @staticmethod
    def asarray(array: np.ndarray) -> DlpackArray:
        return DlpackArray(array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_have_the_type_and_dtype_of_the_query(target: str, dtype: str) -> None:
    arguments = Case(dtype, mask="causal").arguments()
    stats = kw.attention_stats(**arguments, top_k=2, segment_bounds=[0, 5, 33])
    assert isinstance(stats.output, torch.Tensor)
    assert stats.output.dtype == getattr(torch, dtype)
    assert stats.top_keys.dtype == torch.int32
    for name in ("lse", "entropy", "top_weights", "top_mass", "key_mass", "segment_mass"):
        assert getattr(stats, name).dtype == torch.float32, name
    as_arrays = {name: lay_out(as_float64(arguments[name]), "reversed", dtype) for name in ("query", "key", "value")}
    output = kw.attend(**{**arguments, **as_arrays})
    assert type(output) is np.ndarray
    assert output.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))
    np.testing.assert_array_equal(as_float64(output), as_float64(stats.output))


def test_dlpack_arrays_are_accepted_and_returned(target: str) -> None:
    arguments = Case().arguments()
    exported = {name: DlpackArray(arguments[name].numpy()) for name in ("query", "key", "value")}
    stats = kw.attention_stats(**{**arguments, **exported})
    assert isinstance(stats.output, DlpackArray)
    assert isinstance(stats.key_mass, DlpackArray)
    np.testing.assert_array_equal(stats.output.array, kw.attend(**arguments).numpy())


def test_mixed_array_types_return_the_type_of_the_query(target: str) -> None:
    arguments = Case().arguments()
    expected = kw.attend(**arguments)
    mixed = kw.attend(
        **{**arguments, "key": arguments["key"].numpy(), "value": DlpackArray(arguments["value"].numpy())}
    )
    assert torch.equal(mixed, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_read_in_place_unless_the_last_axis_has_gaps(layout: str, dtype: str) -> None:
    case = Case(dtype, layout=layout)
    arguments = case.arguments()
    problem = make_problem(**arguments)
    (chunk,) = problem.chunks
    for name, array in (("query", problem.query), ("key", chunk.key), ("value", chunk.value)):
        converted, original = array.data, as_host_array(name, arguments[name]).data
        np.testing.assert_array_equal(converted, original)
        assert np.shares_memory(converted, original) == (layout != "strided")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_gives_the_same_bits(target: str, dtype: str) -> None:
    expected = kw.attend(**Case(dtype, queries=20, keys=70).arguments())
    for layout in ("transposed", "cache", "reversed", "strided"):
        actual = kw.attend(**Case(dtype, queries=20, keys=70, layout=layout).arguments())
        np.testing.assert_array_equal(as_float64(actual), as_float64(expected), err_msg=layout)


def test_read_only_inputs_are_accepted_and_unchanged(target: str) -> None:
    arguments = {name: Case().arguments()[name].numpy() for name in ("query", "key", "value")}
    before = {name: array.copy() for name, array in arguments.items()}
    for array in arguments.values():
        array.flags.writeable = False
    kw.attention_stats(**arguments)
    for name, array in arguments.items():
        np.testing.assert_array_equal(array, before[name])


def test_misaligned_arrays_are_copied(target: str) -> None:
    arguments = {name: Case().arguments()[name].numpy() for name in ("query", "key", "value")}
    expected = kw.attend(**arguments)
    for name, array in arguments.items():
        buffer = np.empty(array.nbytes + 1, np.uint8)
        shifted = buffer[1:].view(np.float32).reshape(array.shape)
        shifted[...] = array
        assert not shifted.flags.aligned
        assert as_row_contiguous(shifted).flags.aligned
        np.testing.assert_array_equal(kw.attend(**{**arguments, name: shifted}), expected)


def test_record_fields_with_odd_strides_equal_contiguous_arrays(target: str) -> None:
    arguments = {name: Case().arguments()[name].numpy() for name in ("query", "key", "value")}
    records = np.zeros((5, 33), dtype=[("tag", np.uint8), ("number", np.float32)])
    records["number"] = np.random.default_rng(0).standard_normal((5, 33))
    actual = kw.attention_stats(**arguments, bias=records["number"], query_weights=records["number"][:, 0])
    expected = kw.attention_stats(
        **arguments, bias=records["number"].copy(), query_weights=records["number"][:, 0].copy()
    )
    np.testing.assert_array_equal(actual.output, expected.output)
    np.testing.assert_array_equal(actual.key_mass, expected.key_mass)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_and_mask_of_any_strides_equal_contiguous_ones(target: str, dtype: str) -> None:
    arguments = Case(dtype, queries=6, keys=40).arguments()
    generator = np.random.default_rng(0)
    bias = torch.from_numpy(generator.standard_normal((40, 4, 6)).astype(np.float32)).to(getattr(torch, dtype))
    permuted = bias.permute(1, 2, 0)
    allowed = generator.random((40, 6)) < 0.7
    expected = kw.attend(**{**arguments, "bias": permuted.contiguous(), "mask": np.ascontiguousarray(allowed.T)})
    assert torch.equal(kw.attend(**{**arguments, "bias": permuted, "mask": allowed.T}), expected)
    backwards = kw.attend(**{**arguments, "bias": permuted, "mask": allowed[:, ::-1].T[::-1]})
    assert torch.equal(backwards, expected)
    assert torch.equal(kw.attend(**{**arguments, "bias": permuted, "mask": torch.from_numpy(allowed.T)}), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("queries", [1, 6, 70])
def test_broadcast_tokens_equal_contiguous_copies(target: str, dtype: str, name: str, queries: int) -> None:
    arguments = Case(dtype, queries=queries, keys=1100, head_dim=64, value_dim=64).arguments()
    one = arguments[name][:, :, :1].expand_as(arguments[name])
    expected = kw.attend(**{**arguments, name: one.contiguous()})
    np.testing.assert_allclose(as_float64(kw.attend(**{**arguments, name: one})), as_float64(expected), atol=1e-5)


def test_tensors_that_require_gradients_are_accepted_under_no_grad() -> None:
    arguments = Case().arguments()
    expected = kw.attend(**arguments)
    arguments["query"].requires_grad_()
    with torch.no_grad():
        assert torch.equal(kw.attend(**arguments), expected)
    with pytest.raises(kw.TargetError, match="query must not require gradients"):
        kw.attend(**arguments)


def test_rounding_is_to_nearest_even_in_one_step() -> None:
    generator = np.random.default_rng(0)
    exact = generator.standard_normal(20_000) * 2.0 ** generator.integers(-30, 30, 20_000)
    halfway = np.float64(1) + np.arange(64) * 2.0**-8
    # Nearer to a tie than float32 resolves: rounding twice would round these the wrong way.
    beside = np.concatenate([halfway * (1 + 2.0**-40), halfway * (1 - 2.0**-40)])
    data = np.concatenate([exact, halfway, beside, -halfway, [0.0, -0.0, np.inf, -np.inf, 3.4e38, 1e39, 1e-41, 6e-8]])
    actual = round_to(data, "bfloat16").view(ml_dtypes.bfloat16).astype(np.float64)
    candidates = np.arange(0x7F81, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
    candidates[-1] = 2.0**128  # The tie between the largest number and infinity lies below this.
    above = np.searchsorted(candidates, np.abs(data)).clip(1, candidates.size - 1)
    low, high = candidates[above - 1], candidates[above]
    with np.errstate(invalid="ignore"):
        nearer_high = (np.abs(data) - low > high - np.abs(data)) | (
            (np.abs(data) - low == high - np.abs(data)) & (above % 2 == 0)
        )
    expected = np.copysign(np.where(nearer_high, high, low), data)
    expected[np.abs(expected) == 2.0**128] = np.copysign(np.inf, data[np.abs(expected) == 2.0**128])
    expected = np.where(np.isinf(data), data, expected)
    np.testing.assert_array_equal(actual, expected)
    assert np.isnan(round_to(np.array([np.nan]), "bfloat16").view(ml_dtypes.bfloat16).astype(float)).all()
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(round_to(data, "float16"), data.astype(np.float16))
