"""Recorded statistics of models against the weights of eager attention."""

from __future__ import annotations

import contextvars
import dataclasses
import threading
import warnings

import numpy as np
import pytest
import torch
import transformers as hf

import keywise
from tests.support.models import DECODERS, ENCODER_DECODERS, FAMILIES, TOKENS, WINDOW, make_inputs, make_model

TOLERANCE = 2e-5

pytestmark = pytest.mark.usefixtures("one_torch_thread")


SOURCE_BOUNDS = [2, 5, 6, 13, 20]


def run(model, model_inputs, **options):
    with torch.no_grad():
        return model(**model_inputs, **options)


def compute_eager_weights(model, model_inputs):
    """Return the weights of every attention layer in the order in which the layers run: encoder, then decoder."""
    model.set_attn_implementation("eager")
    out = run(model, model_inputs, output_attentions=True)
    keywise.hf.use(model)
    if getattr(out, "attentions", None) is not None:
        return list(out.attentions)
    pairs = zip(out.decoder_attentions, out.cross_attentions, strict=True)
    return [*out.encoder_attentions, *(layer for pair in pairs for layer in pair)]


def compute_entropy(weights):
    return -torch.where(weights > 0, weights * weights.clamp(min=1e-45).log(), 0.0).sum(-1)


def compare(stats, weights, ids=None, top=0):
    """Compare statistics with the weights [B, H, queries, keys] of their queries."""
    close = {"rtol": 0, "atol": TOLERANCE}
    torch.testing.assert_close(stats.key_mass, weights.sum(2), **close)
    torch.testing.assert_close(stats.entropy, compute_entropy(weights), rtol=0, atol=5 * TOLERANCE)
    if top:
        heaviest = weights.topk(top, -1)
        torch.testing.assert_close(stats.top_weights, heaviest.values, **close)
        torch.testing.assert_close(stats.top_mass, heaviest.values.sum(-1), **close)
        weights_of_top_keys = weights.gather(-1, stats.top_keys.long().clamp(min=0)) * (stats.top_keys >= 0)
        torch.testing.assert_close(weights_of_top_keys, heaviest.values, **close)
    if ids is not None:
        per_segment = [weights[..., ids == segment].sum(-1) for segment in range(max(ids) + 1)]
        torch.testing.assert_close(stats.segment_mass, torch.stack(per_segment, -1), **close)
    else:
        assert stats.segment_mass is None


@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_equals_eager_weights(name):
    model, model_inputs = make_model(name), make_inputs(name)
    expected = compute_eager_weights(model, model_inputs)
    with keywise.hf.record_stats(model, top_k=3) as stats_record:
        run(model, model_inputs)
    assert len(stats_record) == len(expected)
    for record, weights in zip(stats_record, expected, strict=True):
        assert record.step == 0
        assert record.queries == (0, weights.shape[2])
        assert record.first_key == 0
        assert record.stats.output is None
        compare(record.stats, weights, top=3)
    assert [record.layer for record in stats_record] == ([0, 1, 0, 0, 1, 1] if name in ENCODER_DECODERS else [0, 1])
    kinds = ["self", "self", "self", "cross", "self", "cross"]
    assert [record.kind for record in stats_record] == (kinds if name in ENCODER_DECODERS else ["self", "self"])
    assert len({record.name for record in stats_record}) == len(stats_record)


