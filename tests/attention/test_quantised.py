"""Matrices in the blocks of GGUF files: every format, target, size and dtype against gguf's own dequantisation."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest

import keywise as kw
from keywise.attention.quantised import BLOCK_FORMATS, QuantisedMatrix
from keywise.errors import OptionError

gguf = pytest.importorskip("gguf", reason="its dequantisation is the reference; it comes with keywise[hf]")
torch = pytest.importorskip("torch", reason="rows of bfloat16 need torch")

# Where blocks have scales of float16.
SCALES = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}
COLUMNS = (32, 256, 288, 576, 1536)
# kManyRows of native/quantised.h.
MANY = 32


def make_blocks(block_format: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Return blocks of random bits with finite scales."""
    _, elements, block_bytes = BLOCK_FORMATS[block_format]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (rows, columns // elements, block_bytes), dtype=np.uint8)
    for begin in SCALES.get(block_format, (0,)):
        scales = (0.01 * generator.random((rows, columns // elements, 1))).astype(np.float16)
        blocks[:, :, begin : begin + 2] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


def dequantise(matrix: QuantisedMatrix) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[matrix.block_format]
    return gguf.quants.dequantize(matrix.blocks, kind).astype(np.float64)


def list_sizes() -> list[tuple[str, int]]:
    return [(name, size) for name in BLOCK_FORMATS for size in COLUMNS if size % BLOCK_FORMATS[name][1] == 0]


def bound_error(rows: np.ndarray, weights: np.ndarray, *, is_many: bool, slack: float = 1e-5) -> np.ndarray:
    """Return the largest error of each product: that of rounding the inputs, and of many rows the weights too."""
    span = 256 if is_many else 32
    step = spread_largest(rows, span) / (16383 if is_many else 32767)
    bound = step @ np.abs(weights).T + slack
    if is_many:
        bound += np.abs(rows).astype(np.float64) @ (spread_largest(weights, span) / 4095).T
    return bound


def spread_largest(numbers: np.ndarray, span: int) -> np.ndarray:
    """Return the largest absolute value among every `span` neighbours, for each number."""
    padded = np.pad(np.abs(numbers).astype(np.float64), ((0, 0), (0, -numbers.shape[1] % span)))
    largest = padded.reshape(len(numbers), -1, span).max(axis=2) if padded.size else padded
    return largest.repeat(span, axis=1)[:, : numbers.shape[1]]


@pytest.mark.parametrize(("block_format", "columns"), list_sizes())
def test_products_are_those_of_the_weights(kernel: str, block_format: str, columns: int) -> None:
    matrix = QuantisedMatrix(make_blocks(block_format, 37, columns), block_format)
    weights = dequantise(matrix)
    generator = np.random.default_rng(1)
    for count in (0, 1, 2, 3, 4, 5, 9, MANY, MANY + 5):
        rows = generator.standard_normal((1, 1, count, columns)).astype(np.float32)
        if count:
            rows[0, 0, 0, 3] *= 1000.0  # one input that is much larger than its neighbours
        expected = rows[0, 0].astype(np.float64) @ weights.T
        bound = bound_error(rows[0, 0], weights, is_many=count >= MANY)
        assert (np.abs(matrix.multiply(rows)[0, 0] - expected) <= bound).all()
        half = torch.from_numpy(rows).bfloat16()
        narrow = matrix.multiply(half)
        assert narrow.dtype is torch.bfloat16
        exact = half.double().numpy()[0, 0] @ weights.T
        assert (np.abs(narrow.double().numpy()[0, 0] - exact) <= bound * 2 + np.abs(exact) / 256).all()


@pytest.mark.parametrize(("block_format", "columns"), list_sizes())
def test_written_weights_are_those_of_gguf(kernel: str, block_format: str, columns: int) -> None:
    matrix = QuantisedMatrix(make_blocks(block_format, 21, columns, seed=2), block_format)
    expected = dequantise(matrix)
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
        written = torch.full((6, columns), 7.0, dtype=dtype)
        matrix.write_weights(5, 11, written.view(-1).view(torch.uint8).numpy(), name)
        torch.testing.assert_close(written, torch.from_numpy(expected[5:11]).float().to(dtype), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("block_format", BLOCK_FORMATS)
def test_results_have_the_same_bits_on_any_number_of_threads(kernel: str, block_format: str) -> None:
    matrix = QuantisedMatrix(make_blocks(block_format, 513, 512), block_format)
    for count in (3, MANY + 2):
        rows = np.random.default_rng(3).standard_normal((1, 1, count, 512)).astype(np.float32)
        results = []
        for threads in (1, 2, 3, 7):
            kw.set_num_threads(threads)
            results.append(matrix.multiply(rows))
        kw.set_num_threads(None)
        assert all((result == results[0]).all() for result in results)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_reaches_its_row_only(kernel: str, number: float) -> None:
    matrix = QuantisedMatrix(make_blocks("Q4_K", 5, 256), "Q4_K")
    for count in (2, MANY):
        rows = np.ones((1, 1, count, 256), np.float32)
        rows[0, 0, 1, 200] = number
        result = matrix.multiply(rows)[0, 0]
        assert np.isfinite(np.delete(result, 1, axis=0)).all()
        assert np.isnan(result[1]).all()


def test_tiny_and_huge_inputs_stay_in_range(kernel: str) -> None:
    matrix = QuantisedMatrix(make_blocks("Q8_0", 4, 64), "Q8_0")
    weights = dequantise(matrix)
    for size, count in itertools.product((0.0, 1e-45, 1e-30, 1e30), (1, MANY)):
        rows = np.full((1, 1, count, 64), size, np.float32)
        expected = rows[0, 0].astype(np.float64) @ weights.T
        bound = bound_error(rows[0, 0], weights, is_many=count >= MANY, slack=1e-33)
        assert (np.abs(matrix.multiply(rows)[0, 0] - expected) <= bound).all()


def test_copies_have_blocks_of_their_own() -> None:
    matrix = QuantisedMatrix(make_blocks("Q6_K", 3, 256), "Q6_K")
    rows = np.ones((1, 1, 1, 256), np.float32)
    other = copy.deepcopy(matrix)
    assert other.blocks is not matrix.blocks
    assert (other.multiply(rows) == matrix.multiply(rows)).all()


def test_wrong_blocks_and_inputs_are_refused() -> None:
    with pytest.raises(OptionError, match=r"block_format must be one of Q4_0, .* got 'Q9_9'"):
        QuantisedMatrix(np.zeros((1, 34), np.uint8), "Q9_9")
    for shape in ((1, 33), (34,), (1, 0)):
        with pytest.raises(OptionError, match="blocks must be rows of whole blocks of 34 bytes"):
            QuantisedMatrix(np.zeros(shape, np.uint8), "Q8_0")
    matrix = QuantisedMatrix(np.zeros((4, 34), np.uint8), "Q8_0")
    for shape in ((1, 1, 1, 31), (2, 1, 1, 32), (32,)):
        with pytest.raises(ValueError, match="the inputs must be contiguous"):
            matrix.multiply(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="the rows must be those of the matrix"):
        matrix.write_weights(0, 5, np.zeros(1000, np.uint8), "float32")
    with pytest.raises(ValueError, match="the output must have room"):
        matrix.write_weights(0, 4, np.zeros(100, np.uint8), "float32")


def test_a_product_does_not_depend_on_what_was_computed_before(kernel: str) -> None:
    # Its inputs have fewer sums than those of the product before, which are not numbers.
    before = QuantisedMatrix(make_blocks("Q2_K", 8, 256), "Q2_K")
    matrix = QuantisedMatrix(make_blocks("Q4_1", 8, 256), "Q4_1")
    for count in (1, MANY):
        rows = np.ones((1, 1, count, 256), np.float32)
        with kw.using(kernel):
            expected = matrix.multiply(rows)
            before.multiply(np.full_like(rows, np.nan))
            np.testing.assert_array_equal(matrix.multiply(rows), expected)
        assert np.isfinite(expected).all()
