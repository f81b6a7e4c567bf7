"""Masks: the keys that the documentation of `Mask` lets each query see, and nothing of the hidden ones."""

import math
from typing import Any

import numpy as np

import keywise as kw
from keywise.errors import KeywiseError
from tests.fuzz.targets.choices import Bytes

HEAD_DIM = 3


def make_seeds() -> list[bytes]:
    """Return bytes that choose many fields."""
    random_numbers = np.random.default_rng(1)
    return [bytes(40), *(random_numbers.integers(0, 256, 60, dtype=np.uint8).tobytes() for _ in range(40))]


def execute(data: bytes) -> None:
    """Compare attention under a mask with a sum over the keys that the mask's fields name."""
    numbers = Bytes(data)
    batch, key_heads, group = 1 + numbers.next_below(2), 1 + numbers.next_below(2), 1 + numbers.next_below(2)
    queries, keys = numbers.next_below(6), numbers.next_below(24 if numbers.next_below(4) else 100)
    fields = _make_fields(numbers, (batch, key_heads * group, queries, keys))
    random_numbers = np.random.default_rng(numbers.next_below(256))
    query = random_numbers.standard_normal((batch, key_heads * group, queries, HEAD_DIM)).astype(np.float32)
    key, value = (
        random_numbers.standard_normal((batch, key_heads, keys, HEAD_DIM)).astype(np.float32) for _ in range(2)
    )
    try:
        mask = kw.Mask(**fields)
        kw.attend(query, key, value, mask=mask)
    except KeywiseError:
        return
    visible = _list_visible(fields, batch, key_heads * group, queries, keys)
    unused = ~visible.reshape(batch, key_heads, group * queries, keys).any(axis=2)
    poison = numbers.choose((math.nan, math.inf, -math.inf, 3e38))
    key[unused] = value[unused] = poison
    statistics = kw.attention_stats(query, key, value, mask=mask, top_k=2)
    output = kw.attend(query, key, value, mask=mask)
    np.testing.assert_array_equal(output, statistics.output)
    expected, mass = _attend(query, key, value, visible)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics.key_mass, mass, rtol=1e-4, atol=1e-5)


def _make_fields(numbers: Bytes, sizes: tuple[int, int, int, int]) -> dict[str, Any]:
    batch, _, _, keys = sizes
    fields: dict[str, Any] = {"causal": bool(numbers.next_below(2))}
    if numbers.next_below(2):
        sides = tuple(None if numbers.next_below(4) == 0 else _choose_integer(numbers, keys) for _ in range(2))
        fields["window"] = sides
    for name in ("lengths", "starts"):
        if numbers.next_below(3) == 0:
            fields[name] = np.array([_choose_integer(numbers, keys) for _ in range(batch)])
    if numbers.next_below(3) == 0:
        fields["keep_first"] = _choose_integer(numbers, keys)
    if numbers.next_below(3) == 0:
        positions = keys + numbers.next_below(4)
        fields["documents"] = np.array([[numbers.next_below(3) for _ in range(positions)] for _ in range(batch)])
        fields["documents"] = fields["documents"].reshape(batch, positions)
    if numbers.next_below(3) == 0:
        shape = [size if numbers.next_below(2) else 1 for size in sizes]
        allowed = np.random.default_rng(numbers.next_below(256)).integers(0, 3, shape) > 0
        fields["allowed"] = allowed
    return fields


def _choose_integer(numbers: Bytes, keys: int) -> int:
    kind = numbers.next_below(8)
    if kind == 0:
        return numbers.take_int64()
    if kind == 1:
        return keys - 1 + numbers.next_below(3)
    return numbers.next_below(keys + 6) - int(kind == 2)


def _list_visible(fields: dict[str, Any], batch: int, heads: int, queries: int, keys: int) -> np.ndarray:
    visible = np.zeros((batch, heads, queries, keys), bool)
    allowed = np.broadcast_to(fields.get("allowed", True), visible.shape)
    for item, head, query, key in np.ndindex(*visible.shape):
        visible[item, head, query, key] = allowed[item, head, query, key] and _is_visible(
            fields, item, query, key, queries, keys
        )
    return visible


def _is_visible(fields: dict[str, Any], item: int, query: int, key: int, queries: int, keys: int) -> bool:
    """Return whether a query sees a key, in Python's integers."""
    length = int(fields["lengths"][item]) if "lengths" in fields else keys
    start = int(fields["starts"][item]) if "starts" in fields else 0
    left, right = fields.get("window", (None, None))
    position = length - queries + query
    is_near = (left is None or key >= position - left) and (right is None or key <= position + right)
    is_same = True
    if "documents" in fields:
        documents = fields["documents"][item]
        is_same = 0 <= position < len(documents) and documents[position] == documents[key]
    return (
        start <= key < length
        and (not fields["causal"] or key <= position)
        and (is_near or key < start + fields.get("keep_first", 0))
        and bool(is_same)
    )


def _attend(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, visible: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the output and the key mass of each head."""
    batch, heads, queries, _ = query.shape
    group = heads // key.shape[1]
    output = np.zeros((batch, heads, queries, HEAD_DIM))
    mass = np.zeros((batch, heads, key.shape[2]))
    for item, head, number in np.ndindex(batch, heads, queries):
        seen = visible[item, head, number]
        if not seen.any():
            continue
        scores = key[item, head // group, seen].astype(np.float64) @ query[item, head, number] / math.sqrt(HEAD_DIM)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        output[item, head, number] = weights @ value[item, head // group, seen]
        mass[item, head, seen] += weights
    return output, mass
