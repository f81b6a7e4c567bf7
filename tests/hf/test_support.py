"""Which models are served: those written for eager attention alone equal it, and others are refused by name."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
import transformers as hf

import keywise
from keywise.hf import keywords, support
from tests.support.eager_models import EAGER_MODELS, make_eager_inputs, make_eager_model
from tests.support.models import ENCODER_DECODER, TEXT, make_inputs, make_model

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE = {**TOWER, "image_size": 8, "patch_size": 4}


def compute(model, inputs):
    with torch.no_grad():
        return model(**inputs).last_hidden_state


@pytest.mark.parametrize(
    ("family", "side"),
    [
        (family, side)
        for family, (_, takes) in EAGER_MODELS.items()
        for side in (None, "left", "right")
        if side is None or "text" in takes
    ],
)
def test_a_family_without_sdpa_equals_eager(family, side):
    model, inputs = make_eager_model(family), make_eager_inputs(family, side)
    model.set_attn_implementation("eager")
    expected = compute(model, inputs)
    keywise.hf.use(model)
    actual = compute(model, inputs)
    if side is not None and EAGER_MODELS[family][1] == "text":
        real = inputs["attention_mask"].bool()
        expected, actual = (out[:, : real.shape[1]][real] for out in (expected, actual))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_every_family_of_the_list_is_tested():
    assert set(EAGER_MODELS) == support.SERVED_WITHOUT_SDPA


def make_longt5_encoder():
    return hf.LongT5EncoderModel(hf.LongT5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


def make_timesfm():
    sizes = {"patch_length": 4, "context_length": 8, "horizon_length": 4, "hidden_size": 8, "intermediate_size": 8}
    return hf.TimesFmModel(hf.TimesFmConfig(**sizes, head_dim=4, num_hidden_layers=1, num_attention_heads=2))


def make_pegasus_x():
    return hf.PegasusXModel(hf.PegasusXConfig(**ENCODER_DECODER, num_global_tokens=2, block_size=4))


def make_informer():
    series = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1], "d_model": 16}
    return hf.InformerModel(hf.InformerConfig(**series, encoder_layers=1, decoder_layers=1))


def make_clap():
    return hf.ClapAudioModel(hf.ClapAudioConfig(depths=[1], num_attention_heads=[2], patch_embeds_hidden_size=16))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (make_longt5_encoder, r"LongT5LocalAttention \(encoder\.block\.0\..*\) computes attention by code of its own"),
        (make_pegasus_x, r"PegasusXGlobalLocalAttention \(encoder\.layers\.0\.self_attn\) computes"),
        (make_informer, r"InformerProbSparseAttention \(encoder\.layers\.0\.self_attn\) computes"),
        (make_clap, "ClapAudioSelfAttention .* computes attention by code of its own"),
        (make_timesfm, "TimesFmModel lets queries that see no key attend to hidden ones"),
    ],
)
def test_a_model_with_attention_of_its_own_is_refused_by_name(build, reason):
    model = build()
    before = model.config._attn_implementation
    with pytest.raises(keywise.ModelError, match=f"model must have attention that keywise serves; .*{reason}"):
        keywise.hf.use(model)
    assert model.config._attn_implementation == before


def test_a_family_that_is_written_for_eager_attention_and_not_tested_is_refused():
    class UntestedPreTrainedModel(hf.LlamaPreTrainedModel):
        _supports_sdpa = False

    class UntestedModel(UntestedPreTrainedModel, hf.LlamaModel):
        pass

    model = UntestedModel(hf.LlamaConfig(**TEXT))
    with pytest.raises(keywise.ModelError, match=r"UntestedModel declares _supports_sdpa=False, and .* is not tested"):
        keywise.hf.use(model)


def test_the_advice_for_a_refused_model_can_be_followed():
    text = {**TOWER, "vocab_size": 20, "max_position_embeddings": 32}
    model = hf.BlipModel(hf.BlipConfig(text_config=text, vision_config=IMAGE))
    assert support.find_servable_parts(model) == []
    vision = {"model_type": "clip_vision_model", **IMAGE}
    pair = hf.VisionTextDualEncoderModel(
        vision_model=hf.CLIPVisionModel(hf.CLIPVisionConfig(**IMAGE)),
        text_model=hf.MPNetModel(hf.MPNetConfig(**{**text, "vocab_size": 20})),
    )
    assert vision["model_type"] == pair.vision_model.config.model_type
    with pytest.raises(keywise.ModelError, match=r"keywise\.hf\.use\(model\.get_submodule\('vision_model'\)\)"):
        keywise.hf.use(pair)
    keywise.hf.use(pair.get_submodule("vision_model"))
    assert pair.vision_model.config._attn_implementation == "keywise"


def test_a_hybrid_model_is_served_without_a_warning():
    layers = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "num_key_value_heads": 2}
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    config = hf.Qwen3NextConfig(
        **TEXT, **layers, **linear, **experts, linear_num_value_heads=2, shared_expert_intermediate_size=8
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = keywise.hf.use(hf.Qwen3NextModel(config).eval())
        with torch.no_grad(), keywise.hf.record_stats(model) as record:
            model(torch.arange(3, 9)[None])
    assert [each.layer for each in record] == [1]


def test_a_model_without_attention_warns():
    model = hf.MambaModel(hf.MambaConfig(vocab_size=9, hidden_size=8, state_size=4, num_hidden_layers=1))
    with pytest.warns(UserWarning, match="MambaModel has no attention layer: keywise records nothing"):
        keywise.hf.use(model)
    with pytest.warns(UserWarning, match="keywise recorded nothing: no attention layer of MambaModel"):  # noqa: SIM117
        with keywise.hf.record_stats(model):
            pass


def test_parts_that_keep_the_attention_of_torch_are_named():
    model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**IMAGE))
    with pytest.warns(UserWarning, match=r"SiglipVisionModel keeps the attention of .*head\.attention"):
        keywise.hf.use(model)


def test_keywords_that_a_model_names_and_eager_attention_does_not_read_are_ignored():
    model, inputs = make_model("llama"), make_inputs("llama")
    keywise.hf.use(model)
    with torch.no_grad():
        expected = model.model(**inputs).last_hidden_state
        actual = model.model(**inputs, labels=inputs["input_ids"]).last_hidden_state
    assert torch.equal(actual, expected)


def test_a_keyword_that_eager_attention_reads_is_refused(monkeypatch):
    def eager_attention_forward(module, query, key, value, attention_mask, scaling, labels=None, **kwargs):
        raise NotImplementedError

    model, inputs = keywise.hf.use(make_model("llama")), make_inputs("llama")
    keywords._reads_keyword.cache_clear()
    monkeypatch.setattr(hf.models.llama.modeling_llama, "eager_attention_forward", eager_attention_forward)
    with pytest.raises(keywise.ModelError, match="labels must be left out in LlamaAttention"), torch.no_grad():
        model.model(**inputs, labels=inputs["input_ids"])
    keywords._reads_keyword.cache_clear()


class Wrapper(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.encoder = inner


@pytest.mark.parametrize(
    "wrap", [torch.compile, torch.nn.DataParallel, lambda model: torch.nn.DataParallel(torch.compile(model))]
)
def test_a_wrapped_model_is_served_and_recorded(wrap):
    model = make_model("llama")
    wrapped = wrap(model)
    assert keywise.hf.use(wrapped) is wrapped
    assert model.config._attn_implementation == "keywise"
    with torch.no_grad(), keywise.hf.record_stats(wrapped) as record:
        model(**make_inputs("llama"))
    assert [each.name for each in record] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]


def test_a_model_inside_an_unknown_module_is_named():
    with pytest.raises(keywise.DtypeError, match=r"got 'Wrapper'; pass .*model\.get_submodule\('encoder'\)"):
        keywise.hf.use(Wrapper(make_model("llama")))


@pytest.mark.parametrize("first", ["keywise.hf", "transformers.modeling_utils"])
def test_importing_keywise_registers_it_in_any_order(first):
    second = "keywise.hf" if first != "keywise.hf" else "transformers.modeling_utils"
    code = (
        f"import {first}, {second}\n"
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS\n"
        "print('keywise' in ALL_ATTENTION_FUNCTIONS)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_a_compiled_model_equals_eager():
    model, inputs = make_model("llama"), make_inputs("llama", "left")
    real = inputs["attention_mask"].bool()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**inputs).logits[real]
        actual = torch.compile(keywise.hf.use(model), backend="eager")(**inputs).logits[real]
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)