def test_lse_includes_sinks():
    """A sink takes the weight exp(sink - lse) of a query, and the keys the rest."""
    model, model_inputs = keywise.hf.use(make_model("gpt_oss")), make_inputs("gpt_oss")
    with keywise.hf.record_stats(model, top_k=TOKENS) as stats_record:
        run(model, model_inputs)
    for record, layer in zip(stats_record, model.model.layers, strict=True):
        sink_weight = (layer.self_attn.sinks.detach()[None, :, None] - record.stats.lse).exp()
        assert sink_weight.mean() > 0.01
        torch.testing.assert_close(record.stats.top_mass, 1 - sink_weight, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", DECODERS)
def test_padding_has_no_key_mass(name):
    model, model_inputs = make_model(name), make_inputs(name, "left")
    expected = compute_eager_weights(model, model_inputs)
    is_real = model_inputs["attention_mask"].bool()
    with keywise.hf.record_stats(model) as stats_record:
        run(model, model_inputs)
    for record, weights in zip(stats_record, expected, strict=True):
        assert not record.stats.key_mass.transpose(1, 2)[~is_real].any()
        assert record.stats.lse.transpose(1, 2)[~is_real].isneginf().all()
        # A query of padding sees no key here and every key in eager attention.
        real_weights = weights * is_real[:, None, :, None]
        torch.testing.assert_close(record.stats.key_mass, real_weights.sum(2), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_segment_mass_equals_eager_weights(name):
    model, model_inputs = make_model(name), make_inputs(name)
    expected = compute_eager_weights(model, model_inputs)
    source = name in ENCODER_DECODERS
    bounds = SOURCE_BOUNDS if name != "vit" else [0, 1, 9, 17]
    ids = np.full(expected[-1].shape[-1], -1)
    for segment in range(len(bounds) - 1):
        ids[bounds[segment] : bounds[segment + 1]] = segment
    for segments in ({"segment_bounds": bounds}, {"segment_ids": ids}):
        with keywise.hf.record_stats(model, **segments, kind="cross" if source else None) as stats_record:
            run(model, model_inputs)
        selected = expected[3::2] if source else expected
        assert len(stats_record) == len(selected) > 0
        for record, weights in zip(stats_record, selected, strict=True):
            compare(record.stats, weights, ids=ids)


def generate_eagerly(model, prompt):
    model.set_attn_implementation("eager")
    out = model.generate(
        **prompt, max_new_tokens=8, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )
    keywise.hf.use(model)
    return out


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoding_step_equals_eager_weights(name):
    model = make_model(name)
    prompt = {"input_ids": make_inputs(name)["input_ids"]}
    expected = generate_eagerly(model, prompt)
    with keywise.hf.record_stats(model, segment_bounds=SOURCE_BOUNDS, top_k=2) as stats_record:
        tokens = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert torch.equal(tokens, expected.sequences)
    assert len(stats_record) == 8 * 2
    for step, layers in enumerate(expected.attentions):
        at = TOKENS + step - 1
        assert [record.layer for record in stats_record.step(step)] == [0, 1]
        for record, weights in zip(stats_record.step(step), layers, strict=True):
            keys = weights.shape[-1]
            assert record.queries == ((0, TOKENS) if step == 0 else (at, at + 1))
            assert record.first_key == (0 if step == 0 else at + 1 - keys)
            ids = np.full(TOKENS + 8, -1)
            for segment in range(4):
                ids[SOURCE_BOUNDS[segment] : SOURCE_BOUNDS[segment + 1]] = segment
            ids = ids[record.first_key : record.first_key + keys]
            per_segment = [weights[..., ids == segment].sum(-1) for segment in range(4)]
            expected_mass = torch.stack(per_segment, -1)
            torch.testing.assert_close(record.stats.segment_mass, expected_mass, rtol=0, atol=TOLERANCE)
            compare(drop_segments(record.stats), weights, top=2)
    if name in {"mistral", "gemma2", "gpt_oss"}:
        assert min(record.stats.key_mass.shape[-1] for record in stats_record) == WINDOW


def drop_segments(stats):
    return keywise.AttentionStats(**{**vars(stats), "segment_mass": None})


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_every_decoding_step_with_an_encoder_equals_eager_weights(name):
    model, model_inputs = make_model(name), make_inputs(name)
    prompt = {key: value for key, value in model_inputs.items() if key != "decoder_input_ids"}
    expected = generate_eagerly(model, prompt)
    with keywise.hf.record_stats(model) as stats_record:
        model.generate(**prompt, max_new_tokens=8, do_sample=False)
    encoder = [record for record in stats_record if ".encoder." in f".{record.name}"]
    assert len(encoder) == 2
    for record, weights in zip(encoder, expected.encoder_attentions, strict=True):
        compare(record.stats, weights)
    decoder = keywise.hf.StatsRecord(record for record in stats_record if record not in encoder)
    given_steps = list(zip(expected.decoder_attentions, expected.cross_attentions, strict=True))
    assert len(given_steps) > 4
    first = len(stats_record.kind("cross")[0].stats.lse[0, 0])
    for step, (own, cross) in enumerate(given_steps):
        for kind, layers in (("self", own), ("cross", cross)):
            records = decoder.step(step).kind(kind)
            assert [record.layer for record in records] == [0, 1]
            for record, weights in zip(records, layers, strict=True):
                assert record.queries == ((0, first) if step == 0 else (first + step - 1, first + step))
                compare(record.stats, weights)


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        (None, (0, 20)),
        (1, (19, 20)),
        (3, (17, 20)),
        (99, (0, 20)),
        (slice(4, 9), (4, 9)),
        (range(4, 9), (4, 9)),
        (slice(None, 2), (0, 2)),
        (slice(18, None), (18, 20)),
        (slice(18, 40), (18, 20)),
    ],
)
def test_selected_queries_equal_eager_weights(queries, expected):
    model, model_inputs = make_model("llama"), make_inputs("llama")
    weights = compute_eager_weights(model, model_inputs)
    with keywise.hf.record_stats(model, queries=queries) as stats_record:
        run(model, model_inputs)
    assert len(stats_record) == 2
    for record, layer in zip(stats_record, weights, strict=True):
        assert record.queries == expected
        assert record.stats.lse.shape[2] == expected[1] - expected[0]
        compare(record.stats, layer[:, :, slice(*expected)])


