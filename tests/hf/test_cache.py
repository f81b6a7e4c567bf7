"""keywise.hf.Cache in transformers: the same tokens as transformers' own cache, no copies of the past."""

from __future__ import annotations

import copy
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, Gemma3nForCausalLM, Gemma3nTextConfig, MambaConfig
from transformers.cache_utils import Cache as TransformersCache

import keywise.hf
from keywise.errors import FormatError, ModelError, OptionError
from keywise.hf.joined import joined_class
from keywise.models import fingerprint
from tests.support import models

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NEW_TOKENS = 12
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "beams": {"do_sample": False, "num_beams": 3},
    "two answers": {"do_sample": True, "num_return_sequences": 2},
    "guessing ahead": {"do_sample": False, "prompt_lookup_num_tokens": 3},
}


def model_of(name: str, attention: str = "keywise") -> Any:
    keywise.hf.register()
    model = models.make(name)
    model.set_attn_implementation(attention)
    return model


def asked(name: str, side: str | None = None) -> dict[str, Any]:
    """Give what `generate` takes; it makes position ids itself."""
    return {key: value for key, value in models.inputs(name, side).items() if key != "position_ids"}


def generate(model: Any, given: dict[str, Any], cache: Any, way: str = "greedy", tokens: int = NEW_TOKENS) -> Any:
    torch.manual_seed(4)
    return model.generate(**given, past_key_values=cache, max_new_tokens=tokens, **WAYS[way])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma2", "gpt_oss"])
def test_generate_gives_the_tokens_of_transformers_own_cache(name: str, side: str | None, way: str) -> None:
    model, given = model_of(name), asked(name, side)
    if way == "guessing ahead":  # transformers guesses for one item only
        given = {key: value[1:] for key, value in given.items()}
    cache = keywise.hf.Cache(model.config)
    assert isinstance(cache, TransformersCache)
    found = generate(model, given, cache, way)
    assert torch.equal(found, generate(model, given, DynamicCache(config=model.config), way))
    assert cache.get_seq_length() == found.shape[1] - 1
    assert cache.reused_tokens == 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_attentions_take_it_too(attention: str) -> None:
    model, given = model_of("llama", attention), asked("llama")
    cache = keywise.hf.Cache(model.config)
    right = generate(model, given, DynamicCache(config=model.config))
    assert torch.equal(generate(model, given, cache), right)
    # A past in two pieces: the attention works on the one tensor that they stand for.
    fork = cache.fork()
    fork.truncate(models.TOKENS - 3)
    logits(model, given["input_ids"][:, -3:], fork, [2, 1])
    assert isinstance(fork.layers[0].keys, joined_class())
    torch.testing.assert_close(fork.layers[1].keys + 0, cache.layers[1].keys[:, :, : models.TOKENS])


@pytest.mark.parametrize("way", ["greedy", "beams"])
@pytest.mark.parametrize("name", models.ENCODER_DECODERS)
def test_encoder_and_decoder(name: str, way: str) -> None:
    model, given = model_of(name), models.inputs(name)
    own = EncoderDecoderCache(keywise.hf.Cache(model.config), keywise.hf.Cache(model.config))
    theirs = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    assert torch.equal(generate(model, given, own, way), generate(model, given, theirs, way))
    assert own.cross_attention_cache.get_seq_length() == theirs.cross_attention_cache.get_seq_length() > 0


def logits(model: Any, ids: torch.Tensor, cache: Any, steps: list[int]) -> torch.Tensor:
    """Feed tokens in steps of these sizes; give the logits at every one of them."""
    with torch.no_grad():
        found = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(steps, dim=1)]
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma2", "gpt_oss", "gpt2"])
def test_prefill_and_decoding_agree_at_every_position(name: str) -> None:
    model, (ids, _) = model_of(name), models.padded_tokens((models.TOKENS, models.TOKENS), "left")
    with torch.no_grad():
        right = model(ids, use_cache=False).logits
    close = {"atol": 2e-5, "rtol": 2e-5}
    # The window of the sliding ones ends inside the past from the seventh token on.
    for steps in ([1] * 20, [20], [3, 9, 1, 1, 6]):
        torch.testing.assert_close(logits(model, ids, keywise.hf.Cache(model.config), steps), right, **close)
    cache = keywise.hf.Cache(model.config)
    cache.activate_past_recording()
    logits(model, ids.flip(1), cache, [16, 4])
    cache.truncate(0)
    logits(model, ids, cache, [15, 5])
    for kept in (17, 9, 4):
        cache.truncate(kept)
        torch.testing.assert_close(logits(model, ids[:, kept:], cache, [1, 19 - kept]), right[:, kept:], **close)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_forks_share_the_past_and_go_their_own_ways(name: str) -> None:
    model, (ids, _) = model_of(name), models.padded_tokens((models.TOKENS,), "left")
    with torch.no_grad():
        right = model(ids, use_cache=False).logits
    cache = keywise.hf.Cache(model.config)
    logits(model, ids[:, :12], cache, [12])
    forks = [cache.fork(), copy.deepcopy(cache)]
    logits(model, ids.flip(1)[:, :5], cache, [5])
    for fork in forks:
        assert fork.get_seq_length() == 12
        torch.testing.assert_close(logits(model, ids[:, 12:], fork, [2, 6]), right[:, 12:], atol=2e-5, rtol=2e-5)
    assert cache.get_seq_length() == 17
    assert "Joined" in repr(forks[0].layers[0].keys) or name == "mistral"


