"""check: correct outputs are healthy, statistics are reported, unusable arguments are refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import keywise as kw
from keywise.diagnosis import check


def draw(*shape: int, seed: int = 0, size: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * size).astype(np.float32)


@pytest.mark.parametrize(
    "mask",
    [
        None,
        kw.Mask(causal=True),
        kw.Mask(causal=True, window=(5, 0)),
        kw.Mask(causal=True, starts=[4, 0]),
        kw.Mask(lengths=[20, 32]),
    ],
    ids=["none", "causal", "window", "padding", "lengths"],
)
@pytest.mark.parametrize("size", [0.0, 0.1, 1.0, 5.0], ids=lambda size: f"size {size}")
def test_correct_output_is_healthy_under_every_mask(mask: kw.Mask | None, size: float) -> None:
    query, key, value = draw(2, 4, 32, 16, size=size), draw(2, 2, 32, 16, seed=1), draw(2, 2, 32, 16, seed=2)
    stats = kw.attention_stats(query, key, value, mask=mask)
    diagnosis = check(query, key, value, mask=mask, output=stats.output, lse=stats.lse)
    assert not diagnosis.errors, diagnosis
    # Queries of size 0 have uniform weights; a window of 6 keys is too narrow to report them.
    narrow = mask is not None and mask.window is not None
    assert diagnosis.codes == (("weights-uniform",) if size == 0 and not narrow else ())


def test_keys_with_a_common_offset_are_not_identical() -> None:
    query, key, value = draw(1, 2, 32, 16), draw(1, 2, 32, 16, seed=1) + 30, draw(1, 2, 32, 16, seed=2)
    assert check(query, key, value).state("keys-identical") == "clean"


def test_identical_keys_explain_uniform_weights() -> None:
    query, key, value = draw(1, 2, 32, 16), draw(1, 2, 1, 16, seed=1).repeat(32, axis=2), draw(1, 2, 32, 16, seed=2)
    diagnosis = check(query, key, value)
    assert diagnosis.codes[0] == "keys-identical"
    one_head = np.concatenate([key[:, :1], draw(1, 1, 32, 16, seed=3)], axis=1)
    assert [finding.severity for finding in check(query, one_head, value).findings] == ["warning"]


def test_single_saturated_and_uniform_heads_are_healthy() -> None:
    query, key, value = draw(1, 4, 64, 16), draw(1, 4, 64, 16, seed=1), draw(1, 4, 64, 16, seed=2)
    query[:, 0] *= 1000
    query[:, 1] = 0
    assert check(query, key, value).healthy


def test_attention_sink_is_a_note() -> None:
    query, key, value = draw(1, 2, 32, 16), draw(1, 2, 32, 16, seed=1), draw(1, 2, 32, 16, seed=2)
    query[..., 0], key[..., 0] = 4.0, 0.0
    key[:, :, 0, 0] = 6.0
    diagnosis = check(query, key, value)
    assert diagnosis.healthy
    assert [finding.code for finding in diagnosis.findings] == ["attention-sink"]


def test_padding_queries_without_keys_are_a_note() -> None:
    array = draw(1, 2, 16, 8)
    mask = kw.Mask(causal=True, starts=[4])
    output = kw.attend(array, array, array, mask=mask).copy()
    output[:, :, :4] = np.nan  # padding, whose output is not used
    diagnosis = check(array, array, array, mask=mask, output=output)
    assert diagnosis.healthy, diagnosis
    assert "rows-without-keys" in {finding.code for finding in diagnosis.findings}


def test_lse_of_other_scores_is_reported() -> None:
    array = draw(1, 2, 16, 8)
    lse = kw.attention_stats(array, array, array).lse
    assert check(array, array, array, lse=lse).healthy
    assert check(array, array, array, lse=lse + 0.1).codes == ("lse-differs",)


def test_twenty_thousand_keys_fit_in_memory() -> None:
    tokens = 20_000
    array = draw(1, 2, tokens, 8)
    output = kw.attend(array, array, array, mask=kw.Mask(causal=True))
    assert check(array, array, array, mask=kw.Mask(causal=True), output=output, rows=8).healthy


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"output": np.zeros((1, 2, 3, 8), np.float32)}, kw.ShapeError, "output must have shape"),
        ({"output": np.zeros((1, 2, 16, 8), np.int32)}, kw.DtypeError, "output must have dtype .* got 'int32'"),
        ({"lse": np.zeros((1, 2), np.float32)}, kw.ShapeError, "lse must have shape"),
        ({"rows": 0}, kw.OptionError, "rows must be between 1"),
        ({"scale": "large"}, kw.DtypeError, "scale must be a number"),
        ({"output": "text"}, kw.DtypeError, "output must be .*, got a str"),
    ],
)
def test_unusable_argument_is_refused_by_name(change: dict[str, object], error: type[Exception], message: str) -> None:
    array = draw(1, 2, 16, 8)
    with pytest.raises(error, match=message):
        check(array, array, array, **change)


@pytest.mark.parametrize("argument", ["output", "lse"])
def test_error_carries_the_name_of_the_argument(argument: str) -> None:
    array = draw(1, 2, 16, 8)
    with pytest.raises(kw.ShapeError) as error:
        check(array, array, array, **{argument: np.zeros((1, 2), np.float32)})
    assert error.value.argument == argument


def test_diagnosis_of_numpy_arrays_does_not_import_torch() -> None:
    code = (
        "import sys, numpy as np, keywise as kw; x = np.eye(8, dtype=np.float32)[None, None];"
        "assert kw.diagnosis.check(x, x, x, output=kw.attend(x, x, x, scale=1.0)).codes;"
        "assert kw.diagnosis.check_function(kw.attend).healthy; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
