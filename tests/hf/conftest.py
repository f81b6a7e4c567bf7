"""Families of the tests that the installed transformers lacks, or whose attention it cannot exchange."""

from __future__ import annotations

import pytest
import transformers

from keywise.hf import supported
from tests.support.eager_models import EAGER_MODELS, is_exchangeable, is_installed
from tests.support.models import FAMILIES


@pytest.fixture(autouse=True)
def _served_family(request: pytest.FixtureRequest) -> None:
    """Skip a test of a family that `keywise.hf.use` refuses by name; test_compatibility.py tests that it does."""
    callspec = getattr(request.node, "callspec", None)
    parameters = callspec.params if callspec else {}
    name, family = parameters.get("name"), parameters.get("family")
    if family in EAGER_MODELS and not is_installed(family):
        pytest.skip(f"transformers {transformers.__version__} has no family {family}")
    if name in FAMILIES and supported()[name].status == "refused":
        pytest.skip(f"transformers {transformers.__version__} cannot exchange the attention of {name}")
    if family in EAGER_MODELS and not is_exchangeable(family):
        pytest.skip(f"transformers {transformers.__version__} cannot exchange the attention of {family}")
