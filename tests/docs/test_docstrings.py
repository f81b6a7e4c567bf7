"""Docstrings of public names: an imperative first line, every argument, the result, errors that exist, an example."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import docstring_parser
import pytest

import keywise.errors

PACKAGES = (
    "keywise",
    "keywise.cache.file",
    "keywise.hf",
    "keywise.torch",
    "keywise.models",
    "keywise.alignment",
    "keywise.documents",
    "keywise.library",
    "keywise.diagnosis",
)
NOT_IMPERATIVE = {"Give", "Gives", "The", "A", "An", "Returns", "Computes", "What", "Where", "Whether", "Says", "Say"}


def is_error(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Exception)


def list_public_names() -> Iterator[tuple[str, Any]]:
    """Yield every public function, class and public method by its dotted name."""
    seen = set()
    for package in PACKAGES:
        module = importlib.import_module(package)
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == package
        ]
        for name in names:
            value = getattr(module, name)
            if inspect.ismodule(value) or value in seen:
                continue
            seen.add(value)
            yield f"{package}.{name}", value
            if inspect.isclass(value) and not is_error(value):
                for method, attribute in vars(value).items():
                    function = getattr(attribute, "__func__", attribute)  # a class method's function
                    if not method.startswith("_") and inspect.isfunction(function):
                        yield f"{package}.{name}.{method}", function


PUBLIC = dict(list_public_names())


def list_sections(value: Any) -> docstring_parser.Docstring:
    return docstring_parser.parse(inspect.getdoc(value) or "", docstring_parser.DocstringStyle.NUMPYDOC)


def list_documented_arguments(value: Any) -> set[str]:
    """Return the names in the Parameters and Attributes sections; one entry may name several."""
    return {name.strip().lstrip("*") for entry in list_sections(value).params for name in entry.arg_name.split(",")}


def list_arguments(value: Any) -> set[str]:
    """Return the arguments of a callable, or the fields of a class without a public constructor."""
    if dataclasses.is_dataclass(value):
        return {field.name for field in dataclasses.fields(value) if not field.name.startswith("_")}
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return set()
    return {name for name in parameters if name not in {"self", "cls", "args", "kwargs"} and not name.startswith("_")}


def test_more_than_60_public_names_are_listed() -> None:
    assert len(PUBLIC) > 60


@pytest.mark.parametrize("name", PUBLIC)
def test_the_first_line_is_an_imperative_sentence(name: str) -> None:
    first = (inspect.getdoc(PUBLIC[name]) or "").partition("\n")[0]
    assert first.endswith("."), first
    assert len(first.split()) <= 16, first
    is_value = inspect.isclass(PUBLIC[name])  # a class is described by a noun
    assert is_value or first.split()[0] not in NOT_IMPERATIVE, first


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_documented(name: str) -> None:
    value = PUBLIC[name]
    if is_error(value):
        return
    documented = list_documented_arguments(value)
    assert not list_arguments(value) - documented, f"documented are {sorted(documented)}"


@pytest.mark.parametrize("name", PUBLIC)
def test_no_argument_is_documented_that_does_not_exist(name: str) -> None:
    value = PUBLIC[name]
    if inspect.isclass(value):  # attributes may be computed
        return
    sections = list_sections(value)
    documented = {
        each.strip().lstrip("*")
        for entry in sections.params
        if entry.args[0] == "param"
        for each in entry.arg_name.split(",")
    }
    assert documented <= list_arguments(value) | {"args", "kwargs", "options", "modules", "partials", "columns"}


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isfunction(value)])
def test_results_are_documented(name: str) -> None:
    annotation = str(inspect.signature(PUBLIC[name]).return_annotation)
    if annotation in {"None", "Self"} or annotation.endswith("Never"):
        return
    doc = inspect.getdoc(PUBLIC[name]) or ""
    says = doc.startswith(("Return ", "Yield ", "Load ", "Open ", "Make ", "List ", "Count ", "Find ", "Read "))
    assert says or "\nReturns\n" in doc or "\nYields\n" in doc, doc.partition("\n")[0]


@pytest.mark.parametrize("name", PUBLIC)
def test_documented_errors_exist(name: str) -> None:
    for entry in list_sections(PUBLIC[name]).raises:
        for error in (entry.type_name or "").split(","):
            kind = getattr(keywise.errors, error.strip(), None) or getattr(builtins, error.strip(), None)
            assert inspect.isclass(kind), error
            assert issubclass(kind, Exception), error


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if not is_error(value)])
def test_there_is_an_example(name: str) -> None:
    owner = PUBLIC.get(name.rpartition(".")[0])
    examples = (inspect.getdoc(PUBLIC[name]) or "") + (inspect.getdoc(owner) or "" if owner is not None else "")
    assert ">>>" in examples, "no example"