@pytest.mark.parametrize("cache", [hf.DynamicCache, hf.StaticCache])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_queries_by_position_are_found_across_chunks(name, cache):
    model, model_inputs = make_model(name), make_inputs(name)
    weights = compute_eager_weights(model, model_inputs)
    past = cache(config=model.config, **({} if cache is hf.DynamicCache else {"max_cache_len": 24}))
    with keywise.hf.record_stats(model, queries=slice(5, 12), layers=[1]) as stats_record:
        for start, stop in ((0, 4), (4, 10), (10, 11), (11, 12), (12, 20)):
            run(model, {"input_ids": model_inputs["input_ids"][:, start:stop]}, past_key_values=past)
    assert [record.queries for record in stats_record] == [(5, 10), (10, 11), (11, 12)]
    assert [record.step for record in stats_record] == [1, 2, 3]
    for record in stats_record:
        mass = torch.zeros_like(weights[1][:, :, 0])
        keys = min(record.stats.key_mass.shape[-1], TOKENS - record.first_key)
        mass[..., record.first_key : record.first_key + keys] = record.stats.key_mass[..., :keys]
        torch.testing.assert_close(mass, weights[1][:, :, slice(*record.queries)].sum(2), rtol=0, atol=TOLERANCE)


def test_only_selected_layers_and_statistics_are_kept():
    model, model_inputs = keywise.hf.use(make_model("llama")), make_inputs("llama")
    with keywise.hf.record_stats(model, layers=[1], key_mass=False, top_k=0) as stats_record:
        run(model, model_inputs)
    assert [record.name for record in stats_record] == ["model.layers.1.self_attn"]
    assert stats_record[0].stats.key_mass is None
    assert stats_record[0].stats.top_keys.shape[-1] == 0
    assert stats_record[0].stats.segment_mass is None
    assert len(stats_record.layer(0)) == 0
    assert len(stats_record.layer(1)) == len(stats_record[:1]) == 1


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_stop_leaves_the_model_after_the_last_selected_layer(name):
    model, model_inputs = keywise.hf.use(make_model(name)), make_inputs(name)
    ran = []
    hooks = [layer.mlp.register_forward_hook(lambda *_: ran.append(1)) for layer in model.model.layers]
    with keywise.hf.record_stats(model, layers=[0], stop=True) as stats_record:
        run(model, model_inputs)
        pytest.fail("the model ran to its end")
    assert ran == []
    with keywise.hf.record_stats(model, layers=[0]) as complete:
        after = run(model, model_inputs).logits
    assert len(ran) == len(hooks)
    assert torch.equal(stats_record[0].stats.key_mass, complete[0].stats.key_mass)
    assert torch.equal(after, run(model, model_inputs).logits)


def test_recording_does_not_change_logits():
    model, model_inputs = keywise.hf.use(make_model("gemma2")), make_inputs("gemma2", "left")
    before = run(model, model_inputs).logits
    with keywise.hf.record_stats(model, top_k=4, segment_bounds=SOURCE_BOUNDS):
        during = run(model, model_inputs).logits
    assert torch.equal(before, during)


