"""Check a transformers model's training mode and the settings of its attention layers."""

# ruff: noqa: PLC0415  (torch is slow to import, or absent: only calls need it)

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from keywise.diagnosis.findings import Location
from keywise.diagnosis.results import CheckResults


def check_dropout(model: Any) -> CheckResults:
    """Check that no layer with dropout is in training mode."""
    results = CheckResults()
    active = [name for name, module in model.named_modules() if module.training and _has_dropout(module)]
    if active:
        measured = f"{len(active)} layers with dropout are in training mode ({active[0]} is the first)"
        results.add_finding("dropout-active", measured, Location(tuple(active)), layers=len(active))
    return results


def _has_dropout(module: Any) -> bool:
    """Return whether a layer has dropout in training.

    It is a dropout layer, or attention with a dropout probability.
    """
    names = ("p",) if "Dropout" in type(module).__name__ else ("attention_dropout", "dropout")
    probabilities = (getattr(module, name, None) for name in names)
    return any(isinstance(probability, float) and probability > 0 for probability in probabilities)


@contextmanager
def set_evaluation_mode(model: Any) -> Iterator[None]:
    """Put a model in evaluation mode inside the block."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def check_settings(model: Any) -> CheckResults:
    """Compare the attention layers' settings with those of a newly created model."""
    import torch

    results = CheckResults()
    try:
        with torch.device("meta"):
            new_model = type(model)(copy.deepcopy(model.config))
    except TypeError as error:
        results.add_untestable(f"no second {type(model).__name__} can be made: {error}", "setting-changed")
        return results
    compared = False
    new_modules = dict(new_model.named_modules())
    for name, module in model.named_modules():
        new_module = new_modules.get(name)
        if new_module is None or (not hasattr(module, "scaling") and not hasattr(module, "is_causal")):
            continue
        compared = True
        for setting, value in vars(module).items():
            if setting.startswith("_") or setting == "training" or not _is_plain(value):
                continue
            expected = getattr(new_module, setting, None)
            if _is_plain(expected) and expected != value:
                measured = f"{setting} is {value!r}; the configuration sets {expected!r}"
                results.add_finding("setting-changed", measured, Location((name,)), setting=setting)
    if compared:
        results.add_clean("setting-changed")
    else:
        results.add_untestable("no layer with settings of attention was found", "setting-changed")
    return results


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
