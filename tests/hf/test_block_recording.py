"""Recorded weights of a block: those of eager attention's matrices."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers

import keywise.hf
from keywise.errors import DtypeError, ModelError, OptionError
from keywise.hf import record_weights

IDS = torch.tensor([[5, 6, 7, 8, 9, 5, 6], [0, 0, 4, 3, 2, 1, 9]])
PADDING = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
SIZES = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
DECODERS = {
    "llama": transformers.LlamaConfig(**SIZES, intermediate_size=16, num_key_value_heads=2, initializer_range=0.5),
    "gemma2": transformers.Gemma2Config(
        **SIZES,
        intermediate_size=16,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=3,
        attn_logit_softcapping=2.0,
        query_pre_attn_scalar=8,
        initializer_range=0.5,
    ),
    "gpt_oss": transformers.GptOssConfig(
        **SIZES,
        intermediate_size=16,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=3,
        num_local_experts=2,
        num_experts_per_tok=1,
        initializer_range=0.5,
    ),
    "gpt2": transformers.GPT2Config(vocab_size=32, n_embd=32, n_head=4, n_layer=3, initializer_range=0.5),
}
LAYERS = {"gpt2": "transformer.h.{}.attn"}


def make_model(name: str) -> Any:
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(DECODERS[name])).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    return model


def name_layer(name: str, number: int) -> str:
    return LAYERS.get(name, "model.layers.{}.self_attn").format(number)


@pytest.mark.parametrize("name", DECODERS)
def test_blocks_of_decoders_equal_eager_matrices(name: str) -> None:
    model = make_model(name)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(IDS, attention_mask=PADDING, output_attentions=True).attentions
        keywise.hf.use(model)
        for layer in (0, 1):
            place = {"heads": [3, 1], "queries": slice(3, 6), "keys": slice(1, None)}
            with record_weights(model, name_layer(name, layer), **place) as blocks:
                model(IDS, attention_mask=PADDING)
            (block,) = blocks
            assert (block.queries, block.keys) == ((3, 6), (1, 7))
            torch.testing.assert_close(block.weights, expected[layer][:, [3, 1], 3:6, 1:7], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_blocks_of_decoding_steps_have_token_positions(name: str) -> None:
    model = make_model(name)
    keywise.hf.use(model)
    layer = name_layer(name, 1)
    generate = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with record_weights(model, layer, queries=slice(7, 9), keys=slice(4, 30)) as blocks:
        ids = model.generate(IDS[:1], **generate)
    assert [(block.queries, block.keys[1]) for block in blocks] == [((7, 8), 8), ((8, 9), 9)]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(ids[:, :-1], output_attentions=True).attentions[1]
    for block in blocks:
        shown = expected[:, :, slice(*block.queries), slice(*block.keys)]
        torch.testing.assert_close(block.weights, shown, rtol=1e-4, atol=1e-5)


def test_a_keywise_cache_in_chunks_is_read() -> None:
    model = make_model("llama")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(IDS[:1], output_attentions=True).attentions[2]
        keywise.hf.use(model)
        cache = keywise.hf.Cache(model.config)
        model(IDS[:1, :4], past_key_values=cache)
        with record_weights(model, name_layer("llama", 2)) as blocks:
            model(IDS[:1, 4:], past_key_values=cache)
    assert (blocks[0].queries, blocks[0].keys) == ((4, 7), (0, 7))
    torch.testing.assert_close(blocks[0].weights, expected[:, :, 4:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["t5"])  # the name skips the test where transformers cannot exchange its attention
def test_position_biases_and_cross_attention(name: str) -> None:
    torch.manual_seed(2)
    config = transformers.T5Config(
        vocab_size=32, d_model=32, d_kv=8, d_ff=16, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    call = {"input_ids": IDS, "attention_mask": PADDING, "decoder_input_ids": IDS[:, :3]}
    with torch.no_grad():
        outputs = model(**call, output_attentions=True)
        keywise.hf.use(model)
        for layer, expected in (
            ("encoder.block.1.layer.0.SelfAttention", outputs.encoder_attentions[1]),
            ("decoder.block.1.layer.0.SelfAttention", outputs.decoder_attentions[1]),
            ("decoder.block.1.layer.1.EncDecAttention", outputs.cross_attentions[1]),
        ):
            with record_weights(model, layer, heads=range(2, 4)) as blocks:
                model(**call)
            torch.testing.assert_close(blocks[0].weights, expected[:, 2:], rtol=1e-4, atol=1e-5)


def test_recording_leaves_the_model_and_its_statistics_as_they_are() -> None:
    model = keywise.hf.use(make_model("llama"))
    with torch.no_grad():
        plain = model(IDS).logits
        with keywise.hf.record_stats(model) as record, record_weights(model, name_layer("llama", 0)) as blocks:
            assert torch.equal(model(IDS).logits, plain)
        model(IDS)
    assert len(record) == 3
    assert len(blocks) == 1
    torch.testing.assert_close(blocks[0].weights.sum(2), record[0].stats.key_mass)
    with record_weights(model, name_layer("llama", 0)) as blocks:
        model(IDS).logits.sum().backward()
    assert len(blocks) == 1
    assert not blocks[0].weights.requires_grad
    with record_weights(model, name_layer("llama", 0), queries=slice(50, 60)) as blocks, torch.no_grad():
        model(IDS)
    assert blocks == []


def test_a_repeated_call_of_a_checkpointed_layer_is_recorded_once() -> None:
    model = keywise.hf.use(make_model("llama")).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with record_weights(model, name_layer("llama", 1)) as blocks:
        model(IDS, use_cache=False).logits.sum().backward()
    assert len(blocks) == 1


def test_a_block_without_a_call_ends_with_a_warning() -> None:
    model = keywise.hf.use(make_model("llama"))
    with (
        pytest.warns(UserWarning, match=r"model\.layers\.0\.mlp did not call keywise inside record_weights"),
        torch.no_grad(),
        record_weights(model, "model.layers.0.mlp"),
    ):
        model(IDS)


def test_a_compiled_model_is_recorded() -> None:
    torch.compiler.reset()
    model = keywise.hf.use(make_model("llama"))
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(IDS)
        with record_weights(model, name_layer("llama", 1)) as compiled_blocks:
            compiled(IDS)
        with record_weights(model, name_layer("llama", 1)) as blocks:
            model(IDS)
    torch.testing.assert_close(compiled_blocks[0].weights, blocks[0].weights)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"layer": "model.layers.7.self_attn"},
            OptionError,
            r"layer must name an attention layer.*there are model\.layers\.0\.self_attn, ",
        ),
        ({"heads": 3}, DtypeError, r"heads must be several integers, such as \[0, 1\]"),
        ({"heads": []}, OptionError, "heads must hold a head"),
        ({"heads": [4]}, OptionError, "heads must be between 0 and 3, the query heads of model.layers.0.self_attn"),
        ({"queries": 5}, DtypeError, "queries must be a slice of token positions"),
        ({"queries": slice(-3, None)}, OptionError, "queries.start must be"),
        ({"keys": slice(0, 8, 2)}, OptionError, "keys must be a slice without step"),
        ({"keys": slice(4, 4)}, OptionError, "keys must be a slice without step that is not empty"),
    ],
)
def test_what_cannot_be_recorded_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = keywise.hf.use(make_model("llama"))
    with (
        pytest.raises(error, match=message),
        record_weights(model, **{"layer": name_layer("llama", 0), **arguments}),
        torch.no_grad(),
    ):
        model(IDS)


def test_a_model_with_other_attention_is_refused() -> None:
    with (
        pytest.raises(ModelError, match="must attend with keywise"),
        record_weights(make_model("llama"), name_layer("llama", 0)),
    ):
        pass


def test_importing_the_recorder_imports_no_torch() -> None:
    code = "import sys, keywise.hf; keywise.hf.record_weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
