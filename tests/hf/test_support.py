"""Which models are served: those of the allow-list equal eager attention, the others are refused by name."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers as hf

import keywise
from keywise.hf import support
from tests.support.eager_models import EAGER_MODELS, make_eager_inputs, make_eager_model
from tests.support.models import TEXT, make_model

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def compute(model, inputs):
    with torch.no_grad():
        return model(**inputs).last_hidden_state


@pytest.mark.parametrize("family", sorted(support.SERVED_WITHOUT_SDPA))
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_a_family_without_sdpa_equals_eager(family, side):
    if side is not None and EAGER_MODELS[family][1] == "series":
        pytest.skip("time series have no padding")
    model, inputs = make_eager_model(family), make_eager_inputs(family, side)
    model.set_attn_implementation("eager")
    expected = compute(model, inputs)
    keywise.hf.use(model)
    actual = compute(model, inputs)
    if side is not None and actual.shape[:2] == inputs["attention_mask"].shape:
        real = inputs["attention_mask"].bool()
        expected, actual = expected[real], actual[real]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
