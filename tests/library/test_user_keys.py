"""Attention to keys of the user's own: equal to the definition for keys read or decoded; refused arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keywise as kw
from keywise.errors import DtypeError, ModelError, OptionError, ShapeError
from keywise.library.key_pages import KeyPages
from keywise.library.library import Library
from keywise.library.schema import read_key_format
from tests.support.library_tools import WordEncoder

KEYS = 700
QUERIES = 3
TEMPERATURE = 3.0


def draw_numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def compute_weights(queries: np.ndarray, keys: np.ndarray, visible: np.ndarray) -> np.ndarray:
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T / TEMPERATURE
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def compute_entropy(weights: np.ndarray) -> np.ndarray:
    return -np.where(weights > 0, weights * np.log(np.maximum(weights, 1e-300)), 0).sum(axis=1)


def make_library(
    folder: Path, dimension: int, dtype: str, fragments: int = 3
) -> tuple[Library, np.ndarray, dict[str, Any]]:
    """Create a library of random keys in some fragments, with columns of several types."""
    keys = draw_numbers(KEYS, dimension).astype(dtype)
    columns = {
        "number": draw_numbers(KEYS, seed=1) * 1000,
        "count": np.arange(KEYS),
        "pair": draw_numbers(KEYS, 2, seed=2).astype(np.float32),
        "word": [f"word {i % 7}" for i in range(KEYS)],
    }
    library = kw.Library.open(folder / "library", "a", dtype=dtype)
    for rows in np.array_split(np.arange(KEYS), fragments):
        library.add_keys(keys[rows], **{name: [values[i] for i in rows] for name, values in columns.items()})
    return library, keys, columns


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize(("dimension", "dtype"), [(96, "float16"), (96, "float32"), (5, "float32")])
@pytest.mark.parametrize("values", ["key", "number", "count", "pair", None])
def test_attention_equals_the_definition(
    tmp_path: Path, dimension: int, dtype: str, values: str | None, decoded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoded:
        monkeypatch.setattr("keywise.library.key_pages.KeyPages.find_pages", lambda *_: None)
    library, keys, columns = make_library(tmp_path, dimension, dtype)
    queries = draw_numbers(QUERIES, dimension, seed=3).astype(dtype)
    for where, visible in [(None, np.ones(KEYS, bool)), ("count % 3 = 1", columns["count"] % 3 == 1)]:
        weights = compute_weights(queries, keys, visible)
        attention = library.attend(queries, temperature=TEMPERATURE, where=where, top=6, values=values)
        order = np.argsort(-weights, axis=1, kind="stable")[:, :6]
        np.testing.assert_allclose(attention.weights, np.take_along_axis(weights, order, axis=1), atol=1e-6)
        np.testing.assert_allclose(attention.top_mass, attention.weights.sum(axis=1), atol=1e-6)
        np.testing.assert_allclose(attention.entropy, compute_entropy(weights), atol=1e-4)
        assert [[match["count"] for match in row] for row in attention.matches] == order.tolist()
        assert attention.matches[0][0]["word"] == columns["word"][order[0, 0]]
        if values is None:
            assert attention.value is None
            continue
        table = keys if values == "key" else np.asarray(columns[values])
        table = table.reshape(KEYS, -1).astype(np.float64)
        np.testing.assert_allclose(attention.value, weights @ table, atol=2e-6 * np.abs(table).max())


def test_keys_of_local_files_are_read_without_decoding_and_kept_while_there_is_room(tmp_path: Path) -> None:
    library, keys, _ = make_library(tmp_path, 96, "float16", fragments=2)
    key_pages = KeyPages(library.path, read_key_format(library.dataset.schema))
    key_pages._free_bytes = keys.nbytes // 2
    fragments = library.dataset.get_fragments()
    pages = [page for fragment in fragments for page in key_pages.find_pages(library.dataset, fragment)]
    np.testing.assert_array_equal(np.concatenate([page.read() for page in pages]), keys)
    assert 0 < sum(page.kept_bytes for page in pages) <= keys.nbytes // 2
    for page in pages:
        assert page.read().ctypes.data % 64 == 0
        assert (page.read() is page.read()) == (page.kept_bytes > 0)
    # A version without a file releases its keys.
    library.dataset.delete("count >= 0")
    key_pages.find_pages(kw.Library.open(library.path).dataset, fragments[0])
    assert key_pages._free_bytes == keys.nbytes // 2


def test_keys_that_are_not_kept_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, _, _ = make_library(tmp_path, 96, "float16")
    queries = draw_numbers(QUERIES, 96, seed=3)
    kept = library.attend(queries, temperature=TEMPERATURE)
    monkeypatch.setattr("keywise.library.key_pages.KEPT_SHARE", 0)
    read = kw.Library.open(library.path).attend(queries, temperature=TEMPERATURE)
    for name in ("weights", "value", "entropy", "lse", "rows"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(read, name))


def test_deleted_rows_and_several_calls_per_page_equal_the_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keywise.library.scan.MAX_CALL_WEIGHTS", 100 * QUERIES)
    library, keys, columns = make_library(tmp_path, 96, "float16", fragments=1)
    library.dataset.delete("count < 250 OR count = 500")
    library = kw.Library.open(library.path)
    queries = draw_numbers(QUERIES, 96, seed=3).astype(np.float16)
    weights = compute_weights(queries, keys, (columns["count"] >= 250) & (columns["count"] != 500))
    attention = library.attend(queries, temperature=TEMPERATURE, top=4)
    np.testing.assert_allclose(attention.weights, -np.sort(-weights, axis=1)[:, :4], atol=1e-6)
    np.testing.assert_allclose(attention.value, weights @ keys.astype(np.float64), atol=1e-5)


def test_where_leaves_fewer_rows_than_top_or_none(tmp_path: Path) -> None:
    library, _, _ = make_library(tmp_path, 8, "float32", fragments=2)
    few = library.attend(draw_numbers(8), temperature=1.0, where="count < 2", top=5)
    assert (few.rows[0, 2:] == -1).all()
    assert (few.weights[0, 2:] == 0).all()
    assert len(few.matches[0]) == 2
    np.testing.assert_allclose(few.top_mass, 1, atol=1e-6)
    none = library.attend(draw_numbers(8), temperature=1.0, where="count < 0", top=5)
    assert none.matches == [[]]
    assert none.top_mass.tolist() == [0]
    assert none.entropy.tolist() == [0]
    assert np.isneginf(none.lse).all()
    assert (none.value == 0).all()


def test_first_of_equal_keys_ranks_higher(tmp_path: Path) -> None:
    library = kw.Library.open(tmp_path / "library", "a", dtype="float32")
    for fragment in range(3):
        library.add_keys(np.ones((4, 8)), number=np.arange(4) + 4 * fragment)
    attention = library.attend(np.ones(8), temperature=1.0, top=5)
    assert [match["number"] for match in attention.matches[0]] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(attention.weights, 1 / 12, atol=1e-7)


def test_number_of_threads_changes_no_bit(tmp_path: Path) -> None:
    library, _, _ = make_library(tmp_path, 96, "float16")
    queries = draw_numbers(QUERIES, 96, seed=3)
    results = []
    for threads in (1, 3):
        kw.set_num_threads(threads)
        results.append(library.attend(queries, temperature=TEMPERATURE))
    kw.set_num_threads(None)
    for name in ("weights", "value", "entropy", "lse", "rows"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))


def test_top_mass_of_candidates_is_a_lower_bound(tmp_path: Path) -> None:
    library, keys, _ = make_library(tmp_path, 32, "float32", fragments=1)
    with pytest.raises(OptionError, match=r"Library.index\(\)"):
        library.attend(keys[0], approximate=True)
    library.index(num_partitions=4)
    exact = library.attend(keys[:4], temperature=TEMPERATURE, top=5)
    all_candidates = library.attend(keys[:4], temperature=TEMPERATURE, top=5, approximate=True, candidates=KEYS)
    few_candidates = library.attend(keys[:4], temperature=TEMPERATURE, top=5, approximate=True, candidates=20)
    assert exact.exact
    assert not few_candidates.exact
    assert (few_candidates.top_mass < exact.top_mass).all()
    assert (few_candidates.top_mass > 0).all()
    assert (all_candidates.top_mass <= exact.top_mass + 1e-6).all()
    assert few_candidates.matches[0][0]["count"] == 0


def test_library_of_user_keys_refuses_texts_and_encoders(tmp_path: Path) -> None:
    library, _, _ = make_library(tmp_path, 8, "float32", fragments=1)
    with pytest.raises(OptionError, match="library must have an encoder"):
        library.search("Ben")
    with pytest.raises(OptionError, match="library must not hold keys of your own"):
        kw.Library.open(library.path, "a").add([tmp_path])
    with pytest.raises(ModelError, match="encoder must be None, got 'words'"):
        kw.Library.open(library.path, encoder=WordEncoder())
    assert library.info().documents is None
    assert library.temperature == pytest.approx(8**0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"where": "count >"}, OptionError, "where must be Lance SQL over the columns, got 'count >'"),
        ({"where": "colour = 1"}, OptionError, "where must be Lance SQL over the columns, got 'colour = 1'"),
        ({"values": "colour"}, OptionError, "values must be one of the columns key, number.* got 'colour'"),
        ({"values": "word"}, DtypeError, "values must be a numeric column, got 'word'"),
        ({"temperature": 0}, OptionError, "temperature must be greater than 0, got 0"),
        ({"temperature": float("nan")}, OptionError, "temperature must be finite .* got nan"),
        ({"top": -1}, OptionError, "top must be between 0 and .* got -1"),
        ({"engine": "spark"}, OptionError, "engine must be 'local' or 'ray', got 'spark'"),
        (
            {"engine": "ray", "approximate": True},
            OptionError,
            "engine must be 'local' with approximate=True, got 'ray'",
        ),
        ({"queries": draw_numbers(2, 9)}, ShapeError, r"queries must have shape \[N, 8\], got \[2, 9\]"),
        ({"queries": np.full(8, np.nan)}, OptionError, "queries must be finite in float32, got nan in row 0"),
        ({"queries": [["a"]]}, DtypeError, "queries must be an array of numbers"),
        ({"queries": " "}, OptionError, "library must have an encoder"),
    ],
)
def test_attend_refuses_bad_arguments(tmp_path: Path, arguments: dict[str, Any], error: type, message: str) -> None:
    library, _, _ = make_library(tmp_path, 8, "float32", fragments=1)
    with pytest.raises(error, match=message):
        library.attend(**{"queries": draw_numbers(8), **arguments})


@pytest.mark.parametrize(
    ("keys", "columns", "error", "message"),
    [
        ([[np.nan] * 8], {}, OptionError, "keys must be finite in float16, got nan in row 0"),
        ([[1e30] * 8], {}, OptionError, r"keys must be finite in float16, got 1e\+30 in row 0"),
        (draw_numbers(2, 7), {}, ShapeError, r"\[N, 8\]"),
        (
            draw_numbers(2, 8),
            {"number": [1.0]},
            ShapeError,
            "columns must have one entry per key: 2, got 1 in column 'number'",
        ),
        (
            draw_numbers(2, 8),
            {"number": ["a", "b"]},
            DtypeError,
            "columns must have the types of the library's columns",
        ),
        (draw_numbers(2, 8), {}, OptionError, r"columns must be .*'number'.*, got \[\]"),
        (
            draw_numbers(2, 8),
            {"key": [1.0, 2.0]},
            OptionError,
            "columns must not be called 'key' or 'weight', got 'key'",
        ),
        (
            draw_numbers(2, 8),
            {"number": ["a", "b\0"]},
            OptionError,
            "columns must not have null characters; column 'number' has one",
        ),
        (
            draw_numbers(2, 8),
            {"number": [object(), 1]},
            DtypeError,
            "columns must hold numbers or texts, one per key; column 'number' does not",
        ),
    ],
)
def test_add_keys_refuses_bad_arguments_and_adds_nothing(
    tmp_path: Path, keys: Any, columns: dict[str, Any], error: type, message: str
) -> None:
    library = kw.Library.open(tmp_path / "library", "a")
    library.add_keys(draw_numbers(3, 8), number=[1.0, 2.0, 3.0])
    with pytest.raises(error, match=message):
        library.add_keys(keys, **columns)
    assert kw.Library.open(library.path).info().rows == 3
