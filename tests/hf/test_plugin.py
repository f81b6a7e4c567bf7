"""The plug-in against transformers' eager attention: equal logits, equal tokens, refusals of what is not supported."""

from __future__ import annotations

import contextlib
import copy
import logging
import subprocess
import sys

import pytest
import torch
import transformers as hf

import keywise
from keywise.hf import attention, masks, plugin
from tests.support.models import (
    DECODERS,
    ENCODER_DECODERS,
    FAMILIES,
    TOKENS,
    draw_padded_tokens,
    make_inputs,
    make_model,
)

TOLERANCE = 2e-5

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SIDES = (None, "left", "right")


def compute_logits(model, model_inputs):
    with torch.no_grad():
        return model(**model_inputs).logits


def compute_both_logits(model, model_inputs):
    """Return the logits by eager and by keywise."""
    model.set_attn_implementation("eager")
    expected = compute_logits(model, model_inputs)
    keywise.hf.use(model)
    return expected, compute_logits(model, model_inputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_the_tests_have_heavy_keys(name):
    model = make_model(name)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(**make_inputs(name), output_attentions=True)
    weights = [
        layer
        for part in ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
        for layer in (getattr(out, part, None) or ())
    ]
    assert len(weights) == (6 if name in ENCODER_DECODERS else 2)
    # 20 keys of equal weight would give 0.05 each.
    heaviest = [float(layer[:, :, 5:].amax(-1).mean()) for layer in weights]
    assert min(heaviest) > 0.15
    assert sum(heaviest) / len(heaviest) > 0.4


@pytest.mark.parametrize(
    ("name", "side"), [(name, side) for name in FAMILIES for side in SIDES if side is None or FAMILIES[name].padded]
)
def test_logits_equal_eager(name, side):
    model_inputs = make_inputs(name, side)
    expected, actual = compute_both_logits(make_model(name), model_inputs)
    if side is not None and FAMILIES[name].takes == "text":
        real = model_inputs["attention_mask"].bool()
        expected, actual = expected[real], actual[real]
    assert expected.std() > 0.3
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.padded])
def test_logits_without_the_padding_mask_differ(name):
    """Otherwise the equality of padded logits above would prove nothing."""
    model_inputs = make_inputs(name, "left")
    model = keywise.hf.use(make_model(name))
    without_mask = {key: value for key, value in model_inputs.items() if key != "attention_mask"}
    difference = (
        (compute_logits(model, model_inputs) - compute_logits(model, without_mask))[1, -TOKENS // 2 :].abs().max()
    )
    assert difference > 100 * TOLERANCE


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("name", DECODERS)
def test_chunked_prefill_equals_eager(name, side, cache):
    model_inputs = make_inputs(name, side)
    model = make_model(name)
    model.set_attn_implementation("eager")
    expected = compute_logits(model, model_inputs)
    keywise.hf.use(model)
    past = (
        hf.DynamicCache(config=model.config)
        if cache == "dynamic"
        else hf.StaticCache(config=model.config, max_cache_len=TOKENS + 4)
    )
    start, actual = 0, []
    for size in (7, 1, 2, 1, 5, 4):
        chunk = {key: value[:, start : start + size] for key, value in model_inputs.items() if key != "attention_mask"}
        if side is not None:
            chunk["attention_mask"] = model_inputs["attention_mask"][:, : start + size]
        actual.append(compute_logits(model, {**chunk, "past_key_values": past, "use_cache": True}))
        start += size
    real = model_inputs.get("attention_mask", torch.ones(2, TOKENS)).bool()
    torch.testing.assert_close(torch.cat(actual, 1)[real], expected[real], rtol=0, atol=TOLERANCE)


def generate(model, model_inputs, **options):
    prompt = {key: value for key, value in model_inputs.items() if key not in {"position_ids", "decoder_input_ids"}}
    return model.generate(**prompt, max_new_tokens=12, do_sample=False, **options)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        (name, side)
        for name, family in FAMILIES.items()
        for side in (None, "left")
        if family.generates and (side is None or family.padded)
    ],
)
def test_greedy_generation_equals_eager(name, side):
    model_inputs = make_inputs(name, side)
    model = make_model(name)
    model.set_attn_implementation("eager")
    expected = generate(model, model_inputs)
    keywise.hf.use(model)
    assert torch.equal(generate(model, model_inputs), expected)
    assert len(set(expected[0, -12:].tolist())) > 2


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
def test_generation_with_static_cache_and_with_beams(name):
    model_inputs = make_inputs(name, "left")
    model = make_model(name)
    for options in ({"cache_implementation": "static"}, {"num_beams": 3}):
        model.set_attn_implementation("eager")
        expected = generate(model, model_inputs, **options)
        keywise.hf.use(model)
        assert torch.equal(generate(model, model_inputs, **options), expected)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_packed_documents_do_not_see_each_other(name):
    model = keywise.hf.use(make_model(name))
    ids, _ = draw_padded_tokens((TOKENS,), "left")
    positions = torch.cat([torch.arange(12), torch.arange(8)])[None]
    packed = compute_logits(model, {"input_ids": ids, "position_ids": positions, "use_cache": False})
    alone = [compute_logits(model, {"input_ids": part}) for part in (ids[:, :12], ids[:, 12:])]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=TOLERANCE)
    together = compute_logits(model, {"input_ids": ids})
    assert (together - packed)[:, 12:].abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("kind", ["boolean", "hiding", "adding"])
