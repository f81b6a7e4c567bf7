"""Rules of docs/design.md that no linter checks: what may be imported where, one definition, the cost of importing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "keywise"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Parsed before any test starts threads: in CPython 3.11, ast.parse in two threads at once may raise SystemError.
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
NATIVE = sorted(path for path in (ROOT / "native").rglob("*") if path.suffix in {".h", ".cpp"})


def get_layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def get_relative_name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def list_imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, inside functions too; `from a import b` as a.b."""
    package = ["keywise", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_only_attention_native_imports_the_native_module() -> None:
    importers = {
        get_relative_name(path) for path in MODULES if any("_native" in module for module in list_imports(path))
    }
    assert importers == {"attention/native.py"}


def list_calls(path: Path) -> Iterator[str]:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            yield node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id


def test_only_the_definition_partials_and_spans_compute_exponentials() -> None:
    exponentials = {"exp", "exp2", "expm1", "logaddexp", "logsumexp", "softmax", "log_softmax"}
    writers = {get_relative_name(path) for path in MODULES if exponentials & set(list_calls(path))}
    # Partials rescale by exp of a difference of maxima. Spans and answers compare the probabilities of next tokens.
    others = {"attention/partial.py", "documents/answer_model.py", "documents/spans.py"}
    assert writers == {"attention/reference.py", *others}


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if get_layer(path) in {"attention", "cache", "errors", "util"}],
    ids=get_relative_name,
)
def test_attention_and_cache_import_numpy_alone(path: Path) -> None:
    foreign = (
        {module.split(".")[0] for module in list_imports(path)} - set(sys.stdlib_module_names) - {"keywise", "numpy"}
    )
    # ml_dtypes: NumPy's bfloat16 arrays; zlib_ng: a faster CRC-32 if installed; platformdirs: the cache folder.
    assert foreign <= {"ml_dtypes", "zlib_ng", "platformdirs"}


def find_heavy_imports(path: Path) -> set[str]:
    """Return the heavy packages that importing the file itself would import."""
    found = set()
    for node in TREES[path].body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    models = {
        "torch",
        "transformers",
        "accelerate",
        "gguf",
        "safetensors",
        "docx",
        "pptx",
        "openpyxl",
        "pypdfium2",
        "lxml",
    }
    return found & (models | {"jax", "llama_cpp", "matplotlib", "onnx", "onnxruntime", "openvino", "rank_bm25"})


# Classes of torch and transformers are extended here; these modules are imported when they are needed.
LAZY_MODULES = {
    "hf/attention.py",
    "hf/cache.py",
    "hf/joined.py",
    "hf/masks.py",
    "models/gguf_weights.py",
    "models/quantised.py",
    *(get_relative_name(path) for path in MODULES if get_layer(path) == "torch"),
}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if get_relative_name(path) not in LAZY_MODULES], ids=get_relative_name
)
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    assert not find_heavy_imports(path)


def list_swallowing_handlers(path: Path) -> Iterator[str]:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ExceptHandler):
            caught = "everything" if node.type is None else ast.unparse(node.type)
            raises = isinstance(node.body[-1], ast.Raise)
            if caught == "everything" or (caught in {"Exception", "BaseException"} and not raises):
                yield f"line {node.lineno} catches {caught}"


@pytest.mark.parametrize("path", MODULES, ids=get_relative_name)
def test_no_handler_swallows_every_exception(path: Path) -> None:
    assert not list(list_swallowing_handlers(path))


def test_only_native_python_includes_python_headers() -> None:
    including = {
        path.parent.name
        for path in NATIVE
        if re.search(r"#\s*include\s*[<\"](nanobind|Python\.h|pybind)|Py_|PyObject", path.read_text(encoding="utf-8"))
    }
    assert including == {"python"}


def test_every_target_compiles_the_same_kernel() -> None:
    targets = [path for path in NATIVE if path.parent.name == "targets" and path.suffix == ".cpp"]
    assert len(targets) >= 4
    for path in targets:
        text = path.read_text(encoding="utf-8")
        assert f"#define KEYWISE_TARGET {path.stem}\n" in text, path.name
        assert re.findall(r'#include "([^"]+)"', text) == ["../make_target.h"], path.name
        assert path.with_suffix(".h").exists(), path.name


def test_no_compiler_flag_changes_arithmetic_or_requires_the_build_machine() -> None:
    build = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert not re.search(r"-ffast-math|-Ofast|-march=native|-funsafe-math|-ffinite-math", build)


@pytest.mark.serial
def test_importing_keywise_is_quick_and_loads_neither_torch_nor_the_network() -> None:
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
