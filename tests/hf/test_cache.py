"""keywise.hf.Cache in transformers: the tokens of transformers' own cache, and no copies of the past."""

from __future__ import annotations

import copy
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache, EncoderDecoderCache, Gemma3nForCausalLM, Gemma3nTextConfig, MambaConfig
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicSlidingWindowLayer

import keywise.hf
from keywise.errors import DtypeError, FormatError, ModelError, OptionError, ShapeError
from keywise.hf.compatibility import crops_to_length
from keywise.hf.joined import JoinedTensor
from keywise.models import fingerprint
from tests.support import models

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NEW_TOKENS = 12
METHODS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "beams": {"do_sample": False, "num_beams": 3},
    "two samples": {"do_sample": True, "num_return_sequences": 2},
    # No token has this number; older versions of transformers need one here.
    "lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3, "eos_token_id": models.VOCABULARY},
}


def make_model(name: str, attention: str = "keywise") -> Any:
    keywise.hf.register()
    model = models.make_model(name)
    model.set_attn_implementation(attention)
    return model


def make_prompt(name: str, side: str | None = None) -> dict[str, Any]:
    """Return arguments of `generate`, which makes position ids itself."""
    return {key: value for key, value in models.make_inputs(name, side).items() if key != "position_ids"}


def generate(
    model: Any, model_inputs: dict[str, Any], cache: Any, method: str = "greedy", tokens: int = NEW_TOKENS
) -> Any:
    torch.manual_seed(4)
    return model.generate(**model_inputs, past_key_values=cache, max_new_tokens=tokens, **METHODS[method])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma2", "gpt_oss"])
def test_generate_returns_the_tokens_of_transformers_own_cache(name: str, side: str | None, method: str) -> None:
    model, model_inputs = make_model(name), make_prompt(name, side)
    cache = keywise.hf.Cache(model.config)
    if method == "lookup":  # transformers guesses for one item only
        model_inputs = {key: value[1:] for key, value in model_inputs.items()}
        if any(cache.is_sliding) and not hasattr(DynamicSlidingWindowLayer, "activate_past_recording"):
            pytest.skip(f"transformers {transformers.__version__} cannot guess tokens of models with sliding windows")
    assert isinstance(cache, TransformersCache)
    tokens = generate(model, model_inputs, cache, method)
    assert torch.equal(tokens, generate(model, model_inputs, DynamicCache(config=model.config), method))
    assert cache.get_seq_length() == tokens.shape[1] - 1
    assert cache.reused_tokens == 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_attention_implementations_work_with_the_cache(attention: str) -> None:
    model, model_inputs = make_model("llama", attention), make_prompt("llama")
    cache = keywise.hf.Cache(model.config)
    expected = generate(model, model_inputs, DynamicCache(config=model.config))
    assert torch.equal(generate(model, model_inputs, cache), expected)
    # A past of two chunks: the attention works on the tensor that they stand for.
    fork = cache.fork()
    fork.truncate(models.TOKENS - 3)
    compute_logits(model, model_inputs["input_ids"][:, -3:], fork, [2, 1])
    assert isinstance(fork.layers[0].keys, JoinedTensor)
    torch.testing.assert_close(fork.layers[1].keys + 0, cache.layers[1].keys[:, :, : models.TOKENS])


@pytest.mark.parametrize("method", ["greedy", "beams"])
@pytest.mark.parametrize("name", models.ENCODER_DECODERS)
def test_encoder_decoder_models_generate_the_same_tokens(name: str, method: str) -> None:
    model, model_inputs = make_model(name), models.make_inputs(name)
    own = EncoderDecoderCache(keywise.hf.Cache(model.config), keywise.hf.Cache(model.config))
    theirs = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    assert torch.equal(generate(model, model_inputs, own, method), generate(model, model_inputs, theirs, method))
    assert own.cross_attention_cache.get_seq_length() == theirs.cross_attention_cache.get_seq_length() > 0


