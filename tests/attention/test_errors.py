"""Bad input: every error is one of keywise's and names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import keywise as kw
from tests.attention.test_arrays import DlpackArray

ONES = np.ones((2, 4, 3, 8), np.float32)
KEYS = np.ones((2, 2, 5, 8), np.float32)


def call(**changes: Any) -> Any:
    return kw.attention_stats(**{"query": ONES, "key": KEYS, "value": KEYS, **changes})


def test_valid_call_returns_an_output() -> None:
    assert call().output.shape == (2, 4, 3, 8)


SHAPES = {
    "query with 3 axes": ({"query": ONES[0]}, "query"),
    "key with 2 axes": ({"key": ONES[0, 0]}, "key"),
    "value with 5 axes": ({"value": ONES[None]}, "value"),
    "head_dim 0": ({"query": ONES[..., :0], "key": KEYS[..., :0]}, "query"),
    "value_dim 0": ({"value": KEYS[..., :0]}, "value"),
    "other batch": ({"key": KEYS[:1]}, "key"),
    "other value batch": ({"value": KEYS[:1]}, "value"),
    "other head_dim": ({"key": KEYS[..., :7]}, "key"),
    "other value tokens": ({"value": KEYS[:, :, :4]}, "value"),
    "other value heads": ({"value": KEYS[:, :1]}, "value"),
    "heads that do not divide": ({"query": ONES[:, :3]}, "query"),
    "no key heads": ({"key": KEYS[:, :0], "value": KEYS[:, :0]}, "key"),
    "mask that does not broadcast": ({"mask": np.ones((3, 4), bool)}, "mask"),
    "allowed that does not broadcast": ({"mask": kw.Mask(allowed=np.ones((3, 4), bool))}, "mask"),
    "mask with 5 axes": ({"mask": np.ones((1, 2, 4, 3, 5), bool)}, "mask"),
    "bias that does not broadcast": ({"bias": np.ones((2, 5), np.float32)}, "bias"),
    "sinks for other heads": ({"sinks": np.ones(2, np.float32)}, "sinks"),
    "sinks with 2 axes": ({"sinks": np.ones((1, 4), np.float32)}, "sinks"),
    "lengths for another batch": ({"mask": kw.Mask(lengths=[1, 2, 3])}, "lengths"),
    "starts for another batch": ({"mask": kw.Mask(starts=[1])}, "starts"),
    "documents of another length": ({"mask": kw.Mask(documents=np.zeros((2, 4), int))}, "documents"),
    "documents of another batch": ({"mask": kw.Mask(documents=np.zeros((1, 5), int))}, "documents"),
    "documents with 1 axis": ({"mask": kw.Mask(documents=np.zeros(5, int))}, "documents"),
    "row_weights that do not broadcast": ({"query_weights": np.ones((5,), np.float32)}, "query_weights"),
    "segments with 2 axes": ({"segment_bounds": [[0, 5]]}, "segment_bounds"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    changes, argument = SHAPES[name]
    with pytest.raises(kw.ShapeError, match=argument):
        call(**changes)


DTYPES = {
    "whole numbers": ({"query": ONES.astype(int)}, "query"),
    "booleans": ({"key": KEYS > 0}, "key"),
    "complex": ({"value": KEYS.astype(np.complex64)}, "value"),
    "mixed": ({"key": KEYS.astype(np.float16)}, "key"),
    "mixed values": ({"value": KEYS.astype(np.float64)}, "value"),
    "8-bit floats": ({"query": torch.ones(2, 4, 3, 8).to(torch.float8_e4m3fn)}, "query"),
    "a list": ({"query": ONES.tolist()}, "query"),
    "nothing": ({"value": None}, "value"),
    "objects": ({"key": KEYS.astype(object)}, "key"),
    "foreign byte order": ({"query": ONES.astype(">f4")}, "query"),
    "sparse": ({"key": torch.ones(2, 2, 5, 8).to_sparse()}, "key"),
    "additive mask": ({"mask": np.zeros((3, 5), np.float32)}, "bias="),
    "mask of whole numbers": ({"mask": np.ones((3, 5), int)}, "mask"),
    "mask by name": ({"mask": "causal"}, "mask"),
    "boolean bias": ({"bias": np.ones((3, 5), bool)}, "mask="),
    "bias of another dtype": ({"bias": np.ones((3, 5), np.float16)}, "bias"),
    "bias of float64": ({"bias": np.ones((3, 5))}, "bias"),
    "sinks of whole numbers": ({"sinks": np.ones(4, int)}, "sinks"),
    "scale by name": ({"scale": "auto"}, "scale"),
    "boolean scale": ({"scale": True}, "scale"),
    "softcap by name": ({"softcap": "30"}, "softcap"),
    "boolean top": ({"top_k": True}, "top_k"),
    "broken top": ({"top_k": 2.0}, "top_k"),
    "broken lengths": ({"mask": kw.Mask(lengths=[1.0, 2.0])}, "lengths"),
    "boolean starts": ({"mask": kw.Mask(starts=np.ones(2, bool))}, "starts"),
    "lengths of bfloat16": ({"mask": kw.Mask(lengths=torch.ones(2, dtype=torch.bfloat16))}, "lengths"),
    "documents of bfloat16": ({"mask": kw.Mask(documents=torch.ones(2, 5, dtype=torch.bfloat16))}, "documents"),
    "segments of bfloat16": ({"segment_bounds": torch.ones(5, dtype=torch.bfloat16)}, "segment_bounds"),
    "segments of nothing": ({"segment_bounds": [None, 1]}, "segment_bounds"),
    "documents of floats": ({"mask": kw.Mask(documents=np.zeros((2, 5)))}, "documents"),
    "segments of floats": ({"segment_bounds": [0.0, 5.0]}, "segment_bounds"),
    "row_weights of whole numbers": ({"query_weights": np.ones(3, int)}, "query_weights"),
}


@pytest.mark.parametrize("name", DTYPES)
def test_unsupported_types_are_refused(name: str) -> None:
    changes, argument = DTYPES[name]
    with pytest.raises(kw.DtypeError, match=argument):
        call(**changes)


OPTIONS = {
    "NaN scale": ({"scale": float("nan")}, "scale"),
    "infinite scale": ({"scale": float("inf")}, "scale"),
    "NaN softcap": ({"softcap": float("nan")}, "softcap"),
    "softcap 0": ({"softcap": 0.0}, "softcap"),
    "scale past float32": ({"scale": 1e300}, "scale"),
    "softcap past float32": ({"softcap": 1e300}, "softcap"),
    "softcap that vanishes in float32": ({"softcap": 1e-300}, "softcap"),
    "negative softcap": ({"softcap": -30.0}, "softcap"),
    "NaN sinks": ({"sinks": np.array([0, np.nan, 0, 0], np.float32)}, "sinks"),
    "infinite sinks": ({"sinks": np.array([0, np.inf, 0, 0], np.float32)}, "sinks"),
    "negative top": ({"top_k": -1}, "top_k"),
    "top past any sequence": ({"top_k": 10**12}, "top_k"),
    "lengths past any sequence": ({"mask": kw.Mask(lengths=np.full(2, 2**64 - 1, np.uint64))}, "lengths"),
    "negative lengths": ({"mask": kw.Mask(lengths=[3, -1])}, "lengths"),
    "negative starts": ({"mask": kw.Mask(starts=[-3, 0])}, "starts"),
    "segments that do not increase": ({"segment_bounds": [0, 3, 3, 4]}, "segment_bounds"),
    "segments that fall": ({"segment_bounds": [0, 4, 2, 3]}, "segment_bounds"),
    "segments past the keys": ({"segment_bounds": [0, 3, 6]}, "segment_bounds"),
    "segments below 0": ({"segment_bounds": [-2, 3]}, "segment_bounds"),
    "one bound": ({"segment_bounds": [0]}, "segment_bounds"),
    "no bounds": ({"segment_bounds": []}, "segment_bounds"),
    "ids past the keys": ({"segment_ids": [0, 0, 9, 0, 0]}, "segment_ids"),
    "ids below -1": ({"segment_ids": [0, 0, -2, 0, 0]}, "segment_ids"),
    "NaN row_weights": ({"query_weights": np.array([1, np.nan, 1], np.float32)}, "query_weights"),
    "infinite row_weights": ({"query_weights": np.array([1, np.inf, 1], np.float32)}, "query_weights"),
    "document ids past 32 bits": ({"mask": kw.Mask(documents=np.full((2, 5), 2**31))}, "documents"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_unusable_options_are_refused(name: str) -> None:
    changes, argument = OPTIONS[name]
    with pytest.raises(kw.OptionError, match=argument):
        call(**changes)


MASKS = {
    "causal=1": ({"causal": 1}, kw.DtypeError, "causal"),
    "causal=None": ({"causal": None}, kw.DtypeError, "causal"),
    "one side": ({"window": 5}, kw.DtypeError, "window"),
    "a list": ({"window": [1, 2]}, kw.DtypeError, "window"),
    "three sides": ({"window": (1, 2, 3)}, kw.DtypeError, "window"),
    "a broken side": ({"window": (1.0, None)}, kw.DtypeError, "window"),
    "a boolean side": ({"window": (True, None)}, kw.DtypeError, "window"),
    "a negative side": ({"window": (-1, None)}, kw.OptionError, "window"),
    "negative keep_first": ({"keep_first": -1}, kw.OptionError, "keep_first"),
    "broken keep_first": ({"keep_first": 1.0}, kw.DtypeError, "keep_first"),
    "boolean keep_first": ({"keep_first": True}, kw.DtypeError, "keep_first"),
}


@pytest.mark.parametrize("name", MASKS)
def test_unusable_mask_fields_are_refused(name: str) -> None:
    fields, error, argument = MASKS[name]
    with pytest.raises(error, match=f"mask.{argument} must "):
        kw.Mask(**fields)


def test_a_mask_is_frozen() -> None:
    with pytest.raises(AttributeError):
        kw.Mask().causal = True  # type: ignore[misc]


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_other_devices_and_gradients_are_refused_by_name(name: str) -> None:
    tensor = torch.ones(2, 4 if name == "query" else 2, 3 if name == "query" else 5, 8)
    with pytest.raises(kw.TargetError, match=f"{name}.*meta"):
        call(**{name: tensor.to("meta")})
    with pytest.raises(kw.TargetError, match=f"{name} must not require gradients"):
        call(**{name: tensor.clone().requires_grad_()})
    with pytest.raises(kw.TargetError, match=rf"{name}.*\(2, 0\)"):
        call(**{name: DlpackArray(tensor.numpy(), device=(2, 0))})


def test_unknown_and_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="dropout"):
        kw.attend(ONES, KEYS, KEYS, dropout=0.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        kw.attend(ONES, KEYS, KEYS, None)  # type: ignore[misc]


def test_windows_wider_than_any_sequence_are_unlimited() -> None:
    expected = call(mask=kw.Mask(causal=True)).output
    for huge in (2**31, 2**63, 2**70):
        np.testing.assert_array_equal(call(mask=kw.Mask(causal=True, window=(huge, huge))).output, expected)
        narrow = kw.Mask(causal=True, window=(0, 0), keep_first=huge, starts=[1, 2])
        np.testing.assert_array_equal(call(mask=narrow).output, call(mask=kw.Mask(causal=True, starts=[1, 2])).output)


def test_partial_refuses_invalid_first_keys() -> None:
    for first_key, error in (
        (-1, kw.OptionError),
        (2**63, kw.OptionError),
        (1.0, kw.DtypeError),
        (True, kw.DtypeError),
        ("0", kw.DtypeError),
    ):
        with pytest.raises(error, match="first_key"):
            kw.partial(ONES, KEYS, KEYS, first_key=first_key)  # type: ignore[arg-type]
    with pytest.raises(kw.ShapeError, match="documents"):
        kw.partial(ONES, KEYS, KEYS, first_key=3, mask=kw.Mask(documents=np.zeros((2, 7), int)))


def test_unknown_and_unsuitable_targets_are_refused() -> None:
    with pytest.raises(kw.TargetError, match=r"target must be one of .* got 'sparkle'"), kw.using("sparkle"):
        pass
    wide = ONES.astype(np.float64), KEYS.astype(np.float64), KEYS.astype(np.float64)
    with pytest.raises(kw.TargetError, match="float64"):
        kw.attend(*wide)
    with kw.using("portable"), pytest.raises(kw.TargetError, match="portable"):
        kw.attend(*wide)
    with kw.using("reference"):
        assert kw.attend(*wide).dtype == np.float64
    with kw.using("reference"), kw.using("portable"):
        assert kw.explain().target == "portable"
    assert kw.explain().target == kw.targets()[0]


def test_explain_has_a_reason_for_every_unused_target() -> None:
    explanation = kw.explain(*(array.astype(np.float64) for array in (ONES, KEYS, KEYS)))
    assert set(kw.targets()) <= set(explanation.reasons)
    assert all("float64" in explanation.reasons[name] for name in kw.targets() if name != "reference")
    with kw.using("portable"):
        chosen = kw.explain(ONES, KEYS, KEYS)
    assert chosen.target == "portable"
    assert all(reason for name, reason in chosen.reasons.items() if name != "portable")
    for name in chosen.reasons:
        assert name in str(chosen)
    with pytest.raises(kw.ShapeError, match="key"):
        kw.explain(ONES, KEYS[:1], KEYS)
    with pytest.raises(TypeError, match="windows"):
        kw.explain(ONES, KEYS, KEYS, windows=3)  # type: ignore[call-arg]


def test_table_and_items_of_statistics_refuse_bad_arguments() -> None:
    stats = call()
    with pytest.raises(kw.ShapeError, match="labels"):
        stats.table(labels=["one"])
    for item in (-1, 2):
        with pytest.raises(kw.OptionError, match="item"):
            stats.table(item=item)
    assert stats.table(count=2).count("\n") == 2
    assert "<b>" not in call().table(labels=list("abcde"))
    assert "AttentionStats" in repr(stats)
    assert "<table>" in stats._repr_html_()


def test_errors_subclass_keywise_error_and_a_builtin_error() -> None:
    for error, base in (
        (kw.ShapeError, ValueError),
        (kw.DtypeError, TypeError),
        (kw.OptionError, ValueError),
        (kw.TargetError, RuntimeError),
        (kw.FormatError, ValueError),
        (kw.ModelError, RuntimeError),
    ):
        assert issubclass(error, kw.KeywiseError)
        assert issubclass(error, base)


def test_scale_and_softcap_that_overflow_together_are_refused() -> None:
    x = np.ones((1, 1, 2, 3), np.float32)
    with pytest.raises(kw.OptionError, match=r"softcap must be 1e-10 or more for scale=1e[+]20, got 1e-20"):
        kw.attend(x, x, x, scale=1e20, softcap=1e-20)


def test_sinks_beyond_float32_are_refused() -> None:
    x = np.ones((1, 1, 2, 3), np.float32)
    with pytest.raises(kw.OptionError, match="sinks"):
        kw.attend(x, x, x, sinks=np.array([1e39]))


def test_merge_refuses_other_types_than_partials() -> None:
    x = np.ones((1, 1, 2, 3), np.float32)
    with pytest.raises(kw.DtypeError, match=r"partials must be results of keywise.partial, got a int at index 1"):
        kw.merge(kw.partial(x, x, x), 5)


def test_more_than_1024_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(kw.OptionError, match="threads must be between 1 and 1024, got 100000"):
        kw.set_num_threads(100_000)
    monkeypatch.setenv("KEYWISE_THREADS", "99999999")
    with pytest.raises(kw.OptionError, match="KEYWISE_THREADS"):
        kw.get_num_threads()