def test_a_batch_of_one_goes_on_as_many_and_stays_one_in_memory() -> None:
    model, (ids, _) = model_of("llama"), models.padded_tokens((models.TOKENS,), "left")
    cache = keywise.hf.Cache(model.config)
    logits(model, ids[:, :15], cache, [15])
    many = cache.fork()
    many.batch_repeat_interleave(3)
    chunk = many.kv.chunks(0)[0].key.data
    assert (chunk.shape[0], chunk.strides[0]) == (3, 0)
    found = generate(model, {"input_ids": ids}, many, "beams")
    assert torch.equal(found, generate(model, {"input_ids": ids}, None, "beams"))
    many.batch_select_indices(torch.tensor([True, False, True]))
    assert many.layers[0].keys.shape[0] == 2
    assert cache.layers[0].keys.shape[0] == 1


@pytest.mark.parametrize("attention", ["keywise", "eager"])
def test_int8_takes_a_quarter_of_float32_and_stays_near(attention: str, tmp_path: Path) -> None:
    model, (ids, _) = model_of("gemma2", attention), models.padded_tokens((models.TOKENS,), "left")
    exact, rounded = keywise.hf.Cache(model.config), keywise.hf.Cache(model.config, dtype="int8")
    right = logits(model, ids, exact, [12, 1, 7])
    found = logits(model, ids, rounded, [12, 1, 7])
    assert rounded.kv.chunks(1)[0].key.data.dtype == "int8"
    assert 0 < (found - right).norm() / right.norm() < 0.03
    rounded.save(tmp_path / "cache", ids, {})
    opened = keywise.hf.Cache.open(tmp_path / "cache", model.config, {})
    assert torch.equal(logits(model, ids[:, :3], opened, [3]), logits(model, ids[:, :3], rounded.fork(), [3]))
    rounded.reset()
    assert rounded.kv.dtype == "int8"
    with pytest.raises(OptionError, match="dtype='int8': kv holds what came"):
        keywise.hf.Cache(model.config, exact.kv, dtype="int8")


def test_reset_forgets_everything() -> None:
    model, given = model_of("mistral"), asked("mistral")
    cache = keywise.hf.Cache(model.config)
    first = generate(model, given, cache)
    cache.reset()
    assert (cache.get_seq_length(), cache.layers[0].keys) == (0, None)
    assert torch.equal(generate(model, given, cache), first)


def test_what_cannot_be_cut_is_refused() -> None:
    model, given = model_of("mistral"), asked("mistral")
    cache = keywise.hf.Cache(model.config)
    generate(model, given, cache)
    with pytest.raises(OptionError, match="the window of layer 0 has dropped"):
        cache.truncate(10)
    with pytest.raises(OptionError, match="tokens=99: layer 0 has 31"):
        cache.truncate(99)
    with pytest.raises(OptionError, match="tokens_to_remove=3 is above 0; give -3"):
        cache.crop(3)


def test_layers_that_use_the_keys_of_others_keep_nothing() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    sizes = {**models.TEXT, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6}
    inner = {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    more = {"layer_types": kinds, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 4}
    torch.manual_seed(0)
    model = keywise.hf.use(Gemma3nForCausalLM(Gemma3nTextConfig(**sizes, **inner, **more)).eval())
    given, cache = asked("llama"), keywise.hf.Cache(model.config)
    found = generate(model, given, cache)
    assert torch.equal(found, generate(model, given, DynamicCache(config=model.config)))
    assert [cache.kv.tokens(layer) > 0 for layer in range(4)] == [True, True, False, False]


def test_layers_that_keep_something_else_are_refused() -> None:
    with pytest.raises(ModelError, match="layer 0 needs a LinearAttentionLayer"):
        keywise.hf.Cache(MambaConfig(num_hidden_layers=2))


def bytes_of_a_step(model: Any, cache: Any, past: int) -> int:
    """Give the bytes that one decoding step allocates, torch's and NumPy's, after a past of so many tokens."""
    logits(model, torch.full((1, past), 5), cache, [past])
    logits(model, torch.tensor([[6, 7]]), cache, [1, 1])  # makes room for the next ones
    tracemalloc.start()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        logits(model, torch.tensor([[8]]), cache, [1])
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return traced + sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())


