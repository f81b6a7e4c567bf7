"""The conformance cases of the ONNX operator `Attention`: all of them, on every usable target."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node
import pytest

from tests.support.onnx_attention import INPUTS, attention

# The cases state rtol 1e-3, atol 1e-7; half precision rounds its output more coarsely than that.
TOLERANCES = {"float32": (1e-3, 1e-7), "float16": (2e-3, 1e-3), "bfloat16": (1.6e-2, 8e-3), "bool": (0, 0)}


@functools.cache
def conformance_cases() -> dict[str, Any]:
    with warnings.catch_warnings():
        # Making the cases of other operators divides by zero on purpose.
        warnings.simplefilter("ignore", RuntimeWarning)
        cases = onnx.backend.test.case.node.collect_testcases("Attention")
    return {
        case.name: case
        for case in cases
        if "_expanded" not in case.name and case.model.graph.node[0].op_type == "Attention"
    }


def test_all_93_conformance_cases_are_present() -> None:
    assert len(conformance_cases()) == 93


@pytest.mark.parametrize("name", list(conformance_cases()))
def test_conformance_case_has_the_expected_outputs(target: str, name: str) -> None:
    case = conformance_cases()[name]
    (node,) = case.model.graph.node
    ((inputs, outputs),) = case.data_sets
    given = [role for role, name_in_graph in zip(INPUTS, node.input, strict=False) if name_in_graph]
    wanted = ("Y", "present_key", "present_value", "qk_matmul_output")
    named = [role for role, name_in_graph in zip(wanted, node.output, strict=False) if name_in_graph]
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    got = attention(dict(zip(given, inputs, strict=True)), attributes, named)
    assert len(outputs) == len(named)
    for role, right in zip(named, outputs, strict=True):
        rtol, atol = TOLERANCES[right.dtype.name]
        assert got[role].dtype == right.dtype
        assert got[role].shape == right.shape
        np.testing.assert_allclose(
            got[role].astype(np.float64), right.astype(np.float64), rtol=rtol, atol=atol, err_msg=role
        )
