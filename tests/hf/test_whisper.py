"""Token timestamps of Whisper: equal to eager attention to the frame, without leaving keywise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

import keywise.hf
from keywise.errors import ModelError
from keywise.hf.whisper import time_tokens
from keywise.models import load_model
from keywise.util.time_warping import filter_median, warp_time
from tests.support.speech import END, make_features, make_whisper, write_ct2_folder

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SHORT, LONG = 3000, 7000


def generate(model, features, attention, **options):
    model.set_attn_implementation(attention)
    with torch.no_grad():
        return model.generate(**features, language="en", task="transcribe", return_token_timestamps=True, **options)


@pytest.mark.parametrize(
    ("batch", "frames", "options"),
    [
        (1, SHORT, {"max_new_tokens": 20}),
        (3, SHORT, {"max_new_tokens": 20}),
        (2, SHORT, {"max_new_tokens": 12, "num_beams": 3}),
        (1, SHORT, {"max_new_tokens": 12, "num_beams": 2, "num_return_sequences": 2}),
        (1, SHORT, {"max_new_tokens": 1}),
        (2, SHORT, {"max_new_tokens": 20, "return_timestamps": True}),
        (2, LONG, {"max_new_tokens": 20, "return_timestamps": True, "return_segments": True}),
        (1, LONG, {"max_new_tokens": 16, "return_timestamps": True, "condition_on_prev_tokens": True}),
    ],
)
def test_token_timestamps_equal_those_of_eager_attention(batch, frames, options):
    model, features = make_whisper(), make_features(batch, frames)
    expected = generate(model, features, "eager", **options)
    actual = generate(model, features, "keywise", **options)
    assert model.config._attn_implementation == "keywise"
    assert torch.equal(actual["sequences"], expected["sequences"])
    assert actual["token_timestamps"].dtype == expected["token_timestamps"].dtype
    assert torch.equal(actual["token_timestamps"], expected["token_timestamps"])
    if "segments" in expected:
        for ours, theirs in zip(actual["segments"], expected["segments"], strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert torch.equal(one["token_timestamps"], other["token_timestamps"])


def test_timestamps_without_a_mask_of_frames():
    model, features = make_whisper(), make_features(1, SHORT)
    features.pop("attention_mask")
    expected = generate(model, features, "eager", max_new_tokens=12)
    assert torch.equal(
        generate(model, features, "keywise", max_new_tokens=12)["token_timestamps"], expected["token_timestamps"]
    )


def test_fallback_to_other_temperatures_forgets_the_rows_before():
    model, features = make_whisper(), make_features(1, SHORT)
    # Every text is improbable, so each temperature is tried.
    options = {"max_new_tokens": 8, "temperature": (0.0, 0.4), "logprob_threshold": 0.0, "return_timestamps": True}
    results = []
    for attention in ("eager", "keywise"):
        torch.manual_seed(5)
        results.append(generate(model, features, attention, **options))
    assert torch.equal(results[0]["sequences"], results[1]["sequences"])
    assert torch.equal(results[0]["token_timestamps"], results[1]["token_timestamps"])


def test_no_layer_attends_eagerly_and_no_scores_are_kept(monkeypatch):
    model, features = make_whisper(), make_features(1, SHORT)
    seen = set()
    forward = hf.models.whisper.modeling_whisper.WhisperAttention.forward

    def watch(layer, *args, **keywords):
        seen.add((layer.config._attn_implementation, bool(keywords.get("output_attentions"))))
        return forward(layer, *args, **keywords)

    monkeypatch.setattr(hf.models.whisper.modeling_whisper.WhisperAttention, "forward", watch)
    out = generate(model, features, "keywise", max_new_tokens=6, return_timestamps=True, return_segments=True)
    assert seen == {("keywise", False)}
    assert "scores" not in out["segments"][0][0]["result"]


def test_models_with_other_attention_are_left_alone():
    model, features = make_whisper(), make_features(1, SHORT)
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        out = model.generate(**features, language="en", return_token_timestamps=True, max_new_tokens=6)
    assert model.config._attn_implementation == "eager"  # what transformers leaves behind
    assert out["token_timestamps"].shape == (1, out["sequences"].shape[1])


def test_attention_is_restored_after_an_error():
    model = make_whisper()
    model.set_attn_implementation("keywise")
    with pytest.raises(ValueError, match="language"):
        model.generate(**make_features(1, SHORT), language="klingon", return_token_timestamps=True)
    assert model.config._attn_implementation == "keywise"


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 2}, {"assistant_model": "any"}])
def test_guessed_tokens_are_refused(options):
    model = make_whisper()
    with pytest.raises(ModelError) as raised:
        generate(model, make_features(1, SHORT), "keywise", **options)
    assert raised.value.argument == next(iter(options))


def test_weights_that_the_caller_asks_for_are_refused_by_name():
    with pytest.raises(ModelError) as raised:
        generate(make_whisper(), make_features(1, SHORT), "keywise", max_new_tokens=4, output_attentions=True)
    assert raised.value.argument == "output_attentions"


def test_recorded_rows_have_the_size_of_heads_and_frames():
    model, features = make_whisper(), make_features(1, SHORT)
    sizes = []
    add = keywise.hf.recording.StatsCollector.add

    def watch(collector, plan, stats):
        output = add(collector, plan, stats)
        latest = collector.record[-1]
        sizes.append((latest.layer, latest.heads, tuple(latest.stats.key_mass.shape)))
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keywise.hf.recording.StatsCollector, "add", watch)
        generate(model, features, "keywise", max_new_tokens=5)
    assert set(sizes) == {(0, (1,), (1, 1, 1500)), (1, (0, 3), (1, 2, 1500))}
    assert END  # the model's text has no end token


def test_path_equals_that_of_transformers():
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

    generator = np.random.default_rng(2)
    for rows, columns in ((1, 1), (1, 6), (6, 1), (3, 9), (9, 3), (40, 130)):
        for costs in (generator.normal(size=(rows, columns)), generator.integers(0, 3, (rows, columns)).astype(float)):
            for ours, theirs in zip(warp_time(costs), _dynamic_time_warping(costs), strict=True):
                np.testing.assert_array_equal(ours, theirs, err_msg=f"{rows} x {columns}")
    values = generator.normal(size=(2, 5, 40)).astype(np.float32)
    values[0, 1, 7] = np.nan
    for width in (1, 3, 7):
        expected = _median_filter(torch.from_numpy(values)[None], width)[0].numpy()
        np.testing.assert_array_equal(filter_median(values, width), expected)


def test_tokens_begin_where_their_weights_do():
    weights = np.full((2, 3, 24), 0.01, np.float32)
    for token, (start, end) in enumerate([(0, 6), (6, 15), (15, 24)]):
        weights[:, token, start:end] += 1
    assert time_tokens(weights, width=7).tolist() == [0, 6, 15]


@pytest.mark.parametrize("options", [{}, {"chunk_length_s": 10, "batch_size": 2}])
def test_pipeline_times_words_without_leaving_keywise(tmp_path, options):
    loaded = load_model(write_ct2_folder(tmp_path / "tiny", make_whisper()), dtype="float32")
    sound = np.random.default_rng(1).normal(size=25 * 16_000).astype(np.float32) * 0.1
    results = []
    for attention in ("eager", "keywise"):
        loaded.model.set_attn_implementation(attention)
        recognise = hf.pipeline(
            "automatic-speech-recognition",
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            feature_extractor=loaded.processor.feature_extractor,
        )
        generate_options = {"max_new_tokens": 20}
        results.append(recognise(sound.copy(), return_timestamps="word", generate_kwargs=generate_options, **options))
    assert loaded.model.config._attn_implementation == "keywise"
    assert results[1]["chunks"]
    assert results[0] == results[1]
