"""Families of the tests whose attention the installed transformers cannot exchange."""

from __future__ import annotations

import pytest
import transformers

from keywise.hf import supported
from tests.support.models import FAMILIES


@pytest.fixture(autouse=True)
def _served_family(request: pytest.FixtureRequest) -> None:
    """Skip a test of a family that `keywise.hf.use` refuses by name; test_compatibility.py tests that it does."""
    callspec = getattr(request.node, "callspec", None)
    name = callspec and callspec.params.get("name")
    if name in FAMILIES and supported()[name].status == "refused":
        pytest.skip(f"transformers {transformers.__version__} cannot exchange the attention of {name}")