def test_no_step_copies_the_past() -> None:
    model, past = model_of("llama"), 3000
    layers, heads, head_dim = 2, 2, 8
    past_bytes = past * layers * 2 * heads * head_dim * 4
    assert bytes_of_a_step(model, DynamicCache(config=model.config), past) > past_bytes
    own = [bytes_of_a_step(model, keywise.hf.Cache(model.config), tokens) for tokens in (past // 10, past)]
    assert max(own) < past_bytes / 4
    assert own[1] - own[0] < past_bytes / 20
    base = keywise.hf.Cache(model.config)
    logits(model, torch.full((1, past), 5), base, [past])
    assert bytes_of_a_step(model, base.fork(), 10) < past_bytes / 4


DISK_FAMILIES = ["llama", "qwen2", "mistral", "gemma2"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", DISK_FAMILIES)
def test_going_on_from_disk_is_never_having_stopped(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, given = model_of(name).to(dtype), asked(name, "left")
    made = fingerprint(model)
    for way in ("greedy", "beams", "sampling"):
        # The window of the sliding ones is crossed before the disk comes in.
        start = generate(model, given, begun := keywise.hf.Cache(model.config), tokens=5)
        begun.save(tmp_path / "cache", start, made)
        longer = {
            "input_ids": torch.cat([start, start[:, 3:6]], dim=1),
            "attention_mask": torch.nn.functional.pad(given["attention_mask"], (0, 8), value=1),
        }
        opened = keywise.hf.Cache.open(tmp_path / "cache", model.config, made, longer["input_ids"])
        assert opened.reused_tokens == start.shape[1] - 1
        # Half precision has ties, which go the way of the sums' order, and that is a fork's.
        caches = [opened, begun.fork()] if dtype != torch.float32 else [opened, begun.fork(), begun]
        if way == "beams":
            for cache in caches:
                cache.batch_repeat_interleave(3)
        found = [generate(model, longer, cache, way) for cache in caches]
        assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_another_continuation_from_disk(name: str, tmp_path: Path) -> None:
    model, (ids, _) = model_of(name), models.padded_tokens((models.TOKENS,), "left")
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
    # All that is asked is in the file: the last token is left to the model, which needs one to go on from.
    opened = keywise.hf.Cache.open(tmp_path / "cache", model.config, made, ids)
    assert opened.reused_tokens == models.TOKENS - 1
    assert torch.equal(generate(model, {"input_ids": ids}, opened), generate(model, {"input_ids": ids}, None))
    # Nothing in common: nothing is reused, and the result is right.
    opened = keywise.hf.Cache.open(tmp_path / "cache", model.config, made, ids.flip(1))
    assert opened.reused_tokens == 0
    assert torch.equal(
        generate(model, {"input_ids": ids.flip(1)}, opened), generate(model, {"input_ids": ids.flip(1)}, None)
    )


@pytest.mark.parametrize("name", ["t5", "marian"])
def test_encoder_and_decoder_from_disk(name: str, tmp_path: Path) -> None:
    model, given = model_of(name), models.inputs(name)
    model.generation_config.forced_eos_token_id = None  # Marian's, which would end the first part
    made = {**fingerprint(model), "source": str(given["input_ids"].tolist())}
    caches = EncoderDecoderCache(keywise.hf.Cache(model.config), keywise.hf.Cache(model.config))
    start = generate(model, given, caches, tokens=4)
    caches.self_attention_cache.save(tmp_path / "self", start, made)
    caches.cross_attention_cache.save(tmp_path / "cross", given["input_ids"], made)
    opened = EncoderDecoderCache(
        *(keywise.hf.Cache.open(tmp_path / part, model.config, made) for part in ("self", "cross"))
    )
    assert opened.cross_attention_cache.reused_tokens == models.TOKENS
    onward = {**given, "decoder_input_ids": start}
    found = generate(model, onward, opened)
    assert torch.equal(found, generate(model, onward, caches))
    assert torch.equal(found, generate(model, given, None, tokens=4 + NEW_TOKENS))


def other_weights(model: Any) -> None:
    with torch.no_grad():
        model.model.embed_tokens.weight[5, 5] += 1


def other_rope(model: Any) -> None:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 7e3}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (other_weights, "weights"),
        (other_rope, "rope"),
        (lambda model: model.to(torch.float16), "dtype"),
        (lambda model: setattr(model.config, "rms_norm_eps", 0.1), "config"),
        (None, "tokenizer"),
    ],
)
def test_a_cache_of_something_else_is_refused(change: Any, field: str, tmp_path: Path) -> None:
    model, (ids, _) = model_of("llama"), models.padded_tokens((models.TOKENS,), "left")
    cache = keywise.hf.Cache(model.config)
    logits(model, ids, cache, [models.TOKENS])
    cache.save(tmp_path / "cache", ids, fingerprint(model))
    if change is None:
        made = fingerprint(model, models.tokenizer("a", "b"))
    else:
        change(model)
        made = fingerprint(model)
    with pytest.raises(FormatError, match=f"made with another {field}"):
        keywise.hf.Cache.open(tmp_path / "cache", model.config, made)


def test_a_file_of_other_layers_is_refused(tmp_path: Path) -> None:
    model, (ids, _) = model_of("llama"), models.padded_tokens((models.TOKENS,), "left")
    cache = keywise.hf.Cache(model.config)
    logits(model, ids, cache, [models.TOKENS])
    cache.save(tmp_path / "cache", ids, {})
    model.config.num_hidden_layers = 3
    with pytest.raises(FormatError, match="kv has 2 layers and the model 3"):
        keywise.hf.Cache.open(tmp_path / "cache", model.config, {})
