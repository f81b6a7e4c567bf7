"""MultiheadAttention against torch.nn.MultiheadAttention, and replace_attention in models of torch."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import keywise as kw
import keywise.torch as kt
from tests.torch.test_functional import draw

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
EMBED_DIM, HEADS, QUERIES, KEYS, BATCH = 8, 2, 4, 5, 3


def make_pair(**options):
    """Return torch's layer and keywise's with the same weights."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(EMBED_DIM, HEADS, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    own = kt.MultiheadAttention(EMBED_DIM, HEADS, **options)
    own.load_state_dict(layer.state_dict())
    return layer, own


def make_masks(name, batch):
    """Return attn_mask and key_padding_mask."""
    attention = draw(QUERIES, KEYS, seed=1) > 0.3
    per_head = draw(batch * HEADS, QUERIES, KEYS, seed=2) > 0.3
    padding = draw(batch, KEYS, seed=3) > 0.3
    attention[:, 0] = per_head[:, :, 0] = padding[:, 0] = False
    as_floats = torch.zeros(batch, KEYS).masked_fill(padding, -torch.inf)
    return {
        "none": (None, None),
        "boolean": (attention, None),
        "per head": (per_head, None),
        "float": (draw(QUERIES, KEYS, seed=4), None),
        "padding": (None, padding),
        "both boolean": (attention, padding),
        "both float": (draw(batch * HEADS, QUERIES, KEYS, seed=5), as_floats),
    }[name]


MASKS = ("none", "boolean", "per head", "float", "padding", "both boolean", "both float")
OPTIONS = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"kdim": 6, "vdim": 10},
    {"kdim": 6, "vdim": 10, "bias": False, "add_bias_kv": True, "batch_first": True},
]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_outputs_weights_and_gradients_are_those_of_torch(options, mask):
    layer, own = make_pair(**options)
    for is_batched, shares_key in itertools.product((True, False), (False, True)):
        batch = BATCH if is_batched else 1
        attn_mask, padding = make_masks(mask, batch)
        padding = padding if is_batched or padding is None else padding[0]
        widths = (EMBED_DIM, options.get("kdim", EMBED_DIM), options.get("vdim", EMBED_DIM))
        if shares_key and len(set(widths)) > 1:
            continue
        inputs = []
        for seed, (tokens, width) in enumerate(zip((QUERIES, KEYS, KEYS), widths, strict=True)):
            shape = (batch, tokens, width) if options.get("batch_first") else (tokens, batch, width)
            inputs.append(draw(*(shape if is_batched else (tokens, width)), seed=seed))
        if shares_key:
            inputs[2] = inputs[1]
        for need_weights, average in ((False, True), (True, True), (True, False)):
            results = []
            for module in (layer, own):
                output, weights = module(
                    *inputs,
                    key_padding_mask=padding,
                    attn_mask=attn_mask,
                    need_weights=need_weights,
                    average_attn_weights=average,
                )
                loss = output.square().sum() + (weights.square().sum() if need_weights else 0)
                results.append((output, weights, torch.autograd.grad(loss, list(module.parameters()))))
            (expected, expected_weights, expected_gradients), (output, weights, gradients) = results
            assert_close(output, expected, **TOLERANCE)
            assert_close(gradients, expected_gradients, atol=2e-4, rtol=1e-3)
            if need_weights:
                assert_close(weights, expected_weights, **TOLERANCE)
            else:
                assert weights is None


@pytest.mark.parametrize("batch_first", [False, True])
def test_self_attention_with_a_causal_hint_is_that_of_torch(batch_first):
    layer, own = make_pair(batch_first=batch_first)
    x = draw(4, 4, EMBED_DIM)
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    padding = torch.zeros(4, 4, dtype=torch.bool)
    padding[2, 3] = True
    for key_padding_mask in (None, padding):
        options = {"attn_mask": causal, "is_causal": True, "key_padding_mask": key_padding_mask, "need_weights": False}
        assert_close(own(x, x, x, **options)[0], layer(x, x, x, **options)[0], **TOLERANCE)


def test_dropout_acts_in_training_alone():
    own = kt.MultiheadAttention(EMBED_DIM, HEADS, dropout=0.5)
    x = draw(6, 2, EMBED_DIM)
    assert not torch.equal(own(x, x, x)[0], own(x, x, x)[0])
    own.eval()
    assert torch.equal(own(x, x, x)[0], own(x, x, x)[0])


