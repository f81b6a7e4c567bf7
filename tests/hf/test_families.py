"""A sample of the families against eager attention, and the list of all of them. `make families` walks them all."""

from __future__ import annotations

import json

import pytest
import transformers as hf

import keywise.hf
from keywise.hf import families, support
from tests.families import check, table, walk
from tests.support.eager_models import is_exchangeable

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SAMPLE = (
    "LlamaForCausalLM",
    "GptOssForCausalLM",
    "BertModel",
    "T5ForConditionalGeneration",
    "WhisperForConditionalGeneration",
    "CLIPModel",
    "ViTModel",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_family_equals_eager(name):
    family = support.get_family(getattr(hf, name))
    if not is_exchangeable(family):
        pytest.skip(f"transformers {hf.__version__} cannot exchange the attention of {family}")
    for verdict in check.check_class(getattr(hf, name)):
        assert verdict.status == "served", verdict
        assert verdict.calls, verdict
        assert max(verdict.errors.values()) <= check.TOLERANCE, verdict
        # Otherwise the equality above would prove nothing.
        assert verdict.sensitivity > 100 * check.TOLERANCE, verdict


def test_a_wrong_attention_is_unequal(monkeypatch):
    keywise.hf.register()
    interface = hf.AttentionInterface._global_mapping
    forward = interface["keywise"]

    def forget_the_mask(module, query, key, value, attention_mask, **kwargs):
        return forward(module, query, key, value, None, **kwargs)

    monkeypatch.setattr(keywise.hf.plugin, "register", lambda: None)
    monkeypatch.setitem(interface, "keywise", forget_the_mask)
    (verdict, *_) = check.check_class(hf.BertModel)
    assert verdict.status == "unequal"
    assert "padding: differs from eager" in verdict.reason


def test_a_family_with_attention_of_its_own_is_refused():
    (verdict,) = check.check_class(hf.XLNetModel)
    assert verdict.status == "refused"
    assert "XLNet" in verdict.reason


def test_a_process_that_ends_is_reported(monkeypatch):
    monkeypatch.setattr(check, "check_class", lambda _: __import__("os")._exit(3))
    verdicts = walk.check_family("xlnet", "XLNetModel")
    assert [verdict["reason"] for verdict in verdicts] == ["the process ended with 3"]


def test_supported_lists_every_installed_family():
    found = keywise.hf.supported()
    assert list(found) == sorted(hf.CONFIG_MAPPING)
    assert found["llama"] == ("served", "", json.loads(families.TABLE.read_text())["transformers"])
    assert found["xlnet"].status == "refused"
    assert found["xlnet"].reason


def test_families_that_another_version_refused_are_unknown_where_they_call_the_interface(monkeypatch):
    version = json.loads(families.TABLE.read_text())["transformers"]
    monkeypatch.setattr(hf, "__version__", "5.99.0")
    families._list_families.cache_clear()
    try:
        found = keywise.hf.supported()
    finally:
        families._list_families.cache_clear()
    assert found["sam"].status == "unknown"
    assert found["sam"].reason.startswith(f"not tested; refused with transformers {version}: ")
    assert found["xlnet"].status == "refused"


def test_no_family_of_the_table_is_unequal():
    tested = json.loads(families.TABLE.read_text(encoding="utf-8"))
    assert not [name for name, entry in tested["families"].items() if entry["status"] == "unequal"]


def test_the_page_is_made_from_the_table(pytestconfig):
    tested = json.loads(families.TABLE.read_text(encoding="utf-8"))
    page = (pytestconfig.rootpath / "docs" / "families.md").read_text(encoding="utf-8")
    assert page == table.render(tested)
