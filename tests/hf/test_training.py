"""Models of transformers that train on keywise: gradients, checkpointing, dropout, trainers, losses on statistics."""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers as hf
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

import keywise as kw
import keywise.hf
from tests.support.models import FAMILIES, TOKENS, make_inputs, make_model

pytestmark = pytest.mark.usefixtures("one_torch_thread")
CHECKPOINTED = {"use_reentrant": False}


def make_trained_model(name, attention):
    """Build a model without dropout that trains with an attention."""
    model = make_model(name)
    if attention == "keywise":
        keywise.hf.use(model)
    else:
        model.set_attn_implementation(attention)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    set_dropout(model, 0.0)
    return model.train()


def set_dropout(model, probability):
    """Set the dropout of the attention weights, which layers of transformers keep under several names."""
    for module in model.modules():
        for attribute in ("dropout", "attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, probability)
        for attribute in ("attn_dropout", "attention_dropout", "dropout"):
            layer = getattr(module, attribute, None)
            if isinstance(layer, torch.nn.Dropout):
                layer.p = probability


def compute_loss(model, inputs):
    logits = model(**inputs).logits
    return logits.log_softmax(-1)[..., 1].mean()


def compute_gradients(model, inputs):
    loss = compute_loss(model, inputs)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), gradients


def check_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_gradients_are_those_of_eager_attention(name):
    inputs = make_inputs(name)
    expected_loss, expected = compute_gradients(make_trained_model(name, "eager"), inputs)
    loss, gradients = compute_gradients(make_trained_model(name, "keywise"), inputs)
    assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    check_gradients(gradients, expected)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "bert", "t5"])
def test_padding_takes_no_gradient(name):
    """The loss reads real tokens alone: rows of padding see no key here, and every key in eager attention."""
    inputs = make_inputs(name, side="right")
    real = inputs["attention_mask"].bool()
    results = []
    for attention in ("eager", "keywise"):
        model = make_trained_model(name, attention)
        logits = model(**inputs).logits
        logits = logits if name == "t5" else logits[real]
        logits.log_softmax(-1)[..., 1].mean().backward()
        results.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    check_gradients(results[1], results[0])


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_checkpointed_gradients_are_the_same(name, use_reentrant):
    inputs = make_inputs(name)
    _, expected = compute_gradients(make_trained_model(name, "keywise"), inputs)
    model = make_trained_model(name, "keywise")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    _, gradients = compute_gradients(model, inputs)
    check_gradients(gradients, expected)


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_dropout_is_repeated_by_checkpointing(name):
    inputs = make_inputs(name)
    results = []
    for is_checkpointed in (False, True):
        model = make_trained_model(name, "keywise")
        set_dropout(model, 0.3)
        if is_checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTED)
        torch.manual_seed(1)
        results.append(compute_gradients(model, inputs))
    assert_close(results[1][0], results[0][0])
    check_gradients(results[1][1], results[0][1])
    _, without = compute_gradients(make_trained_model(name, "keywise"), inputs)
    assert any(not torch.allclose(without[name], gradient) for name, gradient in results[0][1].items())


def test_dropout_acts_without_gradients_too():
    model = make_trained_model("llama", "keywise")
    set_dropout(model, 0.3)
    with torch.no_grad():
        first, second = (model(**make_inputs("llama")).logits for _ in range(2))
    assert not torch.equal(first, second)


# ---- Trainers ----