def test_custom_masks_equal_eager(name, kind):
    """A prefix of five tokens sees itself in both directions; "adding" also makes some keys heavier."""
    model_inputs = make_inputs(name)
    model = make_model(name)
    visible = torch.ones(TOKENS, TOKENS).tril().bool()
    visible[:5, :5] = True
    visible = visible[None, None].expand(2, 1, -1, -1)
    hiding = torch.where(visible, 0.0, torch.finfo(torch.float32).min)
    generator = torch.Generator().manual_seed(3)
    added = torch.where(visible, torch.randn(visible.shape, generator=generator), hiding)
    model.set_attn_implementation("eager")
    expected = compute_logits(model, {**model_inputs, "attention_mask": added if kind == "adding" else hiding})
    keywise.hf.use(model)
    actual = compute_logits(
        model, {**model_inputs, "attention_mask": {"boolean": visible, "hiding": hiding, "adding": added}[kind]}
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_eager(name, dtype):
    model_inputs = make_inputs(name, "left")
    model = make_model(name)
    model.set_attn_implementation("eager")
    real = model_inputs["attention_mask"].bool()
    exact = compute_logits(model, model_inputs)[real]
    expected, actual = (out[real].float() for out in compute_both_logits(model.to(dtype), model_inputs))
    assert actual.dtype == torch.float32
    assert (actual - exact).abs().mean() <= 1.5 * (expected - exact).abs().mean()


def test_a_query_without_keys_has_output_zero():
    model = keywise.hf.use(make_model("llama"))
    layer = model.model.layers[0].self_attn
    tensors = [torch.randn(2, heads, 4, 8) for heads in (4, 2, 2)]
    mask = torch.zeros(2, 1, 4, 4).masked_fill(~torch.ones(4, 4).tril().bool(), torch.finfo(torch.float32).min)
    mask[1, :, 0] = torch.finfo(torch.float32).min
    out, weights = attention.forward(layer, *tensors, mask)
    assert weights is None
    assert out.shape == (2, 4, 4, 8)
    assert out.is_contiguous()
    assert not out[1, 0].any()
    assert out[1, 1].any()


def test_one_query_serves_the_whole_batch():
    layer = make_model("llama").model.layers[0].self_attn
    query, key, value = torch.randn(1, 4, 3, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 6)
    actual, _ = attention.forward(layer, query, key, value, None, is_causal=False)
    for item in range(2):
        alone, _ = attention.forward(layer, query, key[item : item + 1], value[item : item + 1], None, is_causal=False)
        torch.testing.assert_close(actual[item], alone[0])


@pytest.mark.parametrize("name", ["llama", "mistral", "bert", "marian"])
@pytest.mark.parametrize("side", SIDES)
def test_no_n_by_n_mask_is_made(name, side, monkeypatch):
    """Causal, windowed and padded attention never needs the elements of a mask."""

    def fail(layout):
        raise AssertionError(f"a mask of {layout.queries} x {layout.keys} was made")

    monkeypatch.setattr(masks.Layout, "make_dense", fail)
    model = keywise.hf.use(make_model(name))
    compute_logits(model, make_inputs(name, side))
    if FAMILIES[name].generates:
        generate(model, make_inputs(name, side))


def test_registering_twice_changes_nothing():
    keywise.hf.register()
    keywise.hf.register()
    model = make_model("llama")
    model.set_attn_implementation("keywise")
    assert model.config._attn_implementation == "keywise"
    again = hf.LlamaForCausalLM._from_config(model.config, attn_implementation="keywise")
    assert again.config._attn_implementation == "keywise"


def test_import_without_torch_works_and_register_names_the_remedy():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import keywise.hf\n"
        "try: keywise.hf.register()\n"
        "except keywise.ModelError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'keywise[hf]'" in done.stdout


def make_tiny_xlnet():
    return hf.XLNetModel(hf.XLNetConfig(vocab_size=16, d_model=16, n_layer=1, n_head=2, d_inner=16))


def test_a_model_with_attention_of_its_own_is_refused(caplog):
    model = make_tiny_xlnet()
    with (
        caplog.at_level(logging.ERROR, logger="transformers"),
        pytest.raises(keywise.ModelError, match=r"model must have attention .*XLNet.*'eager'"),
    ):
        keywise.hf.use(model)
    assert model.config._attn_implementation == "eager"


def test_a_module_that_is_not_a_transformers_model_is_refused():
    with pytest.raises(keywise.DtypeError, match=r"model must be a loaded transformers model .*got 'Linear'") as caught:
        keywise.hf.use(torch.nn.Linear(2, 2))
    assert caught.value.argument == "model"


def test_attention_is_restored_after_temporary_use():
    model = make_model("llama")
    model.set_attn_implementation("eager")
    with contextlib.suppress(ZeroDivisionError), plugin.use_temporarily(model):
        assert model.config._attn_implementation == "keywise"
        raise ZeroDivisionError
    assert model.config._attn_implementation == "eager"


def test_inference_mode_needs_no_gradients():
    model = keywise.hf.use(make_model("llama"))
    with torch.inference_mode():
        assert model(**make_inputs("llama")).logits.isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_output_attentions_is_refused(name):
    model = keywise.hf.use(make_model(name))
    with pytest.raises(keywise.ModelError, match=r"output_attentions must be left out .*got True; .*record_stats"):
        compute_logits(model, {**make_inputs(name), "output_attentions": True})


def test_integer_masks_are_refused():
    model = keywise.hf.use(make_model("llama"))
    mask = torch.ones(2, 1, TOKENS, TOKENS, dtype=torch.int64).tril()
    with pytest.raises(
        keywise.ModelError,
        match=r"attention_mask must be boolean or floating point in LlamaAttention, got 'torch\.int64'.*mask\.bool\(\)",
    ):
        compute_logits(model, {**make_inputs("llama"), "attention_mask": mask})


@pytest.mark.parametrize("name", ["indices", "block_indices", "cu_seq_lens_q", "something_new"])
def test_keywords_that_may_change_the_result_are_refused(name):
    model = keywise.hf.use(make_model("llama"))
    with pytest.raises(keywise.ModelError, match=f"{name} must be left out in LlamaAttention, got 'Tensor'"):
        compute_logits(model, {**make_inputs("llama"), name: torch.arange(3)})


def test_generation_from_a_cached_prefix_equals_eager():
    model_inputs = make_inputs("llama")
    model = make_model("llama")
    model.set_attn_implementation("eager")
    expected = generate(model, model_inputs)
    keywise.hf.use(model)
    past = hf.DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=model_inputs["input_ids"][:, :15], past_key_values=past)
    for _ in range(2):
        assert torch.equal(generate(model, model_inputs, past_key_values=copy.deepcopy(past)), expected)
