"""Attention to keys of one's own: the definition's, however they are read; mistakes told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keywise as kw
from keywise.errors import DtypeError, ModelError, OptionError, ShapeError
from keywise.library.library import Library
from tests.support.library_tools import WordEncoder

KEYS = 700
QUERIES = 3
TEMPERATURE = 3.0


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def definition(queries: np.ndarray, keys: np.ndarray, seen: np.ndarray) -> np.ndarray:
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T / TEMPERATURE
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def entropy_of(weights: np.ndarray) -> np.ndarray:
    return -np.where(weights > 0, weights * np.log(np.maximum(weights, 1e-300)), 0).sum(axis=1)


def memory(folder: Path, dimension: int, dtype: str, parts: int = 3) -> tuple[Library, np.ndarray, dict[str, Any]]:
    """Make a library of keys in some fragments, with columns of several kinds."""
    keys = numbers(KEYS, dimension).astype(dtype)
    columns = {
        "number": numbers(KEYS, seed=1) * 1000,
        "count": np.arange(KEYS),
        "pair": numbers(KEYS, 2, seed=2).astype(np.float32),
        "word": [f"word {i % 7}" for i in range(KEYS)],
    }
    library = kw.Library.open(folder / "memory", "a", dtype=dtype)
    for rows in np.array_split(np.arange(KEYS), parts):
        library.add_keys(keys[rows], **{name: [values[i] for i in rows] for name, values in columns.items()})
    return library, keys, columns


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(("dimension", "dtype"), [(96, "float16"), (96, "float32"), (5, "float32")])
@pytest.mark.parametrize("values", ["key", "number", "count", "pair", None])
def test_attention_is_that_of_the_definition(
    tmp_path: Path, dimension: int, dtype: str, values: str | None, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mapped:
        monkeypatch.setattr("keywise.library.mapped.MappedKeys.of", lambda *_: None)
    library, keys, columns = memory(tmp_path, dimension, dtype)
    queries = numbers(QUERIES, dimension, seed=3).astype(dtype)
    for where, seen in [(None, np.ones(KEYS, bool)), ("count % 3 = 1", columns["count"] % 3 == 1)]:
        weights = definition(queries, keys, seen)
        found = library.attend(queries, temperature=TEMPERATURE, where=where, top=6, values=values)
        order = np.argsort(-weights, axis=1, kind="stable")[:, :6]
        np.testing.assert_allclose(found.weights, np.take_along_axis(weights, order, axis=1), atol=1e-6)
        np.testing.assert_allclose(found.top_mass, found.weights.sum(axis=1), atol=1e-6)
        np.testing.assert_allclose(found.entropy, entropy_of(weights), atol=1e-4)
        assert [[match["count"] for match in row] for row in found.matches] == order.tolist()
        assert found.matches[0][0]["word"] == columns["word"][order[0, 0]]
        if values is None:
            assert found.value is None
            continue
        table = keys if values == "key" else np.asarray(columns[values])
        truth = weights @ table.reshape(KEYS, -1).astype(np.float64)
        np.testing.assert_allclose(found.value, truth, atol=2e-6 * np.abs(table.astype(np.float64)).max())


def test_keys_are_read_where_they_lie(tmp_path: Path) -> None:
    library, keys, _ = memory(tmp_path, 96, "float16", parts=2)
    maps = library._mapped()
    pages = [maps.of(library.dataset, fragment) for fragment in library.dataset.get_fragments()]
    np.testing.assert_array_equal(np.concatenate([page for some in pages for page in some]), keys)
    assert not any(page.flags.owndata or page.flags.writeable for some in pages for page in some)


def test_pages_of_many_rows_and_deleted_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keywise.library.scan.MOST_WEIGHTS", 100 * QUERIES)
    library, keys, columns = memory(tmp_path, 96, "float16", parts=1)
    library.dataset.delete("count < 250 OR count = 500")
    library = kw.Library.open(library.path)
    queries = numbers(QUERIES, 96, seed=3).astype(np.float16)
    weights = definition(queries, keys, (columns["count"] >= 250) & (columns["count"] != 500))
    found = library.attend(queries, temperature=TEMPERATURE, top=4)
    np.testing.assert_allclose(found.weights, -np.sort(-weights, axis=1)[:, :4], atol=1e-6)
    np.testing.assert_allclose(found.value, weights @ keys.astype(np.float64), atol=1e-5)


def test_rows_short_of_top_and_a_filter_that_hides_all(tmp_path: Path) -> None:
    library, _, _ = memory(tmp_path, 8, "float32", parts=2)
    few = library.attend(numbers(8), temperature=1.0, where="count < 2", top=5)
    assert (few.rows[0, 2:] == -1).all()
    assert (few.weights[0, 2:] == 0).all()
    assert len(few.matches[0]) == 2
    np.testing.assert_allclose(few.top_mass, 1, atol=1e-6)
    none = library.attend(numbers(8), temperature=1.0, where="count < 0", top=5)
    assert none.matches == [[]]
    assert none.top_mass.tolist() == [0]
    assert none.entropy.tolist() == [0]
    assert np.isneginf(none.lse).all()
    assert (none.value == 0).all()


def test_of_equal_keys_the_first_is_named(tmp_path: Path) -> None:
    library = kw.Library.open(tmp_path / "m", "a", dtype="float32")
    for part in range(3):
        library.add_keys(np.ones((4, 8)), number=np.arange(4) + 4 * part)
    found = library.attend(np.ones(8), temperature=1.0, top=5)
    assert [match["number"] for match in found.matches[0]] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found.weights, 1 / 12, atol=1e-7)


def test_threads_change_nothing(tmp_path: Path) -> None:
    library, _, _ = memory(tmp_path, 96, "float16")
    queries = numbers(QUERIES, 96, seed=3)
    results = []
    for threads in (1, 3):
        kw.set_num_threads(threads)
        results.append(library.attend(queries, temperature=TEMPERATURE))
    kw.set_num_threads(None)
    for name in ("weights", "value", "entropy", "lse", "rows"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))


def test_candidates_cover_at_least_what_is_said(tmp_path: Path) -> None:
    library, keys, _ = memory(tmp_path, 32, "float32", parts=1)
    with pytest.raises(OptionError, match=r"Library.index\(\)"):
        library.attend(keys[0], approximate=True)
    library.index(num_partitions=4)
    exact = library.attend(keys[:4], temperature=TEMPERATURE, top=5)
    near = library.attend(keys[:4], temperature=TEMPERATURE, top=5, approximate=True, candidates=KEYS)
    some = library.attend(keys[:4], temperature=TEMPERATURE, top=5, approximate=True, candidates=20)
    assert exact.exact
    assert not some.exact
    assert (some.top_mass < exact.top_mass).all()
    assert (some.top_mass > 0).all()
    assert (near.top_mass <= exact.top_mass + 1e-6).all()
    assert some.matches[0][0]["count"] == 0


def test_keys_of_the_users_have_no_encoder(tmp_path: Path) -> None:
    library, _, _ = memory(tmp_path, 8, "float32", parts=1)
    with pytest.raises(OptionError, match="no encoder"):
        library.search("Ben")
    with pytest.raises(OptionError, match="keys of the user's"):
        kw.Library.open(library.path, "a").add([tmp_path])
    with pytest.raises(ModelError, match="made by no encoder"):
        kw.Library.open(library.path, encoder=WordEncoder())
    assert library.info().documents is None
    assert library.temperature == pytest.approx(8**0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"where": "count >"}, OptionError, "where='count >' cannot be used"),
        ({"where": "colour = 1"}, OptionError, "where='colour = 1' cannot be used"),
        ({"values": "colour"}, OptionError, "values='colour' is no column; there are key, number"),
        ({"values": "word"}, DtypeError, "name a numeric column"),
        ({"temperature": 0}, OptionError, "it is above 0"),
        ({"temperature": float("nan")}, OptionError, "temperature=nan"),
        ({"top": -1}, OptionError, "top=-1"),
        ({"engine": "spark"}, OptionError, "there are 'local' and 'ray'"),
        ({"engine": "ray", "approximate": True}, OptionError, "leave one of them out"),
        ({"queries": numbers(2, 9)}, ShapeError, r"queries has shape \[2, 9\]"),
        ({"queries": np.full(8, np.nan)}, OptionError, "queries row 0 holds NaN"),
        ({"queries": [["a"]]}, DtypeError, "queries has dtype"),
        ({"queries": " "}, OptionError, "no encoder|is empty"),
    ],
)
def test_mistakes_of_questions_are_told(tmp_path: Path, arguments: dict[str, Any], error: type, message: str) -> None:
    library, _, _ = memory(tmp_path, 8, "float32", parts=1)
    with pytest.raises(error, match=message):
        library.attend(**{"queries": numbers(8), **arguments})


@pytest.mark.parametrize(
    ("keys", "columns", "error", "message"),
    [
        ([[np.nan] * 8], {}, OptionError, "keys row 0 holds NaN"),
        ([[1e30] * 8], {}, OptionError, "more than float16 can hold"),
        (numbers(2, 7), {}, ShapeError, r"\[N, 8\]"),
        (numbers(2, 8), {"number": [1.0]}, ShapeError, "has 1 entries"),
        (numbers(2, 8), {"number": ["a", "b"]}, DtypeError, "types of the library's"),
        (numbers(2, 8), {}, OptionError, "columns .* are not"),
        (numbers(2, 8), {"key": [1.0, 2.0]}, OptionError, "cannot be called 'key'"),
        (numbers(2, 8), {"number": [object(), 1]}, DtypeError, "cannot be kept"),
    ],
)
def test_mistakes_of_keys_are_told_and_nothing_is_added(
    tmp_path: Path, keys: Any, columns: dict[str, Any], error: type, message: str
) -> None:
    library = kw.Library.open(tmp_path / "m", "a")
    library.add_keys(numbers(3, 8), number=[1.0, 2.0, 3.0])
    with pytest.raises(error, match=message):
        library.add_keys(keys, **columns)
    assert kw.Library.open(library.path).info().rows == 3
