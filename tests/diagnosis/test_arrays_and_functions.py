"""keywise.diagnosis on arrays and functions: what is healthy stays unaccused, thresholds hold, mistakes are named."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention import reference
from keywise.attention.problem import make_problem
from keywise.diagnosis import check, check_function
from keywise.diagnosis.codes import CODES
from keywise.diagnosis.finding import EVERYWHERE, Examination, Where
from keywise.diagnosis.sample import UNITS, at_rows, choose_rows, truth
from tests.support.planted_functions import attention

SDPA = torch.nn.functional.scaled_dot_product_attention


def draw(*shape: int, seed: int = 0, size: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * size).astype(np.float32)


# --- functions -------------------------------------------------------------------------------------------------------


def test_torch_sdpa_is_healthy() -> None:
    assert check_function(SDPA).healthy


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_attend_is_healthy(target: str, arrays: str) -> None:
    if target == "reference":
        pytest.skip("the reference target judges; it is no kernel")
    diagnosis = check_function(kw.attend, mask_argument="mask", arrays=arrays)
    assert diagnosis.healthy, diagnosis
    assert {"scale-missing", "mask-inverted", "hidden-nan-leak", "dead-row-nan"} <= {
        check.code for check in diagnosis.checks if check.state == "clean"
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=str)
def test_attend_with_every_option_is_healthy(dtype: str, heads: tuple[int, int]) -> None:
    options = {"scale": 0.3, "softcap": 2.0, "sinks": draw(4)}
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
    told_apart = {"softcap-dropped", "sinks-dropped", "window-off-by-one"}
    told_apart |= {"heads-grouped-wrong"} if heads == (4, 2) else set()
    # Within bfloat16's rounding some faults could pass for the right output.
    states = {diagnosis.state(code) for code in told_apart}
    assert states <= {"clean", "not testable"} if dtype == "bfloat16" else states == {"clean"}
    if heads != (4, 2):
        assert diagnosis.state("heads-grouped-wrong") == "not testable"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_attention_is_healthy(dtype: str) -> None:
    assert check_function(attention, dtype=dtype).healthy
    assert check_function(attention, key_heads=2, dtype=dtype).healthy


def test_not_testable_is_never_clean() -> None:
    diagnosis = check_function(SDPA)
    for code in ("window-dropped", "heads-grouped-wrong", "mask-inverted", "sinks-dropped", "future-leak"):
        assert diagnosis.state(code) == "not testable"
        assert next(check for check in diagnosis.checks if check.code == code).reason


def test_an_output_of_another_shape_is_found() -> None:
    found = check_function(lambda query, key, value: SDPA(query, key, value).transpose(1, 2))
    assert found.codes == ("output-shape",)


def test_an_unknown_fault_is_found_without_a_name() -> None:
    found = check_function(lambda query, key, value: SDPA(query, key, value).sin())
    assert found.codes == ("output-differs",)


def test_the_function_may_give_weights_too() -> None:
    assert check_function(lambda query, key, value: (SDPA(query, key, value), None)).healthy


def test_what_the_function_raises_is_passed_on() -> None:
    def broken(query: object, key: object, value: object) -> object:
        raise ArithmeticError("its own")

    with pytest.raises(ArithmeticError, match="its own"):
        check_function(broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arrays": "jax"}, "arrays='jax'"),
        ({"dtype": "float8"}, "dtype='float8'"),
        ({"dtype": "bfloat16", "arrays": "numpy"}, "use arrays='torch'"),
        ({"query_heads": 4, "key_heads": 3}, "key_heads=3"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"window": (-1, 0)}, "left and right"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, object], message: str) -> None:
    with pytest.raises(kw.KeywiseError, match=message.replace("(", "\\(")):
        check_function(SDPA, **options)


def test_what_is_no_function() -> None:
    with pytest.raises(kw.DtypeError, match="function is a str"):
        check_function("attention")


# --- arrays ----------------------------------------------------------------------------------------------------------


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
def test_right_outputs_are_healthy(mask: kw.Mask | None, size: float) -> None:
    query, key, value = draw(2, 4, 32, 16, size=size), draw(2, 2, 32, 16, seed=1), draw(2, 2, 32, 16, seed=2)
    stats = kw.attention_stats(query, key, value, mask=mask)
    diagnosis = check(query, key, value, mask=mask, output=stats.output, lse=stats.lse)
    assert not diagnosis.errors, diagnosis
    # Queries of size 0 do give uniform weights; a window of 6 keys is too narrow to tell.
    narrow = mask is not None and mask.window is not None
    assert diagnosis.codes == (("weights-uniform",) if size == 0 and not narrow else ())


def test_a_common_offset_of_the_keys_is_no_collapse() -> None:
    query, key, value = draw(1, 2, 32, 16), draw(1, 2, 32, 16, seed=1) + 30, draw(1, 2, 32, 16, seed=2)
    assert check(query, key, value).state("keys-identical") == "clean"


def test_identical_keys_are_found_and_explain_the_uniform_weights() -> None:
    query, key, value = draw(1, 2, 32, 16), draw(1, 2, 1, 16, seed=1).repeat(32, axis=2), draw(1, 2, 32, 16, seed=2)
    found = check(query, key, value)
    assert found.codes[0] == "keys-identical"
    one_head = np.concatenate([key[:, :1], draw(1, 1, 32, 16, seed=3)], axis=1)
    assert [finding.severity for finding in check(query, one_head, value).findings] == ["warning"]


def test_peaky_and_flat_heads_are_not_accused_while_others_work() -> None:
    query, key, value = draw(1, 4, 64, 16), draw(1, 4, 64, 16, seed=1), draw(1, 4, 64, 16, seed=2)
    query[:, 0] *= 1000
    query[:, 1] = 0
    assert check(query, key, value).healthy


def test_a_sink_is_a_fact() -> None:
    query, key, value = draw(1, 2, 32, 16), draw(1, 2, 32, 16, seed=1), draw(1, 2, 32, 16, seed=2)
    query[..., 0], key[..., 0] = 4.0, 0.0
    key[:, :, 0, 0] = 6.0
    found = check(query, key, value)
    assert found.healthy
    assert [finding.code for finding in found.findings] == ["attention-sink"]


def test_padding_rows_without_keys_are_a_fact() -> None:
    array = draw(1, 2, 16, 8)
    mask = kw.Mask(causal=True, starts=[4])
    output = kw.attend(array, array, array, mask=mask).copy()
    output[:, :, :4] = np.nan  # rows of padding, whose output nobody uses
    found = check(array, array, array, mask=mask, output=output)
    assert found.healthy, found
    assert "rows-without-keys" in {finding.code for finding in found.findings}


def test_an_lse_of_other_scores_is_found() -> None:
    array = draw(1, 2, 16, 8)
    lse = kw.attention_stats(array, array, array).lse
    assert check(array, array, array, lse=lse).healthy
    assert check(array, array, array, lse=lse + 0.1).codes == ("lse-differs",)


def test_memory_is_linear_in_the_keys() -> None:
    tokens = 20_000
    array = draw(1, 2, tokens, 8)
    output = kw.attend(array, array, array, mask=kw.Mask(causal=True))
    assert check(array, array, array, mask=kw.Mask(causal=True), output=output, rows=8).healthy


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"output": np.zeros((1, 2, 3, 8), np.float32)}, kw.ShapeError, "output has shape"),
        ({"output": np.zeros((1, 2, 16, 8), np.int32)}, kw.DtypeError, "output has dtype int32"),
        ({"lse": np.zeros((1, 2), np.float32)}, kw.ShapeError, "lse has shape"),
        ({"rows": 0}, kw.OptionError, "rows=0"),
        ({"scale": "large"}, kw.DtypeError, "scale='large'"),
        ({"output": "text"}, kw.DtypeError, "output is a str"),
    ],
)
def test_arguments_that_cannot_be_used(change: dict[str, object], error: type[Exception], message: str) -> None:
    array = draw(1, 2, 16, 8)
    with pytest.raises(error, match=message):
        check(array, array, array, **change)


# --- thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("size", [0.3, 1.0, 2.0])
def test_rounding_stays_inside_the_bound(dtype: str, head_dim: int, size: float) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    query, key, value = (
        torch.randn(2, 3, 61, head_dim, generator=generator).mul(factor).to(getattr(torch, dtype))
        for factor in (size, 1.0, 1.0)
    )
    problem = make_problem(query, key, value, mask=None, bias=None, scale=None, softcap=None, sinks=None)
    right = truth(at_rows(problem, np.arange(61)))
    for output in (attention(query, key, value), SDPA(query, key, value), kw.attend(query, key, value)):
        error = np.abs(output.double().numpy() - right.output)
        assert (error <= right.tolerance).all()


def test_the_bound_follows_dtype_size_and_length() -> None:
    def bound(dtype: str, head_dim: int = 16, keys: int = 64, size: float = 1.0) -> float:
        query, key = torch.full((1, 1, 4, head_dim), size), torch.ones(1, 1, keys, head_dim)
        arrays = (array.to(getattr(torch, dtype)) for array in (query, key, key))
        problem = make_problem(*arrays, mask=None, bias=None, scale=None, softcap=None, sinks=None)
        return float(truth(at_rows(problem, np.arange(4))).tolerance.max())

    assert bound("bfloat16", size=0.1) > bound("float16", size=0.1) > bound("float32", size=0.1)
    assert bound("float32", head_dim=128) > bound("float32", head_dim=16)
    assert bound("float32", size=4.0) > bound("float32", size=1.0)
    assert bound("float32", keys=6400) > bound("float32", keys=64)
    assert bound("bfloat16", size=100.0) == np.inf
    assert UNITS["float32"] == np.finfo(np.float32).eps / 2


def test_sampled_rows_are_those_of_the_whole() -> None:
    query, key = draw(2, 4, 40, 8), draw(2, 2, 50, 8, seed=1)
    mask = kw.Mask(causal=True, window=(9, 0), starts=[3, 0], documents=np.arange(50)[None].repeat(2, 0) // 20)
    problem = make_problem(query, key, key, mask=mask, bias=draw(4, 40, 50), scale=None, softcap=3.0, sinks=draw(4))
    rows = choose_rows(40, 7)
    assert rows[0] == 0
    assert rows[-1] == 39
    assert rows.size == 7
    sampled = reference.evaluate(at_rows(problem, rows)).output
    np.testing.assert_allclose(sampled, reference.evaluate(problem).output[:, :, rows], atol=1e-12)


# --- what a diagnosis is ---------------------------------------------------------------------------------------------


def test_causes_stand_before_consequences() -> None:
    examination = Examination()
    examination.found("softmax-saturated", "3 heads")
    examination.found("future-leak", "moved by 3")
    examination.found("scale-missing", "off by 3", Where(("a",)))
    examination.found("scale-missing", "off by 4", Where(("b",), (1,)))
    examination.found("scale-unusual", "scale 1")
    diagnosis = examination.diagnosis("this")
    assert [finding.code for finding in diagnosis.findings] == ["scale-missing", "scale-unusual"]
    cause = diagnosis.findings[0]
    assert cause.consequences == ("future-leak", "softmax-saturated")
    assert cause.where == Where(("a", "b"))
    assert cause.measured == "off by 3"
    assert diagnosis.state("future-leak") == "found"


def test_the_first_of_several_behaviours_stands_for_all() -> None:
    examination = Examination()
    examination.found("prefill-decode-disagree", "off by 1")
    examination.found("future-leak", "moved by 1")
    diagnosis = examination.diagnosis("this")
    assert diagnosis.codes == ("future-leak",)
    assert diagnosis.findings[0].consequences == ("prefill-decode-disagree",)


def test_found_wins_over_clean_and_clean_over_not_testable() -> None:
    examination = Examination()
    examination.untestable("no window", "window-dropped", "scale-missing", "sinks-dropped")
    examination.clean("window-dropped", "scale-missing")
    examination.found("scale-missing", "off by 3")
    diagnosis = examination.diagnosis("this")
    assert [diagnosis.state(code) for code in ("scale-missing", "window-dropped", "sinks-dropped", "lse-base")] == [
        "found",
        "clean",
        "not testable",
        None,
    ]


def test_a_diagnosis_is_text_html_and_json() -> None:
    array = draw(1, 2, 16, 8)
    diagnosis = check(array, array, array, output=kw.attend(array, array, array, scale=1.0))
    text, page, plain = str(diagnosis), diagnosis._repr_html_(), json.loads(json.dumps(diagnosis.to_json()))
    finding = diagnosis.findings[0]
    for part in (finding.code, finding.measured, finding.why, finding.remedy):
        assert part in text
    assert "not testable" in text
    assert "<b>scale-missing</b>" in page
    assert plain["findings"][0]["evidence"]["error"] > 0.1
    assert plain["findings"][0]["where"]["rows"]
    assert {"code", "state", "reason"} == set(plain["checks"][0])
    assert plain["healthy"] is False
    assert "healthy" in str(check(array, array, array))


def test_html_escapes_what_it_shows() -> None:
    examination = Examination()
    examination.found("output-differs", "<script>", Where(("<b>",)))
    assert "<script>" not in examination.diagnosis("<i>")._repr_html_()


def test_codes_are_words_and_say_what_to_do() -> None:
    assert EVERYWHERE == ((), (), ())
    for name, code in CODES.items():
        assert name == name.lower().replace(" ", "-")
        assert code.why
        assert code.remedy
        assert not code.why.endswith(".")


def test_diagnosis_comes_without_torch() -> None:
    code = (
        "import sys, numpy as np, keywise as kw; x = np.eye(8, dtype=np.float32)[None, None];"
        "assert kw.diagnosis.check(x, x, x, output=kw.attend(x, x, x, scale=1.0)).codes;"
        "assert kw.diagnosis.check_function(kw.attend).healthy; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