def test_statistics_are_returned_and_differentiable():
    own = kt.MultiheadAttention(EMBED_DIM, HEADS, batch_first=True)
    x = draw(BATCH, KEYS, EMBED_DIM)
    output, stats = own(x, x, x, stats=kt.StatsRequest(top_k=2, segment_bounds=[0, 2, KEYS]))
    assert_close(output, own(x, x, x)[0])
    _, weights = own(x, x, x, need_weights=True, average_attn_weights=False)
    assert stats.output is None
    assert_close(stats.key_mass, weights.sum(2))
    assert_close(stats.segment_mass[..., 0], weights[..., :2].sum(-1))
    stats.entropy.sum().backward()
    assert own.in_proj_weight.grad.abs().sum() > 0


def test_statistics_are_chosen_by_a_specification_of_hf_too():
    own = kt.MultiheadAttention(EMBED_DIM, HEADS, batch_first=True)
    x = draw(BATCH, KEYS, EMBED_DIM)
    _, expected = own(x, x, x, stats=kt.StatsRequest(top_k=2, queries=(KEYS - 2, KEYS)))
    _, stats = own(x, x, x, stats=kw.hf.StatsSpec(top_k=2, queries=2))
    assert_close(stats.key_mass, expected.key_mass)
    assert stats.lse.shape == (BATCH, HEADS, 2)
    with pytest.raises(kw.OptionError, match="layers must be None for a single call"):
        own(x, x, x, stats=kw.hf.StatsSpec(layers=[0]))
    with pytest.raises(kw.DtypeError, match=r"stats must be a keywise\.torch\.StatsRequest"):
        own(x, x, x, stats=8)


def make_bad_calls():
    x = torch.ones(3, 1, EMBED_DIM)
    nested = torch.nested.nested_tensor([torch.ones(2, EMBED_DIM), torch.ones(1, EMBED_DIM)])
    request = kt.StatsRequest()
    return {
        "axes": ((x[None], x, x), {}, kw.ShapeError, "query must have 3 axes"),
        "batch": ((x, x.expand(3, 2, EMBED_DIM), x), {}, kw.ShapeError, "key must have the query's batch"),
        "nested": ((nested,) * 3, {}, kw.DtypeError, "query must be a dense tensor"),
        "padding": ((x, x, x), {"key_padding_mask": torch.ones(3, 1, dtype=torch.bool)}, kw.ShapeError, r"\[1, 3\]"),
        "mask": ((x, x, x), {"attn_mask": torch.ones(2, 3)}, kw.ShapeError, r"attn_mask must have shape \[3, 3\] or"),
        "integers": ((x, x, x), {"attn_mask": torch.ones(3, 3).int()}, kw.DtypeError, "attn_mask must be boolean"),
        "hint": ((x, x, x), {"is_causal": True}, kw.OptionError, "is_causal must be False without attn_mask"),
        "both": ((x, x, x), {"need_weights": True, "stats": request}, kw.OptionError, "need_weights must be False"),
    }


@pytest.mark.parametrize("name", make_bad_calls())
def test_bad_arguments_are_refused_by_name(name):
    inputs, options, error, message = make_bad_calls()[name]
    with pytest.raises(error, match=message):
        kt.MultiheadAttention(EMBED_DIM, HEADS)(*inputs, **options)


# ---- replace_attention ----


def make_transformer(**options):
    torch.manual_seed(0)
    model = nn.Transformer(16, 4, 2, 2, 32, dropout=0.0, batch_first=True, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("is_training", [False, True])
def test_a_replaced_transformer_gives_the_same(is_training, norm_first):
    model = make_transformer(norm_first=norm_first).train(is_training)
    replaced = copy.deepcopy(model)
    assert len(kt.replace_attention(replaced).layers) == 6
    source, target = draw(2, 6, 16), draw(2, 5, 16)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    options = {
        "src_key_padding_mask": padding,
        "memory_key_padding_mask": padding,
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(5),
    }
    with torch.set_grad_enabled(is_training):
        assert_close(replaced(source, target, **options), model(source, target, **options), **TOLERANCE)
        hidden = model.encoder(source, src_key_padding_mask=padding)
        assert_close(replaced.encoder(source, src_key_padding_mask=padding)[~padding], hidden[~padding], **TOLERANCE)


def count_calls(monkeypatch, model, *inputs):
    """Return how many layers computed their attention by keywise."""
    from keywise.torch import multihead

    calls = []
    original = multihead.attend_with_projections
    monkeypatch.setattr(multihead, "attend_with_projections", lambda *a, **k: calls.append(1) or original(*a, **k))
    with torch.no_grad():
        model(*inputs)
    return len(calls)


def test_the_fused_kernel_of_encoder_layers_is_not_called(monkeypatch):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, batch_first=True), 3).eval()
    kt.replace_attention(model)
    assert count_calls(monkeypatch, model, draw(2, 6, 16), None, torch.zeros(2, 6, dtype=torch.bool)) == 3