def compute_logits(model: Any, ids: torch.Tensor, cache: Any, steps: list[int]) -> torch.Tensor:
    """Return the logits of tokens that are passed in steps of these sizes."""
    with torch.no_grad():
        steps_logits = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(steps, dim=1)]
    return torch.cat(steps_logits, dim=1)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma2", "gpt_oss", "gpt2"])
def test_prefill_and_decoding_have_equal_logits(name: str) -> None:
    model, (ids, _) = make_model(name), models.draw_padded_tokens((models.TOKENS, models.TOKENS), "left")
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    close = {"atol": 2e-5, "rtol": 2e-5}
    # From the seventh token on, the sliding window begins inside the past.
    for steps in ([1] * 20, [20], [3, 9, 1, 1, 6]):
        torch.testing.assert_close(compute_logits(model, ids, keywise.hf.Cache(model.config), steps), expected, **close)
    cache = keywise.hf.Cache(model.config)
    cache.activate_past_recording()
    compute_logits(model, ids.flip(1), cache, [16, 4])
    cache.truncate(0)
    compute_logits(model, ids, cache, [15, 5])
    for kept in (17, 9, 4):
        cache.truncate(kept)
        torch.testing.assert_close(
            compute_logits(model, ids[:, kept:], cache, [1, 19 - kept]), expected[:, kept:], **close
        )


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_forks_share_the_past_and_continue_independently(name: str) -> None:
    model, (ids, _) = make_model(name), models.draw_padded_tokens((models.TOKENS,), "left")
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    cache = keywise.hf.Cache(model.config)
    compute_logits(model, ids[:, :12], cache, [12])
    forks = [cache.fork(), copy.deepcopy(cache)]
    compute_logits(model, ids.flip(1)[:, :5], cache, [5])
    for fork in forks:
        assert fork.get_seq_length() == 12
        torch.testing.assert_close(
            compute_logits(model, ids[:, 12:], fork, [2, 6]), expected[:, 12:], atol=2e-5, rtol=2e-5
        )
    assert cache.get_seq_length() == 17
    assert "Joined" in repr(forks[0].layers[0].keys) or name == "mistral"


def test_a_repeated_batch_of_one_is_not_copied() -> None:
    model, (ids, _) = make_model("llama"), models.draw_padded_tokens((models.TOKENS,), "left")
    cache = keywise.hf.Cache(model.config)
    compute_logits(model, ids[:, :15], cache, [15])
    many = cache.fork()
    many.batch_repeat_interleave(3)
    chunk = many.kv.chunks(0)[0].key.data
    assert (chunk.shape[0], chunk.strides[0]) == (3, 0)
    actual = generate(model, {"input_ids": ids}, many, "beams")
    assert torch.equal(actual, generate(model, {"input_ids": ids}, None, "beams"))
    many.batch_select_indices(torch.tensor([True, False, True]))
    assert many.layers[0].keys.shape[0] == 2
    assert cache.layers[0].keys.shape[0] == 1


@pytest.mark.parametrize("attention", ["keywise", "eager"])
def test_int8_logits_are_near_those_of_float32(attention: str, tmp_path: Path) -> None:
    model, (ids, _) = make_model("gemma2", attention), models.draw_padded_tokens((models.TOKENS,), "left")
    exact, rounded = keywise.hf.Cache(model.config), keywise.hf.Cache(model.config, dtype="int8")
    expected = compute_logits(model, ids, exact, [12, 1, 7])
    actual = compute_logits(model, ids, rounded, [12, 1, 7])
    assert rounded.kv.chunks(1)[0].key.data.dtype == "int8"
    assert 0 < (actual - expected).norm() / expected.norm() < 0.03
    rounded.save(tmp_path / "cache", ids, {})
    opened = keywise.hf.Cache.open(tmp_path / "cache", model.config, {})
    assert torch.equal(
        compute_logits(model, ids[:, :3], opened, [3]), compute_logits(model, ids[:, :3], rounded.fork(), [3])
    )
    rounded.reset()
    assert rounded.kv.dtype == "int8"
    with pytest.raises(OptionError, match="dtype must be that of kv, which stores values unchanged, got 'int8'"):
        keywise.hf.Cache(model.config, exact.kv, dtype="int8")