def test_only_this_model_is_recorded():
    first, second = keywise.hf.use(make_model("llama")), keywise.hf.use(make_model("mistral"))
    model_inputs = make_inputs("llama")
    with keywise.hf.record_stats(first) as first_record:
        run(second, model_inputs)
        with keywise.hf.record_stats(second, layers=[0]) as second_record:
            run(first, model_inputs)
            run(second, model_inputs)
        run(second, model_inputs)
    run(first, model_inputs)
    assert [record.layer for record in first_record] == [0, 1]
    assert [record.layer for record in second_record] == [0]


def run_in_thread(*arguments):
    thread = threading.Thread(target=arguments[0], args=arguments[1:])
    thread.start()
    thread.join()


def test_another_thread_is_not_recorded():
    model, model_inputs = keywise.hf.use(make_model("llama")), make_inputs("llama")
    block = keywise.hf.record_stats(model)
    stats_record = block.__enter__()
    run_in_thread(run, model, model_inputs)
    assert len(stats_record) == 0
    run(model, model_inputs)
    with pytest.warns(UserWarning, match="keywise did not record 2 attention calls of LlamaForCausalLM"):
        block.__exit__(None, None, None)
    assert len(stats_record) == 2


def test_a_thread_in_the_context_of_the_block_is_recorded():
    model, model_inputs = keywise.hf.use(make_model("llama")), make_inputs("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with keywise.hf.record_stats(model) as stats_record:
            run_in_thread(contextvars.copy_context().run, run, model, model_inputs)
    assert len(stats_record) == 2


def test_threads_that_record_the_same_model_do_not_warn():
    model, model_inputs = keywise.hf.use(make_model("llama")), make_inputs("llama")
    inner = []

    def record():
        with keywise.hf.record_stats(model) as stats_record:
            run(model, model_inputs)
        inner.extend(stats_record)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with keywise.hf.record_stats(model) as stats_record:
            run_in_thread(record)
            run(model, model_inputs)
    assert len(inner) == len(stats_record) == 2


def test_segments_behind_the_window_have_mass_zero():
    """A sliding cache holds no key of segments that the window has passed."""
    model = keywise.hf.use(make_model("mistral"))
    with keywise.hf.record_stats(model, segment_bounds=[0, 3, 6], queries=1) as stats_record:
        model.generate(make_inputs("mistral")["input_ids"], max_new_tokens=2, do_sample=False)
    last = stats_record.step(1)[0]
    assert last.first_key == TOKENS + 1 - WINDOW
    assert last.stats.segment_mass.shape == (2, 4, 1, 2)
    assert not last.stats.segment_mass.any()


def test_a_model_with_another_attention_is_refused():
    model = make_model("llama")
    with pytest.raises(keywise.ModelError, match=r"LlamaForCausalLM attends with sdpa; call keywise\.hf\.use\(model\)"):
        keywise.hf.record_stats(model).__enter__()


def test_a_change_of_attention_inside_the_block_is_reported():
    model = keywise.hf.use(make_model("llama"))
    with pytest.raises(keywise.ModelError, match="attends with eager"), keywise.hf.record_stats(model):
        model.set_attn_implementation("eager")


def test_recording_twice_at_once_is_refused():
    model = keywise.hf.use(make_model("llama"))
    with keywise.hf.record_stats(model), pytest.raises(keywise.ModelError, match="model must not be recorded already"):
        keywise.hf.record_stats(model.model).__enter__()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": [0, 7]}, keywise.OptionError, r"layers must be among the model's \[0, 1\], got \[0, 7\]"),
        ({"layers": [-1]}, keywise.OptionError, "layers must be between 0 and .*, got -1"),
        ({"layers": 1}, keywise.DtypeError, "layers must be several integers, .*, got 1"),
        ({"queries": 0}, keywise.OptionError, "queries must be between 1 and .*, got 0"),
        ({"queries": "all"}, keywise.DtypeError, "queries must be an integer, got 'all'"),
        ({"queries": slice(0, 9, 2)}, keywise.OptionError, r"queries must have a step of 1, got slice\(0, 9, 2\)"),
        ({"queries": slice(-3, None)}, keywise.OptionError, r"queries\.start must be between 0 and .*, got -3"),
        ({"heads": [3, 4]}, keywise.OptionError, r"heads must be between 0 and 3, .*self_attn, got \[3, 4\]"),
        ({"heads": "all"}, keywise.DtypeError, "heads must be several integers, .*, got 'all'"),
        ({"top_k": -1}, keywise.OptionError, "top_k must be between 0 and .*, got -1"),
        ({"top_k": 1.5}, keywise.DtypeError, r"top_k must be an integer, got 1\.5"),
        ({"key_mass": 1}, keywise.DtypeError, "key_mass must be True or False, got 1"),
        ({"stop": 1, "layers": [0]}, keywise.DtypeError, "stop must be True or False, got 1"),
        ({"stop": True}, keywise.OptionError, "stop must be False without layers, got True"),
        ({"kind": "both"}, keywise.OptionError, "kind must be 'self' or 'cross', got 'both'"),
        (
            {"segment_bounds": [[0, 3]]},
            keywise.ShapeError,
            r"segment_bounds must have one axis that is not empty, got \[1, 2\]",
        ),
        ({"segment_ids": []}, keywise.ShapeError, r"segment_ids must have one axis that is not empty, got \[0\]"),
        ({"segment_bounds": [0.0, 3.0]}, keywise.DtypeError, "segment_bounds must hold integers, got 'float64'"),
        ({"segment_ids": [-2, 3]}, keywise.OptionError, "segment_ids must be 0 or more, or -1 for none, got -2"),
        (
            {"segment_bounds": [0, 3, 21]},
            keywise.ShapeError,
            "must cover at most the 20 keys that model.layers.0.self_attn sees, got 21",
        ),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, error, message):
    model, model_inputs = keywise.hf.use(make_model("llama")), make_inputs("llama")
    with pytest.raises(error, match=message) as caught, keywise.hf.record_stats(model, **options):
        run(model, model_inputs)
    assert caught.value.argument.partition(".")[0] in {*options, "segment_bounds"}


