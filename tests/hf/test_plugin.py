"""The plug-in against transformers' own eager attention: the same numbers, the same tokens, and clear refusals."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys

import pytest
import torch
import transformers as hf

import keywise
from keywise.hf import attention, masks
from tests.support.models import DECODERS, ENCODER_DECODERS, FAMILIES, TOKENS, inputs, make, padded_tokens

TOLERANCE = 2e-5

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SIDES = (None, "left", "right")


def logits(model, given):
    with torch.no_grad():
        return model(**given).logits


def both(model, given):
    """Give the logits by eager and by keywise."""
    model.set_attn_implementation("eager")
    expected = logits(model, given)
    keywise.hf.use(model)
    return expected, logits(model, given)


@pytest.mark.parametrize("name", FAMILIES)
def test_models_are_peaky(name):
    model = make(name)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(**inputs(name), output_attentions=True)
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
    given = inputs(name, side)
    expected, found = both(make(name), given)
    if side is not None and FAMILIES[name].takes == "text":
        real = given["attention_mask"].bool()
        expected, found = expected[real], found[real]
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.padded])
def test_padding_matters(name):
    """Without its mask a padded model gives other logits, so equality above is not for want of padding."""
    given = inputs(name, "left")
    model = keywise.hf.use(make(name))
    bare = {key: value for key, value in given.items() if key != "attention_mask"}
    difference = (logits(model, given) - logits(model, bare))[1, -TOKENS // 2 :].abs().max()
    assert difference > 100 * TOLERANCE


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("name", DECODERS)
def test_chunked_prefill_equals_eager(name, side, cache):
    given = inputs(name, side)
    model = make(name)
    model.set_attn_implementation("eager")
    expected = logits(model, given)
    keywise.hf.use(model)
    past = (
        hf.DynamicCache(config=model.config)
        if cache == "dynamic"
        else hf.StaticCache(config=model.config, max_cache_len=TOKENS + 4)
    )
    start, found = 0, []
    for size in (7, 1, 2, 1, 5, 4):
        chunk = {key: value[:, start : start + size] for key, value in given.items() if key != "attention_mask"}
        if side is not None:
            chunk["attention_mask"] = given["attention_mask"][:, : start + size]
        found.append(logits(model, {**chunk, "past_key_values": past, "use_cache": True}))
        start += size
    real = given.get("attention_mask", torch.ones(2, TOKENS)).bool()
    torch.testing.assert_close(torch.cat(found, 1)[real], expected[real], rtol=0, atol=TOLERANCE)


def generate(model, given, **options):
    prompt = {key: value for key, value in given.items() if key not in {"position_ids", "decoder_input_ids"}}
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
    given = inputs(name, side)
    model = make(name)
    model.set_attn_implementation("eager")
    expected = generate(model, given)
    keywise.hf.use(model)
    assert torch.equal(generate(model, given), expected)
    assert len(set(expected[0, -12:].tolist())) > 2


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
def test_generation_with_static_cache_and_with_beams(name):
    given = inputs(name, "left")
    model = make(name)
    for options in ({"cache_implementation": "static"}, {"num_beams": 3}):
        model.set_attn_implementation("eager")
        expected = generate(model, given, **options)
        keywise.hf.use(model)
        assert torch.equal(generate(model, given, **options), expected)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_packed_documents_do_not_see_each_other(name):
    model = keywise.hf.use(make(name))
    ids, _ = padded_tokens((TOKENS,), "left")
    positions = torch.cat([torch.arange(12), torch.arange(8)])[None]
    packed = logits(model, {"input_ids": ids, "position_ids": positions, "use_cache": False})
    alone = [logits(model, {"input_ids": part}) for part in (ids[:, :12], ids[:, 12:])]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=TOLERANCE)
    together = logits(model, {"input_ids": ids})
    assert (together - packed)[:, 12:].abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("kind", ["boolean", "hiding", "adding"])
def test_masks_of_the_users_own(name, kind):
    """A prefix of five tokens sees itself in both directions, and in "adding" some keys are made heavier."""
    given = inputs(name)
    model = make(name)
    visible = torch.ones(TOKENS, TOKENS).tril().bool()
    visible[:5, :5] = True
    visible = visible[None, None].expand(2, 1, -1, -1)
    hiding = torch.where(visible, 0.0, torch.finfo(torch.float32).min)
    generator = torch.Generator().manual_seed(3)
    added = torch.where(visible, torch.randn(visible.shape, generator=generator), hiding)
    model.set_attn_implementation("eager")
    expected = logits(model, {**given, "attention_mask": added if kind == "adding" else hiding})
    keywise.hf.use(model)
    found = logits(model, {**given, "attention_mask": {"boolean": visible, "hiding": hiding, "adding": added}[kind]})
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_eager(name, dtype):
    given = inputs(name, "left")
    model = make(name)
    model.set_attn_implementation("eager")
    real = given["attention_mask"].bool()
    exact = logits(model, given)[real]
    expected, found = (out[real].float() for out in both(model.to(dtype), given))
    assert found.dtype == torch.float32
    assert (found - exact).abs().mean() <= 1.5 * (expected - exact).abs().mean()


def test_a_row_without_keys_gives_zero_not_the_mean():
    model = keywise.hf.use(make("llama"))
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


def test_one_learned_query_for_the_whole_batch():
    layer = make("llama").model.layers[0].self_attn
    query, key, value = torch.randn(1, 4, 3, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 6)
    found, _ = attention.forward(layer, query, key, value, None, is_causal=False)
    for item in range(2):
        alone, _ = attention.forward(layer, query, key[item : item + 1], value[item : item + 1], None, is_causal=False)
        torch.testing.assert_close(found[item], alone[0])


@pytest.mark.parametrize("name", ["llama", "mistral", "bert", "marian"])
@pytest.mark.parametrize("side", SIDES)
def test_no_n_by_n_mask_is_made(name, side, monkeypatch):
    """Causal, windowed and padded attention never asks for the elements of a mask."""

    def elements(layout):
        raise AssertionError(f"a mask of {layout.queries} x {layout.keys} was made")

    monkeypatch.setattr(masks.Layout, "dense", elements)
    model = keywise.hf.use(make(name))
    logits(model, inputs(name, side))
    if FAMILIES[name].generates:
        generate(model, inputs(name, side))


def test_registering_twice_changes_nothing():
    keywise.hf.register()
    keywise.hf.register()
    model = make("llama")
    model.set_attn_implementation("keywise")
    assert model.config._attn_implementation == "keywise"
    again = hf.LlamaForCausalLM._from_config(model.config, attn_implementation="keywise")
    assert again.config._attn_implementation == "keywise"


def test_import_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import keywise.hf\n"
        "try: keywise.hf.register()\n"
        "except keywise.ModelError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'keywise[hf]'" in done.stdout


def tiny_gptj():
    return hf.GPTJForCausalLM(hf.GPTJConfig(vocab_size=16, n_embd=16, n_layer=1, n_head=2, rotary_dim=4))


def test_a_model_with_attention_of_its_own_is_refused(caplog):
    model = tiny_gptj()
    with (
        caplog.at_level(logging.ERROR, logger="transformers"),
        pytest.raises(keywise.ModelError, match=r"GPTJ.*'eager'"),
    ):
        keywise.hf.use(model)
    assert model.config._attn_implementation == "eager"


def test_what_is_no_model_is_refused():
    with pytest.raises(keywise.DtypeError, match="model is a Linear"):
        keywise.hf.use(torch.nn.Linear(2, 2))


def test_dropout_in_training_is_refused():
    model = keywise.hf.use(make("llama"))
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(keywise.ModelError, match=r"LlamaAttention: dropout=0\.1.*model\.eval\(\)"):
        logits(model, inputs("llama"))


def test_gradients_are_refused():
    model = keywise.hf.use(make("llama"))
    with pytest.raises(keywise.ModelError, match=r"query requires gradients.*torch\.no_grad\(\)"):
        model(**inputs("llama"))
    with torch.inference_mode():
        assert model(**inputs("llama")).logits.isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_asking_for_weights_is_refused(name):
    model = keywise.hf.use(make(name))
    with pytest.raises(keywise.ModelError, match=r"output_attentions=True.*keywise\.hf\.reading"):
        logits(model, {**inputs(name), "output_attentions": True})


def test_integer_masks_are_refused():
    model = keywise.hf.use(make("llama"))
    mask = torch.ones(2, 1, TOKENS, TOKENS, dtype=torch.int64).tril()
    with pytest.raises(keywise.ModelError, match=r"attention_mask has dtype torch\.int64.*mask\.bool\(\)"):
        logits(model, {**inputs("llama"), "attention_mask": mask})


@pytest.mark.parametrize("name", ["indices", "block_indices", "cu_seq_lens_q", "something_new"])
def test_keywords_that_may_change_the_result_are_refused(name):
    model = keywise.hf.use(make("llama"))
    with pytest.raises(keywise.ModelError, match=f"LlamaAttention: {name}=<Tensor>"):
        logits(model, {**inputs("llama"), name: torch.arange(3)})


def test_a_cache_of_the_prefix_is_reused():
    given = inputs("llama")
    model = make("llama")
    model.set_attn_implementation("eager")
    expected = generate(model, given)
    keywise.hf.use(model)
    past = hf.DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=given["input_ids"][:, :15], past_key_values=past)
    for _ in range(2):
        assert torch.equal(generate(model, given, past_key_values=copy.deepcopy(past)), expected)
