"""The house plan held by tests: layers, the seams to native code and to Python, and what importing keywise costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import keywise as kw

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "keywise"
MODULES = sorted(PACKAGE.rglob("*.py"))
NATIVE = sorted(path for path in (ROOT / "native").rglob("*") if path.suffix in {".h", ".cpp"})

# What each layer may import, besides itself and the errors.
BELOW = {
    "errors": set(),
    "attention": set(),
    "cache": {"attention"},
    "hf": {"attention", "cache"},
    "documents": {"attention", "cache", "hf"},
    "memory": {"attention", "cache", "hf", "documents"},
    "diagnosis": {"attention", "hf"},
}
EVERYTHING = {"__init__", "__main__", "bench", "cli"}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Give every module that a file imports, inside functions too; `from a import b` as a.b."""
    package = ["keywise", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer_imported(module: str) -> str | None:
    """Tell which layer of keywise an imported name lives in; the public names live in attention, but for two."""
    parts = module.split(".")
    if parts[0] != "keywise":
        return None
    if len(parts) == 1:
        return "__init__"
    if parts[1] in BELOW or parts[1] in EVERYTHING:
        return parts[1]
    if elsewhere := {"KVCache": "cache", "Library": "memory"}.get(parts[1]):
        return elsewhere
    return "errors" if parts[1].endswith("Error") else "attention"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_layers_point_one_way(path: Path) -> None:
    layer = layer_of(path)
    if layer in EVERYTHING:
        return
    assert layer in BELOW, f"{layer} is not in the plan"
    allowed = {layer, "errors"} | BELOW[layer]
    wrong = {module for module in imports(path) if layer_imported(module) not in allowed | {None}}
    assert not wrong, f"{name_of(path)} imports {sorted(wrong)}; {layer} may use {sorted(allowed)}"


def test_the_layers_of_the_plan_exist() -> None:
    there = {layer_of(path) for path in MODULES}
    assert {"attention", "cache", "hf", "documents", "memory", "diagnosis", "errors"} <= there


def test_only_the_command_line_uses_the_benchmarks() -> None:
    users = {layer_of(path) for path in MODULES if "bench" in {layer_imported(module) for module in imports(path)}}
    assert users == {"bench", "cli"}


def test_only_kernels_imports_the_native_module() -> None:
    importers = {name_of(path) for path in MODULES if any("_native" in module for module in imports(path))}
    assert importers == {"attention/kernels.py"}


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            yield node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id


def test_only_the_definition_writes_a_softmax_out() -> None:
    exponentials = {"exp", "exp2", "expm1", "logaddexp", "logsumexp", "softmax", "log_softmax"}
    writers = {name_of(path) for path in MODULES if exponentials & set(calls(path))}
    # Partials rescale by exp(peak - peak): the algebra at the centre. A rival is what users of torch write themselves.
    # Perplexity is the exponential of a mean loss. NumPy is a rival of libraries. Next tokens have probabilities too.
    assert writers == {
        "attention/reference.py",
        "attention/partial.py",
        "bench/cache.py",
        "bench/library.py",
        "bench/rivals/pytorch.py",
        "documents/passage.py",
    }


@pytest.mark.parametrize(
    "path", [path for path in MODULES if layer_of(path) in {"attention", "cache", "errors"}], ids=name_of
)
def test_attention_and_cache_stand_on_numpy_alone(path: Path) -> None:
    foreign = {module.split(".")[0] for module in imports(path)} - set(sys.stdlib_module_names) - {"keywise", "numpy"}
    # NumPy's own bfloat16, needed by those alone who hold such arrays; a faster CRC-32 where it is installed.
    assert foreign <= {"ml_dtypes", "zlib_ng"}


def heavy_imports_on_load(path: Path) -> set[str]:
    """Give the heavy packages that importing the file itself would import."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    models = {"torch", "transformers", "accelerate", "gguf", "safetensors", "markitdown"}
    return found & (models | {"jax", "llama_cpp", "matplotlib", "onnx", "onnxruntime", "openvino", "rank_bm25"})


# Classes of torch and transformers are extended here; `keywise.hf` imports these modules when they are needed.
LAZY_MODULES = {"hf/attention.py", "hf/cache.py", "hf/joined.py", "hf/masks.py"}


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path) not in LAZY_MODULES], ids=name_of)
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    assert not heavy_imports_on_load(path)


def caught(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            yield "everything" if node.type is None else ast.unparse(node.type)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_error_is_swallowed_wholesale(path: Path) -> None:
    assert not {"everything", "Exception", "BaseException"} & set(caught(path))


def test_only_the_bindings_know_python() -> None:
    knowing = {
        path.name
        for path in NATIVE
        if re.search(r"#\s*include\s*[<\"](nanobind|Python\.h|pybind)|Py_|PyObject", path.read_text(encoding="utf-8"))
    }
    assert knowing == {"bindings.cpp"}


def test_the_kernel_is_written_once() -> None:
    targets = [path for path in NATIVE if path.parent.name == "targets" and path.suffix == ".cpp"]
    assert len(targets) >= 4
    for path in targets:
        included = re.findall(r'#include "(?:\.\./)?([\w.]+)"', path.read_text(encoding="utf-8"))
        through = [ROOT / "native" / "targets" / name for name in included if name != "attend.inl.h"]
        text = "".join(other.read_text(encoding="utf-8") for other in [path, *through] if other.exists())
        assert "attend.inl.h" in text, path.name


def test_no_flag_changes_arithmetic_or_the_floor_of_the_wheel() -> None:
    build = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert not re.search(r"-ffast-math|-Ofast|-march=native|-funsafe-math|-ffinite-math", build)


def test_importing_keywise_is_quick_and_touches_neither_torch_nor_the_network() -> None:
    code = """
import sys, time
sys.addaudithook(lambda event, _: sys.exit(event) if event.startswith("socket.") else None)
start = time.perf_counter()
import numpy
middle = time.perf_counter()
import keywise
print(time.perf_counter() - middle)
heavy = {"torch", "transformers", "ml_dtypes", "lance", "pyarrow", "ray", "pandas", "urllib.request", "http.client"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    seconds = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 0.1, f"importing keywise on top of NumPy took {min(seconds):.3f} s at best"


def test_the_public_names_are_there_and_described() -> None:
    for name in kw.__all__:
        assert getattr(kw, name).__doc__, f"keywise.{name} has no docstring"


def test_docstrings_of_public_functions_have_examples() -> None:
    for name in (
        "attend",
        "read",
        "partial",
        "merge",
        "Mask",
        "AttentionStats",
        "KVCache",
        "Library",
        "targets",
        "using",
        "explain",
        "set_threads",
    ):
        assert ">>>" in (getattr(kw, name).__doc__ or ""), f"keywise.{name} shows no example"