def test_a_specification_equals_its_keywords():
    model, model_inputs = keywise.hf.use(make_model("llama")), make_inputs("llama")
    options = {"layers": [1], "queries": 2, "top_k": 3, "segment_bounds": SOURCE_BOUNDS}
    spec = keywise.hf.StatsSpec(**options)
    records = []
    for arguments in ({"spec": spec}, {"spec": spec}, options):
        with keywise.hf.record_stats(model, **arguments) as stats_record:
            run(model, model_inputs)
        records.append(stats_record[0].stats)
    assert spec.layers == (1,)
    for name in ("key_mass", "top_keys", "segment_mass"):
        assert all(torch.equal(getattr(records[0], name), getattr(other, name)) for other in records[1:])


def test_a_specification_with_keywords_is_refused():
    model = keywise.hf.use(make_model("llama"))
    with pytest.raises(keywise.OptionError, match="spec cannot be combined with top_k"):
        keywise.hf.record_stats(model, keywise.hf.StatsSpec(), top_k=3).__enter__()
    with pytest.raises(keywise.DtypeError, match=r"spec must be a keywise\.hf\.StatsSpec, got 3"):
        keywise.hf.record_stats(model, 3).__enter__()


def test_selected_heads_equal_those_of_all_heads():
    model, model_inputs = keywise.hf.use(make_model("llama")), make_inputs("llama")
    with keywise.hf.record_stats(model, segment_bounds=SOURCE_BOUNDS) as all_heads:
        run(model, model_inputs)
    with keywise.hf.record_stats(model, heads=[3, 1], segment_bounds=SOURCE_BOUNDS) as two_heads:
        run(model, model_inputs)
    assert [record.heads for record in all_heads] == [(0, 1, 2, 3)] * 2
    assert [record.heads for record in two_heads] == [(1, 3)] * 2
    for every, selected in zip(all_heads, two_heads, strict=True):
        for field in dataclasses.fields(keywise.AttentionStats):
            expected, actual = getattr(every.stats, field.name), getattr(selected.stats, field.name)
            assert actual is None if expected is None else torch.equal(actual, expected[:, [1, 3]]), field.name
