"""Comparison of two builds of keywise."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import keywise as kw
from benchmarks.compare import compute_difference, compute_interval, compute_median, plan_cases, run_comparison
from benchmarks.results import Run
from benchmarks.tables import format_tables
from keywise.attention import _native
from keywise.errors import KeywiseError, OptionError


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy keywise with its native module, which an editable installation keeps elsewhere."""
    folder = tmp_path_factory.mktemp("build")
    package = folder / "keywise"
    shutil.copytree(Path(kw.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(_native.__file__, package / "attention")
    return folder


def test_small_group_has_torch_and_numpy_and_both_operations() -> None:
    names = [case.name for case in plan_cases(["small"])]
    shape = "full float32 B=1 H=8/8 Q=1 N=128 D=64"
    assert {
        f"{operation}, {library}, {shape}"
        for operation in ("attend", "attention_stats")
        for library in ("torch", "numpy")
    } <= set(names)
    assert len(names) == 6


def test_shared_cases_of_groups_are_compared_once() -> None:
    cases = plan_cases([])
    assert len({case.name for case in cases}) == len(cases)


def test_build_compared_with_itself_has_the_same_bits(build: Path) -> None:
    cases = plan_cases(["small"], "numpy")
    results = list(run_comparison(cases, build, build, threads=1, rounds=3, seconds=0.01, pairs=2))
    assert [result["name"] for result in results] == 2 * [case.name for case in cases]
    results = results[2:]
    assert [result["same_bits"] for result in results] == [True, True]
    assert all(result["agrees"] and result["largest_difference"] == 0 for result in results)
    for result in results:
        low, high = result["ratio_interval"]
        assert 0 < low <= high
        assert np.shape(list(result["seconds_per_call"].values())) == (2, 2, 3)
    text = format_tables([Run("compare", "python -m benchmarks compare", results=results)])
    assert f"| small: {cases[0].name} |" in text
    assert "disagree beyond the tolerance in 0 cases and have the same bits in 2" in text


def test_older_names_of_the_interface_are_understood(tmp_path: Path, build: Path) -> None:
    package = tmp_path / "keywise"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import types\n"
        "import numpy as np\n"
        "class Mask:\n"
        "    def __init__(self, causal=False, window=None): pass\n"
        "def set_threads(count): pass\n"
        "def attend(query, key, value, mask=None): return query\n"
        "def read(query, key, value, mask=None, top=0, segments=None):\n"
        "    return types.SimpleNamespace(output=query, lse=query[..., 0], covered=np.full(query.shape[:3], top))\n",
        encoding="utf-8",
    )
    cases = plan_cases(["small"], "attention_stats, numpy")
    (result,) = run_comparison(cases, tmp_path, build, threads=1, rounds=3, seconds=0.0, pairs=1)
    assert not result["same_bits"]
    assert not result["agrees"]
    assert result["largest_difference"] > 0.01


def test_folder_without_keywise_and_broken_builds_are_refused(tmp_path: Path, build: Path) -> None:
    cases = plan_cases(["small"], "attend, numpy")
    with pytest.raises(OptionError, match="before must be a folder that holds a `keywise` package"):
        next(run_comparison(cases, tmp_path, build, threads=1, rounds=3, seconds=0.0))
    (tmp_path / "keywise").mkdir()
    (tmp_path / "keywise" / "__init__.py").write_text("raise ImportError('not built')\n", encoding="utf-8")
    with pytest.raises(KeywiseError, match="before must be a build that can run the case: ImportError: not built"):
        next(run_comparison(cases, tmp_path, build, threads=1, rounds=3, seconds=0.0))


def test_differences_are_relative_and_ignore_equal_infinities() -> None:
    before = {"lse": np.array([-np.inf, 2.0]), "top_keys": np.array([1, 2, 3, 4]), "before only": np.zeros(1)}
    assert compute_difference(before, before) == 0
    assert compute_difference(before, {"lse": np.array([-np.inf, 2.5])}) == 0.25
    assert compute_difference(before, {"top_keys": np.array([1, 2, 3, 5])}) == 0.25
    assert compute_difference(before, {"lse": np.array([np.nan, 2.0])}) == np.inf
    assert compute_difference(before, {"lse": np.zeros(3)}) == np.inf


def test_interval_contains_the_ratio_of_medians() -> None:
    random = np.random.default_rng(0)
    before = (1 + 0.1 * random.random((5, 9))).tolist()
    after = (2 + 0.1 * random.random((5, 9))).tolist()
    low, high = compute_interval(before, after)
    assert low <= compute_median(after) / compute_median(before) <= high
    assert 1.7 < low <= high < 2.2


def test_interval_covers_differences_between_processes() -> None:
    processes = [[1.0] * 9, [1.1] * 9, [0.95] * 9, [1.0] * 9, [1.05] * 9]
    low, high = compute_interval(processes, processes[::-1])
    assert low < 0.97
    assert high > 1.03
