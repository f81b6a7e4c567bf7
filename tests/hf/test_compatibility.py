"""Features of transformers: looked for by name, replaced where a version lacks them, or reported in one line."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import cache_utils, masking_utils

import keywise.hf
from keywise.errors import ModelError
from keywise.hf import cache, compatibility
from keywise.hf.compatibility import REQUIRED_FEATURES
from tests.support.eager_models import EAGER_MODELS, is_exchangeable, is_installed, make_eager_model
from tests.support.models import FAMILIES, make_inputs, make_model

PACKAGE = Path(keywise.__file__).parent
SERVED = {name for name, family in keywise.hf.supported().items() if family.status != "refused"}


def write_package(folder: Path) -> Path:
    """Write a package that has every required feature in its source and cannot be imported."""
    package = folder / "transformers"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "5.4.9"\nraise RuntimeError("imported")\n')
    for module, features in REQUIRED_FEATURES.items():
        path = package.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [feature.replace("(", "(\n    batch_size: int,\n    ") for feature in features]
        path.write_text("\n".join(f"def {name}: ..." if "(" in name else f"{name} = {{}}" for name in names))
    return package


def import_beside(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_features_are_found_without_importing_transformers(tmp_path: Path) -> None:
    write_package(tmp_path)
    done = import_beside(tmp_path, "-c", "import keywise.hf")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("file", "old", "new", "missing"),
    [
        ("masking_utils.py", "q_offset", "cache_position", r"masking_utils\.sdpa_mask\(q_offset\)"),
        ("masking_utils.py", "and_masks = ", "join_masks = ", r"masking_utils\.and_masks"),
        ("utils/output_capturing.py", "_active_collector", "# _active_collector", r"utils\.output_capturing\._active"),
        ("cache_utils.py", None, None, r"cache_utils\.CacheLayerMixin"),
    ],
)
def test_a_missing_feature_is_one_line_when_imported(
    tmp_path: Path, file: str, old: str | None, new: str | None, missing: str
) -> None:
    path = write_package(tmp_path) / file
    if old is None or new is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(old, new))
    code = "import keywise\ntry: import keywise.hf\nexcept keywise.ModelError as error: print(error)"
    done = import_beside(tmp_path, "-c", code)
    expected = rf'transformers must have {missing}.*, which version 5\.4\.9 lacks; .*pip install "transformers>=5\.5'
    assert re.fullmatch(expected + r".*\n", done.stdout), done.stdout + done.stderr


def test_the_command_line_reports_a_missing_feature_in_one_line(tmp_path: Path) -> None:
    (write_package(tmp_path) / "cache_utils.py").unlink()
    done = import_beside(tmp_path, "-m", "keywise", "ask", "Where?", str(tmp_path / "none.txt"))
    assert done.returncode == 2
    assert re.fullmatch(r".*transformers must have cache_utils\..*\n", done.stderr)


@pytest.mark.parametrize("feature", ["and_masks", "sdpa_mask"])
def test_a_feature_missing_from_a_loaded_module_is_found(feature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compatibility.check_features()
    monkeypatch.setattr(masking_utils, feature, lambda cache_position: None)
    if feature == "and_masks":
        monkeypatch.delattr(masking_utils, feature)
    with pytest.raises(
        ModelError, match=f"must have masking_utils.{feature}.*, which version {transformers.__version__}"
    ):
        compatibility.check_features()


def list_transformers_imports(path: Path) -> list[str]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes]
    return [module for module in modules if module.startswith("transformers")]


@pytest.mark.parametrize("layer", ["hf", "models", "documents", "alignment", "server", "torch"])
def test_other_modules_import_only_what_transformers_documents(layer: str) -> None:
    imports = {path.name: list_transformers_imports(path) for path in (PACKAGE / layer).glob("*.py")}
    assert len(imports) > 5
    for name, modules in imports.items():
        assert set(modules) <= {"transformers", "transformers.utils"}, name


def test_names_of_internal_modules_are_required() -> None:
    modules = {"masking_utils", "cache_utils"}
    for path in (PACKAGE / "hf").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                required = {feature.partition("(")[0] for feature in REQUIRED_FEATURES[node.value.id]}
                assert node.attr in required, f"{path.name}: {ast.unparse(node)}"


def test_mask_functions_are_identified_by_their_helper() -> None:
    identify = compatibility.identify_mask_function
    window = masking_utils.sliding_window_causal_mask_function(3)
    name, variables = identify(window)
    assert name == "and_masks"
    assert [identify(part) for part in variables["mask_functions"]] == [
        ("sliding_window_overlay", {"sliding_window": 3}),
        ("causal_mask_function", {}),
    ]
    assert identify(masking_utils.bidirectional_mask_function) == ("bidirectional_mask_function", {})
    assert identify(masking_utils.or_masks(window)) == ("", {})
    assert identify(torch.relu) == ("", {})


@pytest.mark.parametrize("missing", ["DummyLayer", None])
def test_layers_without_keys_are_recognised_if_the_version_has_them(
    missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = getattr(cache_utils, "DummyLayer", cache_utils.DynamicLayer)()
    if missing:
        monkeypatch.delattr(cache_utils, missing, raising=False)
    assert compatibility.stores_nothing(layer) == (missing is None and hasattr(cache_utils, "DummyLayer"))
    assert not compatibility.stores_nothing(cache_utils.DynamicLayer())


def fill_cache() -> Any:
    model = keywise.hf.use(make_model("llama"))
    filled = keywise.hf.Cache(model.config)
    with torch.no_grad():
        model(make_inputs("llama")["input_ids"], past_key_values=filled)
    return filled


def test_crop_takes_what_this_version_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    filled = fill_cache()
    filled.crop(-2)
    assert filled.get_seq_length() == 18
    monkeypatch.setattr(cache, "crops_to_length", lambda: True)
    filled.crop(15)
    assert filled.get_seq_length() == 15
    filled.crop(99)  # more than there are
    filled.crop(-1)
    assert filled.get_seq_length() == 14
    monkeypatch.setattr(cache, "crops_to_length", lambda: False)
    with pytest.raises(keywise.OptionError, match="tokens_to_remove must be 0 or negative, got 3"):
        filled.crop(3)


def test_families_that_this_version_cannot_exchange_are_refused_by_name() -> None:
    refused = set(FAMILIES) - SERVED
    assert refused <= {"t5"}  # served since 5.15
    models = {family: FAMILIES[family].build() for family in refused}
    fixed = {family for family in EAGER_MODELS if is_installed(family) and not is_exchangeable(family)}
    assert fixed <= {"switch_transformers"}
    models |= {family: make_eager_model(family) for family in fixed}
    for family, model in models.items():
        with pytest.raises(ModelError, match=rf"(?i)model must have attention .*{family.replace('_', '')}"):
            keywise.hf.use(model)