def test_an_encoder_layer_with_a_layer_of_keywise_calls_it(monkeypatch):
    layer = nn.TransformerEncoderLayer(16, 4, batch_first=True).eval()
    layer.self_attn = kt.MultiheadAttention(16, 4, batch_first=True).eval()
    assert count_calls(monkeypatch, layer, draw(2, 6, 16)) == 1


def test_weights_hooks_and_mode_are_kept():
    model = make_transformer().eval()
    layer = model.encoder.layers[0].self_attn
    calls = []
    layer.register_forward_hook(lambda *_: calls.append("hook"))
    parameters = list(model.parameters())
    keys = list(model.state_dict())
    kt.replace_attention(model)
    assert model.encoder.layers[0].self_attn is layer
    assert isinstance(layer, kt.MultiheadAttention)
    assert not layer.training
    assert all(first is second for first, second in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == keys
    model.encoder(draw(1, 3, 16))
    assert calls == ["hook"]


def test_a_second_replacement_changes_nothing():
    model = make_transformer()
    kt.replace_attention(model)
    assert kt.replace_attention(model) == kt.Replacement([], {})


class Own(nn.MultiheadAttention):
    """A layer with a forward of its own."""


def test_subclasses_are_kept_and_named():
    model = nn.ModuleDict({"own": Own(8, 2), "plain": nn.MultiheadAttention(8, 2)})
    replacement = kt.replace_attention(model)
    assert replacement.layers == ["plain"]
    assert replacement.kept == {"own": "Own is a subclass of torch.nn.MultiheadAttention"}
    assert type(model["own"]) is Own


def test_other_objects_are_refused():
    with pytest.raises(kw.DtypeError, match=r"model must be a torch\.nn\.Module, got a list"):
        kt.replace_attention([])


def test_replaced_layers_can_be_copied_and_pickled():
    model = make_transformer()
    kt.replace_attention(model)
    source, target = draw(1, 3, 16), draw(1, 2, 16)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert_close(other(source, target), model(source, target))


class SmallDetector(nn.Module):
    """The attention of DETR: features of an image, encoder, and learned queries in the decoder."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 16, 4, stride=4)
        self.transformer = nn.Transformer(16, 4, 1, 2, 32, dropout=0.0)
        self.queries = nn.Parameter(torch.randn(7, 16))
        self.positions = nn.Parameter(torch.randn(16, 16))
        self.classes = nn.Linear(16, 5)

    def forward(self, images):
        features = self.backbone(images).flatten(2).permute(2, 0, 1)
        queries = self.queries[:, None].expand(-1, images.shape[0], -1)
        return self.classes(self.transformer(features + self.positions[:, None], queries))


def test_a_detector_trains_the_same():
    torch.manual_seed(0)
    model = SmallDetector()
    replaced = copy.deepcopy(model)
    kt.replace_attention(replaced)
    images = draw(2, 3, 16, 16)
    losses = []
    for each in (model, replaced):
        optimizer = torch.optim.Adam(each.parameters(), 1e-3)
        steps = []
        for _ in range(5):
            loss = nn.functional.cross_entropy(each(images).flatten(0, 1), torch.arange(14) % 5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
        losses.append(steps)
    assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-4)


def test_a_compiled_layer_gives_the_same():
    torch.compiler.reset()
    own = kt.MultiheadAttention(EMBED_DIM, HEADS, batch_first=True)
    x = draw(2, 5, EMBED_DIM)
    compiled = torch.compile(own, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, x, x)[0], own(x, x, x)[0], **TOLERANCE)
