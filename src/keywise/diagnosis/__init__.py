"""Diagnose attention: arrays, functions and transformers models, compared with the definition.

The path of the data:

1. inputs: the caller's arrays, or small random ones (`function_under_test`, `model_inputs`);
2. run: a function is called (`function_under_test`), a model's attention calls are recorded (`recorder`);
3. compare: a sample of queries with the definition (`definition`, `comparison`);
4. explain: by the known fault that predicts the observed output (`hypotheses`, `explanation`);
5. inspect and probe: inputs and weights (`inspection`), changes that must not matter (`function_probes`,
   `model_probes`);
6. collect and report: `CheckResults` (`results`) become a `Diagnosis` (`findings`) and its text (`report`).
"""

from keywise.diagnosis.arrays import check
from keywise.diagnosis.findings import Check, Diagnosis, Finding, Location
from keywise.diagnosis.function import check_function
from keywise.diagnosis.model import check_model

__all__ = ["Check", "Diagnosis", "Finding", "Location", "check", "check_function", "check_model"]
