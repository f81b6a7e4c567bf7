"""The model classes of the installed transformers, by family (the folder of its source)."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import transformers as hf

# Families without a modeling file of their own, and folders that hold no models.
SKIPPED = frozenset({"auto", "deprecated", "dialogpt"})


def list_families() -> list[str]:
    """Return the names of the folders with models, sorted."""
    folder = Path(hf.__file__).parent / "models"
    names = {path.parent.name for path in folder.glob("*/modeling_*.py")}
    return sorted(names - SKIPPED)


def list_classes(family: str) -> list[type[Any]]:
    """Return the concrete model classes of a family, base models before their heads."""
    folder = Path(hf.__file__).parent / "models" / family
    classes: list[type[Any]] = []
    for path in sorted(folder.glob("modeling_*.py")):
        module = importlib.import_module(f"transformers.models.{family}.{path.stem}")
        classes += [
            value
            for value in vars(module).values()
            if inspect.isclass(value) and value.__module__ == module.__name__ and _is_concrete(value)
        ]
    return sorted(classes, key=lambda cls: ("For" in cls.__name__, cls.__name__))


def _is_concrete(cls: type[Any]) -> bool:
    # Wrappers and stacks only carry weights for the classes that are listed.
    is_inner = cls.__name__.endswith(("PreTrainedModel", "PretrainedModel", "DecoderWrapper", "Stack"))
    if is_inner or not issubclass(cls, hf.PreTrainedModel):
        return False
    # A base class does not define the work; its subclasses do.
    return cls.forward is not hf.PreTrainedModel.forward and cls.config_class is not None


def find_model_type(cls: type[Any]) -> str:
    """Return the model type of a class's configuration."""
    return str(getattr(cls.config_class, "model_type", "") or cls.__module__.split(".")[2])


def has_class(family: str, name: str) -> bool:
    """Return whether a family's source defines a class, without importing it."""
    folder = Path(hf.__file__).parent / "models" / family
    return any(f"\nclass {name}(" in path.read_text(encoding="utf-8") for path in folder.glob("modeling_*.py"))
