"""The conformance cases of the ONNX operator `Attention`: all of them, on every usable target."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node
import pytest

from tests.support.onnx_attention import INPUTS, run_attention

# The cases state rtol 1e-3, atol 1e-7; half precision rounds its output more coarsely than that.
TOLERANCES = {"float32": (1e-3, 1e-7), "float16": (2e-3, 1e-3), "bfloat16": (1.6e-2, 8e-3), "bool": (0, 0)}


@functools.cache
def collect_conformance_cases() -> dict[str, Any]:
    # The module makes its cases on import; collect_testcases would make those of every operator.
    importlib.import_module("onnx.backend.test.case.node.attention")
    return {
        case.name: case
        for case in onnx.backend.test.case.node._NodeTestCases
        if "_expanded" not in case.name and case.model.graph.node[0].op_type == "Attention"
    }


def test_all_93_conformance_cases_are_present() -> None:
    assert len(collect_conformance_cases()) == 93


@pytest.mark.parametrize("name", list(collect_conformance_cases()))
def test_conformance_case_has_the_expected_outputs(target: str, name: str) -> None:
    case = collect_conformance_cases()[name]
    (node,) = case.model.graph.node
    ((inputs, outputs),) = case.data_sets
    input_names = [role for role, name_in_graph in zip(INPUTS, node.input, strict=False) if name_in_graph]
    roles = ("Y", "present_key", "present_value", "qk_matmul_output")
    output_names = [role for role, name_in_graph in zip(roles, node.output, strict=False) if name_in_graph]
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    actual = run_attention(dict(zip(input_names, inputs, strict=True)), attributes, output_names)
    assert len(outputs) == len(output_names)
    for role, expected in zip(output_names, outputs, strict=True):
        rtol, atol = TOLERANCES[expected.dtype.name]
        assert actual[role].dtype == expected.dtype
        assert actual[role].shape == expected.shape
        np.testing.assert_allclose(
            actual[role].astype(np.float64), expected.astype(np.float64), rtol=rtol, atol=atol, err_msg=role
        )