def test_reset_removes_all_tokens() -> None:
    model, model_inputs = make_model("mistral"), make_prompt("mistral")
    cache = keywise.hf.Cache(model.config)
    first = generate(model, model_inputs, cache)
    cache.reset()
    assert (cache.get_seq_length(), cache.layers[0].keys) == (0, None)
    assert torch.equal(generate(model, model_inputs, cache), first)


def test_truncating_beyond_the_stored_tokens_is_refused() -> None:
    model, model_inputs = make_model("mistral"), make_prompt("mistral")
    cache = keywise.hf.Cache(model.config)
    generate(model, model_inputs, cache)
    with pytest.raises(OptionError, match="the window of layer 0 has dropped"):
        cache.truncate(10)
    with pytest.raises(OptionError, match="tokens must be at most 31, the tokens of layer 0, got 99"):
        cache.truncate(99)
    # Older versions of transformers pass the number that remain.
    refused = "the window of layer 0 has dropped" if crops_to_length() else "must be 0 or negative, got 3; use -3"
    with pytest.raises(OptionError, match=refused):
        cache.crop(3)


def test_layers_that_share_the_keys_of_others_store_nothing() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    sizes = {**models.TEXT, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6}
    inner = {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    more = {"layer_types": kinds, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 4}
    torch.manual_seed(0)
    model = keywise.hf.use(Gemma3nForCausalLM(Gemma3nTextConfig(**sizes, **inner, **more)).eval())
    model_inputs, cache = make_prompt("llama"), keywise.hf.Cache(model.config)
    actual = generate(model, model_inputs, cache)
    assert torch.equal(actual, generate(model, model_inputs, DynamicCache(config=model.config)))
    # Older versions of transformers have no cache layers for them.
    stored = [cache.kv.tokens(layer) > 0 for layer in range(cache.kv.layers)]
    assert stored in ([True, True], [True, True, False, False])


def test_layers_with_other_state_than_keys_and_values_are_refused() -> None:
    with pytest.raises(ModelError, match="layer 0 needs a LinearAttentionLayer"):
        keywise.hf.Cache(MambaConfig(num_hidden_layers=2))


def measure_step_bytes(model: Any, cache: Any, past: int) -> int:
    """Return the bytes that torch and NumPy allocate in one decoding step after so many tokens."""
    compute_logits(model, torch.full((1, past), 5), cache, [past])
    compute_logits(model, torch.tensor([[6, 7]]), cache, [1, 1])  # allocates room for the next ones
    tracemalloc.start()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        compute_logits(model, torch.tensor([[8]]), cache, [1])
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return traced + sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())