class Lines(torch.utils.data.Dataset):
    """Token sequences that count upwards."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = (torch.arange(TOKENS) + index) % 60 + 3
        return {"input_ids": ids, "labels": ids}


def train(model, folder, **options):
    arguments = hf.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
        **options,
    )
    trainer = hf.Trainer(model=model, args=arguments, train_dataset=Lines())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["plain", "checkpointed"])
def test_trainer_has_the_losses_of_sdpa(options, tmp_path):
    losses = {
        attention: train(make_trained_model("llama", attention), tmp_path, **options)
        for attention in ("sdpa", "keywise")
    }
    assert len(losses["keywise"]) == 4
    assert losses["keywise"][-1] < losses["keywise"][0]
    assert_close(losses["keywise"], losses["sdpa"], atol=1e-3, rtol=1e-3)


def test_trainer_trains_in_bfloat16(tmp_path):
    losses = train(make_trained_model("llama", "keywise"), tmp_path, bf16=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("is_training", [False, True])
def test_autocast_computes_in_bfloat16(is_training):
    """Rotated queries and keys are float32 there, values bfloat16."""
    logits = {}
    for attention in ("sdpa", "keywise"):
        model = make_trained_model("llama", attention)
        with torch.set_grad_enabled(is_training), torch.autocast("cpu", torch.bfloat16):
            logits[attention] = model(**make_inputs("llama")).logits
    assert_close(logits["keywise"], logits["sdpa"], atol=0.1, rtol=0.1)


def test_lora_has_the_losses_of_sdpa():
    peft = pytest.importorskip("peft", reason="LoRA needs the package peft")
    losses = {}
    for attention in ("sdpa", "keywise"):
        torch.manual_seed(2)
        model = peft.get_peft_model(
            make_trained_model("llama", attention),
            peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.0),
        )
        ids = torch.stack([Lines()[index]["input_ids"] for index in range(4)])
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 1e-2)
        steps = []
        for _ in range(20):
            loss = model(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
        losses[attention] = steps
    assert losses["keywise"][-1] < losses["keywise"][0]
    assert_close(losses["keywise"], losses["sdpa"], atol=1e-3, rtol=1e-3)


# ---- Statistics in a loss ----


def compute_guided_gradients(model, *, is_inside):
    with keywise.hf.record_stats(model, differentiable=True, segment_bounds=[0, 5, TOKENS], top_k=0) as record:
        loss = compute_loss(model, make_inputs("llama"))
        for layer in record:
            loss = loss + layer.stats.segment_mass[..., 0].square().mean() + layer.stats.entropy.mean()
            loss = loss + layer.stats.key_mass.square().mean()
        if is_inside:
            loss.backward()
    if not is_inside:
        loss.backward()
    return record, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_loss_on_recorded_statistics_has_the_gradients_of_eager_weights():
    model = make_trained_model("llama", "eager")
    out = model(**make_inputs("llama"), output_attentions=True)
    loss = out.logits.log_softmax(-1)[..., 1].mean()
    for weights in out.attentions:
        entropy = -torch.where(weights > 0, weights * weights.clamp(min=1e-30).log(), 0).sum(-1)
        loss = loss + weights[..., :5].sum(-1).square().mean() + entropy.mean() + weights.sum(2).square().mean()
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    record, gradients = compute_guided_gradients(make_trained_model("llama", "keywise"), is_inside=False)
    assert len(record) == 2
    for name, gradient in expected.items():
        assert_close(gradients[name], gradient, atol=1e-4, rtol=1e-3)


def test_checkpointed_layers_are_recorded_once_and_have_the_same_gradients():
    _, expected = compute_guided_gradients(make_trained_model("llama", "keywise"), is_inside=True)
    model = make_trained_model("llama", "keywise")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTED)
    record, gradients = compute_guided_gradients(model, is_inside=True)
    assert len(record) == 2
    check_gradients(gradients, expected)


@pytest.mark.parametrize("is_inside", [False, True])
def test_statistics_that_no_loss_uses_do_not_disturb_checkpointing(is_inside):
    model = make_trained_model("llama", "keywise")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTED)
    _, expected = compute_gradients(make_trained_model("llama", "keywise"), make_inputs("llama"))
    with keywise.hf.record_stats(model, segment_bounds=[0, 5, TOKENS]) as record:
        loss = compute_loss(model, make_inputs("llama"))
        if is_inside:
            loss.backward()
    if not is_inside:
        loss.backward()
    assert [layer.step for layer in record] == [0, 0]
    assert not record[0].stats.entropy.requires_grad
    check_gradients({name: each.grad for name, each in model.named_parameters()}, expected)


def test_differentiable_statistics_of_some_queries_and_heads():
    model = make_trained_model("llama", "keywise")
    with keywise.hf.record_stats(model, differentiable=True, layers=[1], heads=[2], queries=3) as record:
        compute_loss(model, make_inputs("llama"))
    assert record[0].stats.lse.shape == (2, 1, 3)
    (record[0].stats.lse.sum() + record[0].stats.entropy.sum()).backward()
    assert model.model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0


def test_differentiable_statistics_without_gradients_are_refused():
    model = make_trained_model("llama", "keywise")
    with (
        torch.no_grad(),
        keywise.hf.record_stats(model, differentiable=True),
        pytest.raises(kw.ModelError, match=r"differentiable must be False where attention has no gradient"),
    ):
        model(**make_inputs("llama"))


def test_differentiable_must_be_a_bool():
    with pytest.raises(kw.DtypeError, match="differentiable must be True or False"):
        keywise.hf.StatsSpec(differentiable=1)


# ---- torch.compile ----


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_compiled_training_steps_have_the_same_gradients(name):
    torch.compiler.reset()
    inputs = make_inputs(name)
    expected_loss, expected = compute_gradients(make_trained_model(name, "keywise"), inputs)
    model = make_trained_model(name, "keywise")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compute_loss(compiled, inputs)
    loss.backward()
    assert_close(loss.detach(), expected_loss, atol=1e-5, rtol=1e-5)
    check_gradients({name: each.grad for name, each in model.named_parameters() if each.grad is not None}, expected)


def test_a_compiled_model_is_compiled_once_for_all_steps():
    torch.compiler.reset()
    model = make_trained_model("llama", "keywise")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(4):
        compute_loss(compiled, make_inputs("llama")).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert counter.frame_count == 1


def test_a_compiled_model_can_be_recorded():
    torch.compiler.reset()
    model = make_trained_model("llama", "keywise").eval()
    compiled = torch.compile(model, backend="aot_eager")
    inputs = make_inputs("llama")
    with torch.no_grad():
        compiled(**inputs)
        with keywise.hf.record_stats(model) as compiled_record:
            compiled(**inputs)
        with keywise.hf.record_stats(model) as record:
            model(**inputs)
    assert len(compiled_record) == len(record) == 2
    for first, second in itertools.zip_longest(compiled_record, record):
        assert_close(first.stats.key_mass, second.stats.key_mass)
