"""Arrays, masks and options of `attend` and `attention_stats`: the definition's result, or an error of keywise."""

from typing import Any

import numpy as np

import keywise as kw
from keywise.errors import KeywiseError
from tests.fuzz.targets.choices import Bytes

DTYPES = ("float32", "float16", "float64", "int32", "bool", "complex64", "uint8", "object")
LIMIT = 1 << 14
"""Elements of an array, so that the definition is fast; strides may describe larger ones."""


def make_seeds() -> list[bytes]:
    """Return bytes that choose many branches."""
    random_numbers = np.random.default_rng(0)
    return [bytes(60), *(random_numbers.integers(0, 256, 80, dtype=np.uint8).tobytes() for _ in range(40))]


def execute(data: bytes) -> None:
    """Compute attention on a kernel and by the definition."""
    numbers = Bytes(data)
    random_numbers = np.random.default_rng(numbers.next_below(256))
    arguments = _make_arguments(numbers, random_numbers)
    options = _make_options(numbers, random_numbers, arguments)
    statistics = _make_statistics(numbers, random_numbers)
    call = kw.attention_stats if numbers.next_below(2) else kw.attend
    keywords = {**options, **statistics} if call is kw.attention_stats else options
    try:
        got = call(*arguments, **keywords)
    except (KeywiseError, MemoryError):
        return
    with kw.using("reference"):
        expected = call(*arguments, **keywords)
    if call is kw.attention_stats:
        got, expected = got.output, expected.output
    loose = 0.05 if arguments[0].dtype == np.float16 else 1e-3
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(np.float64(got), np.float64(expected), rtol=loose, atol=loose)


def _make_arguments(numbers: Bytes, random_numbers: np.random.Generator) -> list[np.ndarray]:
    """Return query, key and value, whose sizes mostly agree."""
    batch, key_heads, group = numbers.next_below(3), 1 + numbers.next_below(3), 1 + numbers.next_below(3)
    queries, keys, head_dim, value_dim = (numbers.next_below(limit) for limit in (7, 40, 20, 20))
    dtype = numbers.choose(DTYPES) if numbers.next_below(8) == 0 else numbers.choose(DTYPES[:3])
    shapes = [
        [batch, key_heads * group, queries, head_dim],
        [batch, key_heads, keys, head_dim],
        [batch, key_heads, keys, value_dim],
    ]
    if numbers.next_below(8) == 0:
        shapes[numbers.next_below(3)][numbers.next_below(4)] += 1 + numbers.next_below(3)
    if numbers.next_below(8) == 0:
        del shapes[numbers.next_below(3)][numbers.next_below(4)]
    arrays = [random_numbers.standard_normal(shape).astype(dtype) for shape in shapes]
    planted = arrays[numbers.next_below(3)]
    if numbers.next_below(8) == 0 and planted.size and planted.dtype.kind == "f":
        planted.reshape(-1)[0] = numbers.choose((0.0, 3e4, -3e4, 1e-7))
    return [_lay_out(numbers, array) for array in arrays]


def _lay_out(numbers: Bytes, array: np.ndarray) -> np.ndarray:
    layout = numbers.next_below(8)
    if layout == 0:
        return np.asfortranarray(array)
    if layout == 1:
        return array[..., ::-1]
    if layout == 2 and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if layout == 3 and array.ndim and array.shape[0]:
        # The largest sizes take no memory here, and must be refused because the results would.
        shape = (numbers.choose((1, 2, 1 << 40)), *array.shape[1:])
        return np.lib.stride_tricks.as_strided(array, shape, (0, *array.strides[1:]))
    if layout == 4 and array.dtype.kind != "O":
        return array.astype(array.dtype.newbyteorder())
    return array


def _make_options(numbers: Bytes, random_numbers: np.random.Generator, arguments: list[np.ndarray]) -> dict[str, Any]:
    query, key = arguments[:2]
    sizes = (*query.shape[:-1][-3:], *key.shape[-2:-1])
    options: dict[str, Any] = {}
    if numbers.next_below(2):
        options["scale"] = numbers.choose((0.5, 0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), True, "1", None))
    if numbers.next_below(4) == 0:
        options["softcap"] = numbers.choose((1.0, 30.0, 0.0, -1.0, float("nan"), None))
    if numbers.next_below(4) == 0:
        options["sinks"] = random_numbers.standard_normal(max(1, query.shape[1] if query.ndim > 1 else 1)).astype("f4")
    kind = numbers.next_below(6)
    broadcast = [size if numbers.next_below(4) else 1 for size in sizes]
    if kind == 0 and np.prod(broadcast, dtype=object) < LIMIT:
        allowed = random_numbers.integers(0, 2, broadcast).astype(np.uint8) * np.uint8(1 + numbers.next_below(255))
        options["mask"] = allowed.view(bool)
    elif kind == 1 and np.prod(broadcast, dtype=object) < LIMIT:
        options["bias"] = random_numbers.standard_normal(broadcast).astype("f4")
    elif kind == 2:
        options["mask"] = _make_mask(numbers, random_numbers, query, key)
    return {name: value for name, value in options.items() if value is not None}


def _make_mask(numbers: Bytes, random_numbers: np.random.Generator, query: np.ndarray, key: np.ndarray) -> Any:
    def integer() -> int:
        return numbers.take_int64() if numbers.next_below(6) == 0 else numbers.next_below(40) - 2

    fields: dict[str, Any] = {"causal": bool(numbers.next_below(2))}
    if numbers.next_below(2):
        fields["window"] = (integer(), integer())
    batch = min(query.shape[0], 4) if query.ndim else 1
    for name in ("lengths", "starts"):
        if numbers.next_below(4) == 0:
            fields[name] = np.array([integer() for _ in range(batch)])
    if numbers.next_below(4) == 0:
        fields["keep_first"] = integer()
    if numbers.next_below(4) == 0 and key.ndim > 2:
        fields["documents"] = random_numbers.integers(0, 3, (batch, key.shape[-2]))
    try:
        return kw.Mask(**fields)
    except KeywiseError:
        return None


def _make_statistics(numbers: Bytes, random_numbers: np.random.Generator) -> dict[str, Any]:
    statistics: dict[str, Any] = {
        "top_k": numbers.take_int64() if numbers.next_below(6) == 0 else numbers.next_below(12)
    }
    if numbers.next_below(3) == 0:
        bounds = np.sort(random_numbers.integers(0, 40, 1 + numbers.next_below(5)))
        statistics["segment_bounds"] = bounds - numbers.next_below(2)
    elif numbers.next_below(3) == 0:
        ids = random_numbers.integers(0, 5, 1 + numbers.next_below(40))
        ids[0] = numbers.take_int64() if numbers.next_below(3) == 0 else 0
        statistics["segment_ids"] = ids
    return statistics