def test_no_step_copies_the_past() -> None:
    model, past = make_model("llama"), 3000
    layers, heads, head_dim = 2, 2, 8
    past_bytes = past * layers * 2 * heads * head_dim * 4
    assert measure_step_bytes(model, DynamicCache(config=model.config), past) > past_bytes
    own = [measure_step_bytes(model, keywise.hf.Cache(model.config), tokens) for tokens in (past // 10, past)]
    assert max(own) < past_bytes / 4
    assert own[1] - own[0] < past_bytes / 20
    base = keywise.hf.Cache(model.config)
    compute_logits(model, torch.full((1, past), 5), base, [past])
    assert measure_step_bytes(model, base.fork(), 10) < past_bytes / 4


DISK_FAMILIES = ["llama", "qwen2", "mistral", "gemma2"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", DISK_FAMILIES)
def test_generation_from_disk_equals_uninterrupted_generation(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, model_inputs = make_model(name).to(dtype), make_prompt(name, "left")
    made = fingerprint(model)
    for method in ("greedy", "beams", "sampling"):
        # Sliding windows are full before the cache is saved.
        first_cache = keywise.hf.Cache(model.config)
        start = generate(model, model_inputs, first_cache, tokens=5)
        first_cache.save(tmp_path / "cache", start, made)
        longer = {
            "input_ids": torch.cat([start, start[:, 3:6]], dim=1),
            "attention_mask": torch.nn.functional.pad(model_inputs["attention_mask"], (0, 8), value=1),
        }
        opened = keywise.hf.Cache.open(tmp_path / "cache", model.config, made, longer["input_ids"])
        assert opened.reused_tokens == start.shape[1] - 1
        # Ties of half precision depend on the order of sums, which is the fork's.
        caches = [opened, first_cache.fork()] if dtype != torch.float32 else [opened, first_cache.fork(), first_cache]
        if method == "beams":
            for cache in caches:
                cache.batch_repeat_interleave(3)
        actual = [generate(model, longer, cache, method) for cache in caches]
        assert all(torch.equal(actual[0], other) for other in actual[1:])


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_the_common_prefix_is_reused_from_disk(name: str, tmp_path: Path) -> None:
    model, (ids, _) = make_model(name), models.draw_padded_tokens((models.TOKENS,), "left")
    made = fingerprint(model)
    cache = keywise.hf.Cache(model.config)
    cache.activate_past_recording()
    generate(model, {"input_ids": ids}, cache)
    cache.truncate(models.TOKENS)
    cache.save(tmp_path / "cache", ids, made)
    other = torch.cat([ids[:, :11], ids.flip(1)[:, :6]], dim=1)
    opened = keywise.hf.Cache.open(tmp_path / "cache", model.config, made, other)
    assert opened.reused_tokens == opened.get_seq_length() == 11
    assert torch.equal(generate(model, {"input_ids": other}, opened), generate(model, {"input_ids": other}, None))
    # All tokens are in the file; the model needs the last one as input.
    opened = keywise.hf.Cache.open(tmp_path / "cache", model.config, made, ids)
    assert opened.reused_tokens == models.TOKENS - 1
    assert torch.equal(generate(model, {"input_ids": ids}, opened), generate(model, {"input_ids": ids}, None))
    # Nothing in common, so nothing is reused.
    opened = keywise.hf.Cache.open(tmp_path / "cache", model.config, made, ids.flip(1))
    assert opened.reused_tokens == 0
    assert torch.equal(
        generate(model, {"input_ids": ids.flip(1)}, opened), generate(model, {"input_ids": ids.flip(1)}, None)
    )


@pytest.mark.parametrize("name", ["t5", "marian"])
def test_encoder_decoder_generation_from_disk_equals_uninterrupted_generation(name: str, tmp_path: Path) -> None:
    model, model_inputs = make_model(name), models.make_inputs(name)
    model.generation_config.forced_eos_token_id = None  # Marian's, which would end the first part
    made = {**fingerprint(model), "source": str(model_inputs["input_ids"].tolist())}
    caches = EncoderDecoderCache(keywise.hf.Cache(model.config), keywise.hf.Cache(model.config))
    start = generate(model, model_inputs, caches, tokens=4)
    caches.self_attention_cache.save(tmp_path / "self", start, made)
    caches.cross_attention_cache.save(tmp_path / "cross", model_inputs["input_ids"], made)
    opened = EncoderDecoderCache(
        *(keywise.hf.Cache.open(tmp_path / part, model.config, made) for part in ("self", "cross"))
    )
    assert opened.cross_attention_cache.reused_tokens == models.TOKENS
    onward = {**model_inputs, "decoder_input_ids": start}
    actual = generate(model, onward, opened)
    assert torch.equal(actual, generate(model, onward, caches))
    assert torch.equal(actual, generate(model, model_inputs, None, tokens=4 + NEW_TOKENS))


def change_weights(model: Any) -> None:
    with torch.no_grad():
        model.model.embed_tokens.weight[5, 5] += 1


def change_rope(model: Any) -> None:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 7e3}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (change_weights, "weights"),
        (change_rope, "rope"),
        (lambda model: model.to(torch.float16), "dtype"),
        (lambda model: setattr(model.config, "rms_norm_eps", 0.1), "config"),
        (None, "tokenizer"),
    ],
)
def test_a_cache_of_another_model_is_refused(change: Any, field: str, tmp_path: Path) -> None:
    model, (ids, _) = make_model("llama"), models.draw_padded_tokens((models.TOKENS,), "left")
    cache = keywise.hf.Cache(model.config)
    compute_logits(model, ids, cache, [models.TOKENS])
    cache.save(tmp_path / "cache", ids, fingerprint(model))
    if change is None:
        made = fingerprint(model, models.make_tokenizer("a", "b"))
    else:
        change(model)
        made = fingerprint(model)
    with pytest.raises(FormatError, match=f"same fingerprint: {field} must be"):
        keywise.hf.Cache.open(tmp_path / "cache", model.config, made)


def test_a_cache_with_another_number_of_layers_is_refused(tmp_path: Path) -> None:
    model, (ids, _) = make_model("llama"), models.draw_padded_tokens((models.TOKENS,), "left")
    cache = keywise.hf.Cache(model.config)
    compute_logits(model, ids, cache, [models.TOKENS])
    cache.save(tmp_path / "cache", ids, {})
    model.config.num_hidden_layers = 3
    with pytest.raises(FormatError, match="kv must have the model's 3 layers, got 2"):
        keywise.hf.Cache.open(tmp_path / "cache", model.config, {})


def test_tokens_and_positions_may_be_lists_as_tokenizers_return_them(tmp_path: Path) -> None:
    model, (ids, _) = make_model("llama"), models.draw_padded_tokens((models.TOKENS,), "left")
    cache = keywise.hf.Cache(model.config)
    compute_logits(model, ids, cache, [models.TOKENS])
    positions = list(range(3, 3 + models.TOKENS))
    for token_ids, places in [(ids, [positions]), (ids.tolist(), [positions]), (ids[0].tolist(), tuple(positions))]:
        cache.save(tmp_path / "cache", token_ids, {}, positions=places)
        for others in (ids, ids.tolist(), ids[0].tolist(), ids[0].numpy(), [int(number) for number in ids[0]]):
            nested = isinstance(others, list) and isinstance(others[0], list)
            of_others = [positions] if nested or getattr(others, "ndim", 1) == 2 else positions
            opened = keywise.hf.Cache.open(tmp_path / "cache", model.config, {}, others, positions=of_others)
            assert opened.reused_tokens == models.TOKENS - 1


@pytest.mark.parametrize(
    ("token_ids", "positions", "error", "name"),
    [
        ([[1, 2], [3]], None, ShapeError, "token_ids"),
        ([1.5, 2.5], None, DtypeError, "token_ids"),
        ("abc", None, DtypeError, "token_ids"),
        (5, None, ShapeError, "token_ids"),
        (torch.zeros(1, 1, 4, dtype=torch.long), None, ShapeError, "token_ids"),
        ([1, 2, 3], [1, 2], ShapeError, "positions"),
        ([1, 2, 3], [[1, 2, 3]], ShapeError, "positions"),
        ([1, 2, 3], [1.0, 2.0, 3.0], DtypeError, "positions"),
    ],
)
def test_tokens_that_are_no_integers_are_refused(
    token_ids: Any, positions: Any, error: type, name: str, tmp_path: Path
) -> None:
    model, (ids, _) = make_model("llama"), models.draw_padded_tokens((models.TOKENS,), "left")
    cache = keywise.hf.Cache(model.config)
    compute_logits(model, ids, cache, [models.TOKENS])
    cache.save(tmp_path / "cache", ids, {})
    with pytest.raises(error, match=f"{name} must"):
        keywise.hf.Cache.open(tmp_path / "cache", model.config, {}, token_ids, positions=positions)
    with pytest.raises(error, match="must"):
        cache.save(tmp_path / "cache", token_ids, {}, positions=positions)
