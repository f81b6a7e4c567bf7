"""Readings of models at work against the weights that eager attention gives out."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
import transformers as hf

import keywise
from keywise.hf import stats_record as readings_module
from tests.support.models import DECODERS, ENCODER_DECODERS, FAMILIES, TOKENS, WINDOW, inputs, make

TOLERANCE = 2e-5

pytestmark = pytest.mark.usefixtures("one_torch_thread")


SOURCE_BOUNDS = [2, 5, 6, 13, 20]


def run(model, given, **options):
    with torch.no_grad():
        return model(**given, **options)


def eager_weights(model, given):
    """Give the weights of every attention layer in the order in which the layers run: encoder, then decoder."""
    model.set_attn_implementation("eager")
    out = run(model, given, output_attentions=True)
    keywise.hf.use(model)
    if getattr(out, "attentions", None) is not None:
        return list(out.attentions)
    pairs = zip(out.decoder_attentions, out.cross_attentions, strict=True)
    return [*out.encoder_attentions, *(layer for pair in pairs for layer in pair)]


def entropy_of(weights):
    return -torch.where(weights > 0, weights * weights.clamp(min=1e-45).log(), 0.0).sum(-1)


def compare(stats, weights, ids=None, top=0):
    """Hold one reading against the weights [B, H, rows, keys] of the rows it read."""
    close = {"rtol": 0, "atol": TOLERANCE}
    torch.testing.assert_close(stats.key_mass, weights.sum(2), **close)
    torch.testing.assert_close(stats.entropy, entropy_of(weights), rtol=0, atol=5 * TOLERANCE)
    if top:
        heaviest = weights.topk(top, -1)
        torch.testing.assert_close(stats.top_weights, heaviest.values, **close)
        torch.testing.assert_close(stats.top_mass, heaviest.values.sum(-1), **close)
        found = weights.gather(-1, stats.top_keys.long().clamp(min=0)) * (stats.top_keys >= 0)
        torch.testing.assert_close(found, heaviest.values, **close)
    if ids is not None:
        per_segment = [weights[..., ids == segment].sum(-1) for segment in range(max(ids) + 1)]
        torch.testing.assert_close(stats.segment_mass, torch.stack(per_segment, -1), **close)
    else:
        assert stats.segment_mass is None


@pytest.mark.parametrize("large_bytes", [0, readings_module.LARGE_BYTES])
@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_equals_eager_weights(name, large_bytes, monkeypatch):
    monkeypatch.setattr(readings_module, "LARGE_BYTES", large_bytes)
    model, given = make(name), inputs(name)
    expected = eager_weights(model, given)
    with keywise.hf.record_stats(model, top_k=3) as stats_record:
        run(model, given)
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


def test_lse_is_that_of_the_scores():
    """A sink takes exp(sink - lse) of a row and the keys the rest, which gives lse away."""
    model, given = keywise.hf.use(make("gpt_oss")), inputs("gpt_oss")
    with keywise.hf.record_stats(model, top_k=TOKENS) as stats_record:
        run(model, given)
    for record, layer in zip(stats_record, model.model.layers, strict=True):
        taken = (layer.self_attn.sinks.detach()[None, :, None] - record.stats.lse).exp()
        assert taken.mean() > 0.01
        torch.testing.assert_close(record.stats.top_mass, 1 - taken, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", DECODERS)
def test_left_padding(name):
    model, given = make(name), inputs(name, "left")
    expected = eager_weights(model, given)
    real = given["attention_mask"].bool()
    with keywise.hf.record_stats(model) as stats_record:
        run(model, given)
    for record, weights in zip(stats_record, expected, strict=True):
        assert not record.stats.key_mass.transpose(1, 2)[~real].any()
        assert record.stats.lse.transpose(1, 2)[~real].isneginf().all()
        # A row of padding has no keys for us and every key for eager: only real rows are alike.
        compare_rows = weights * real[:, None, :, None]
        torch.testing.assert_close(record.stats.key_mass, compare_rows.sum(2), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_segments(name):
    model, given = make(name), inputs(name)
    expected = eager_weights(model, given)
    source = name in ENCODER_DECODERS
    bounds = SOURCE_BOUNDS if name != "vit" else [0, 1, 9, 17]
    ids = np.full(expected[-1].shape[-1], -1)
    for segment in range(len(bounds) - 1):
        ids[bounds[segment] : bounds[segment + 1]] = segment
    for segments in ({"segment_bounds": bounds}, {"segment_ids": ids}):
        with keywise.hf.record_stats(model, **segments, kind="cross" if source else None) as stats_record:
            run(model, given)
        wanted = expected[3::2] if source else expected
        assert len(stats_record) == len(wanted) > 0
        for record, weights in zip(stats_record, wanted, strict=True):
            compare(record.stats, weights, ids=ids)


def eager_steps(model, prompt):
    model.set_attn_implementation("eager")
    out = model.generate(
        **prompt, max_new_tokens=8, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )
    keywise.hf.use(model)
    return out


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoding_step_equals_eager_weights(name):
    model = make(name)
    prompt = {"input_ids": inputs(name)["input_ids"]}
    expected = eager_steps(model, prompt)
    with keywise.hf.record_stats(model, segment_bounds=SOURCE_BOUNDS, top_k=2) as stats_record:
        found = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert torch.equal(found, expected.sequences)
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
            compare(keywise_without_segments(record.stats), weights, top=2)
    if name in {"mistral", "gemma2", "gpt_oss"}:
        assert min(record.stats.key_mass.shape[-1] for record in stats_record) == WINDOW


def keywise_without_segments(stats):
    return keywise.AttentionStats(**{**vars(stats), "segment_mass": None})


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_decoding_steps_with_an_encoder(name):
    model, given = make(name), inputs(name)
    prompt = {key: value for key, value in given.items() if key != "decoder_input_ids"}
    expected = eager_steps(model, prompt)
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
    ("rows", "expected"),
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
def test_rows(rows, expected):
    model, given = make("llama"), inputs("llama")
    weights = eager_weights(model, given)
    with keywise.hf.record_stats(model, queries=rows) as stats_record:
        run(model, given)
    assert len(stats_record) == 2
    for record, layer in zip(stats_record, weights, strict=True):
        assert record.queries == expected
        assert record.stats.lse.shape[2] == expected[1] - expected[0]
        compare(record.stats, layer[:, :, slice(*expected)])


@pytest.mark.parametrize("cache", [hf.DynamicCache, hf.StaticCache])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_rows_by_position_across_chunks(name, cache):
    model, given = make(name), inputs(name)
    weights = eager_weights(model, given)
    past = cache(config=model.config, **({} if cache is hf.DynamicCache else {"max_cache_len": 24}))
    with keywise.hf.record_stats(model, queries=slice(5, 12), layers=[1]) as stats_record:
        for start, stop in ((0, 4), (4, 10), (10, 11), (11, 12), (12, 20)):
            run(model, {"input_ids": given["input_ids"][:, start:stop]}, past_key_values=past)
    assert [record.queries for record in stats_record] == [(5, 10), (10, 11), (11, 12)]
    assert [record.step for record in stats_record] == [1, 2, 3]
    for record in stats_record:
        mass = torch.zeros_like(weights[1][:, :, 0])
        keys = min(record.stats.key_mass.shape[-1], TOKENS - record.first_key)
        mass[..., record.first_key : record.first_key + keys] = record.stats.key_mass[..., :keys]
        torch.testing.assert_close(mass, weights[1][:, :, slice(*record.queries)].sum(2), rtol=0, atol=TOLERANCE)


def test_what_is_not_asked_for_is_not_kept():
    model, given = keywise.hf.use(make("llama")), inputs("llama")
    with keywise.hf.record_stats(model, layers=[1], key_mass=False) as stats_record:
        run(model, given)
    assert [record.name for record in stats_record] == ["model.layers.1.self_attn"]
    assert stats_record[0].stats.key_mass is None
    assert stats_record[0].stats.top_keys.shape[-1] == 0
    assert stats_record[0].stats.segment_mass is None
    assert len(stats_record.layer(0)) == 0
    assert len(stats_record.layer(1)) == len(stats_record[:1]) == 1


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_reading_stops_after_the_last_layer_asked_for(name):
    model, given = keywise.hf.use(make(name)), inputs(name)
    ran = []
    hooks = [layer.mlp.register_forward_hook(lambda *_: ran.append(1)) for layer in model.model.layers]
    with keywise.hf.record_stats(model, layers=[0], stop=True) as stats_record:
        run(model, given)
        pytest.fail("the model ran to its end")
    assert ran == []
    with keywise.hf.record_stats(model, layers=[0]) as whole:
        after = run(model, given).logits
    assert len(ran) == len(hooks)
    assert torch.equal(stats_record[0].stats.key_mass, whole[0].stats.key_mass)
    assert torch.equal(after, run(model, given).logits)


def test_reading_changes_nothing():
    model, given = keywise.hf.use(make("gemma2")), inputs("gemma2", "left")
    before = run(model, given).logits
    with keywise.hf.record_stats(model, top_k=4, segment_bounds=SOURCE_BOUNDS):
        during = run(model, given).logits
    assert torch.equal(before, during)


def test_only_this_model_in_this_block_is_read():
    one, other = keywise.hf.use(make("llama")), keywise.hf.use(make("mistral"))
    given = inputs("llama")
    with keywise.hf.record_stats(one) as of_one:
        run(other, given)
        with keywise.hf.record_stats(other, layers=[0]) as of_other:
            run(one, given)
            run(other, given)
        run(other, given)
    run(one, given)
    assert [record.layer for record in of_one] == [0, 1]
    assert [record.layer for record in of_other] == [0]


def test_another_thread_is_not_read():
    model, given = keywise.hf.use(make("llama")), inputs("llama")
    with keywise.hf.record_stats(model) as stats_record:
        thread = threading.Thread(target=run, args=(model, given))
        thread.start()
        thread.join()
        assert len(stats_record) == 0
        run(model, given)
    assert len(stats_record) == 2


def test_segments_behind_the_window_get_nothing():
    """Decoding far behind the segments, a sliding cache holds none of their keys."""
    model = keywise.hf.use(make("mistral"))
    with keywise.hf.record_stats(model, segment_bounds=[0, 3, 6], queries=1) as stats_record:
        model.generate(inputs("mistral")["input_ids"], max_new_tokens=2, do_sample=False)
    last = stats_record.step(1)[0]
    assert last.first_key == TOKENS + 1 - WINDOW
    assert last.stats.segment_mass.shape == (2, 4, 1, 2)
    assert not last.stats.segment_mass.any()


def test_a_model_that_does_not_attend_by_keywise_is_refused():
    model = make("llama")
    with pytest.raises(keywise.ModelError, match=r"LlamaForCausalLM attends by .*keywise\.hf\.use\(model\)"):
        keywise.hf.record_stats(model).__enter__()


def test_a_model_that_leaves_keywise_while_read_is_reported():
    model = keywise.hf.use(make("llama"))
    with pytest.raises(keywise.ModelError, match="attends by"), keywise.hf.record_stats(model):
        model.set_attn_implementation("eager")


def test_reading_twice_at_once_is_refused():
    model = keywise.hf.use(make("llama"))
    with keywise.hf.record_stats(model), pytest.raises(keywise.ModelError, match="is being read already"):
        keywise.hf.record_stats(model.model).__enter__()


@pytest.mark.parametrize(
    ("choice", "error", "says"),
    [
        ({"layers": [0, 7]}, keywise.OptionError, r"no layer 7; it has \[0, 1\]"),
        ({"layers": [-1]}, keywise.OptionError, "layers=-1"),
        ({"layers": 1}, keywise.DtypeError, "layers=1"),
        ({"queries": 0}, keywise.OptionError, "rows=0"),
        ({"queries": "all"}, keywise.DtypeError, "rows='all'"),
        ({"queries": slice(0, 9, 2)}, keywise.OptionError, "step of 1"),
        ({"queries": slice(-3, None)}, keywise.OptionError, r"rows\.start=-3"),
        ({"top_k": -1}, keywise.OptionError, "top=-1"),
        ({"top_k": 1.5}, keywise.DtypeError, r"top=1\.5"),
        ({"key_mass": 1}, keywise.DtypeError, "key_mass=1"),
        ({"stop": 1, "layers": [0]}, keywise.DtypeError, "stop=1"),
        ({"stop": True}, keywise.OptionError, "stop=True with layers=None"),
        ({"kind": "both"}, keywise.OptionError, "kind='both'"),
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
            "the segments cover 21 tokens and model.layers.0.self_attn sees 20",
        ),
    ],
)
def test_choices_that_cannot_be_used(choice, error, says):
    model, given = keywise.hf.use(make("llama")), inputs("llama")
    with pytest.raises(error, match=says), keywise.hf.record_stats(model, **choice):
        run(model, given)
