"""Compare every attention call of a transformers model with the definition."""

# ruff: noqa: PLC0415  (transformers is slow to import, or absent: only calls need it)

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keywise.attention.arrays import Array, as_host_array
from keywise.attention.mask import Mask
from keywise.attention.problem import Problem
from keywise.diagnosis.definition import choose_queries, compute_expected, select_queries
from keywise.diagnosis.explanation import check_output
from keywise.diagnosis.findings import Location
from keywise.diagnosis.hypotheses import HYPOTHESES
from keywise.diagnosis.inspection import check_finite_inputs, inspect_call
from keywise.diagnosis.model_inputs import PADDING_TOKENS, ModelInputs
from keywise.diagnosis.recorder import AttentionCall, MaskAndBias, record_calls, record_masks
from keywise.diagnosis.results import CheckResults
from keywise.errors import ModelError

SAMPLED_QUERIES = 24
PARTIAL_MASK_CODES = ("padding-visible", "window-dropped", "document-leak")
MASK_CODES = ("mask-lost", "causal-mask-lost", *PARTIAL_MASK_CODES)
HYPOTHESIS_CODES = tuple(hypothesis.code for hypothesis in HYPOTHESES)

Run = Callable[[], None]
"""Runs the model on one input."""


class CallComparer:
    """Compare the attention calls of one model with the definition.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode.
    inputs : ModelInputs
        Makes the model's inputs.
    results : CheckResults
        Results so far, to which those of the calls are added.
    """

    def __init__(self, model: Any, inputs: ModelInputs, results: CheckResults) -> None:
        self.model, self.inputs, self.results = model, inputs, results
        self.compared_calls = 0

    def compare_text(self, text_inputs: dict[str, Any]) -> None:
        """Compare the calls of a run on a text; inspect keys, values and weights too."""
        run = self._make_run(self.inputs.limit_logits(text_inputs))
        if not self._compare_as_plain_causal(run):
            self._compare_run(run, "", inspect=True)

    def compare_own_inputs(self, own_inputs: dict[str, Any]) -> None:
        """Compare and inspect the calls of a run on the user's own inputs."""
        self._compare_run(self._make_run(self.inputs.limit_logits(own_inputs)), "", inspect=True)

    def compare_small_inputs(self) -> None:
        """Compare the calls of runs on small inputs: plain, padded, packed, decoded with a cache."""
        for name, run in self._list_small_runs():
            self._compare_run(run, name)
        if not self.compared_calls:
            reason = f"no attention of {type(self.model).__name__} goes through transformers' AttentionInterface"
            self.results.add_untestable(reason, *HYPOTHESIS_CODES)
        self.results.combine_findings(PARTIAL_MASK_CODES, "mask-lost")

    def _list_small_runs(self) -> Iterator[tuple[str, Run]]:
        """Yield runs that show faults which plain text does not."""
        inputs = self.inputs
        if not inputs.takes_text:
            return
        ids = inputs.draw_ids()
        yield "plain", self._make_run(inputs.make_plain(ids))
        if "attention_mask" in inputs.parameters:
            shorter = inputs.draw_ids(1, inputs.tokens - PADDING_TOKENS)
            yield "padded", self._make_run(inputs.make_padded(shorter))
        if inputs.kind != "decoder":
            return
        if "position_ids" in inputs.parameters:
            packed, _ = inputs.make_packed()
            yield "packed", self._make_run(packed)
        if "past_key_values" in inputs.parameters:
            bounds = (0, inputs.tokens - 4, inputs.tokens - 1, inputs.tokens)
            steps = [ids[:, first:last] for first, last in itertools.pairwise(bounds)]
            yield "cached", lambda: self._run_with_cache(steps)

    def _make_run(self, model_inputs: dict[str, Any]) -> Run:
        return lambda: self.model(**model_inputs)

    def _run_with_cache(self, steps: list[Any]) -> None:
        cache = None
        for ids in steps:
            cache = self.model(input_ids=ids, past_key_values=cache, use_cache=True).past_key_values

    def _compare_run(self, run: Run, input_name: str, *, inspect: bool = False) -> None:
        """Compare every call of a run with the definition under transformers' mask."""
        meanings = self._record_masks(run)

        def compare(call: AttentionCall) -> None:
            meaning = meanings.get((call.layer, call.call_index))
            if meaning is not None:
                self._compare_call(self.results, call, meaning, input_name, inspect=inspect)

        if meanings:
            with record_calls(self.model, compare):
                run()

    def _compare_as_plain_causal(self, run: Run) -> bool:
        """Compare the calls under the plain causal mask and return whether that is enough.

        Recording the masks of a text takes as long as comparing. It is not needed for a decoder whose every mask is
        plain causal on a small input, whose configuration has no window that a longer text could exceed, and whose
        every call is right.
        """
        config = self.inputs.text_config
        has_window = any(getattr(config, name, None) is not None for name in ("sliding_window", "attention_chunk_size"))
        if self.inputs.kind != "decoder" or has_window:
            return False
        small = self._record_masks(self._make_run(self.inputs.make_plain()))
        if not small or not all(_is_plain_causal(meaning) for meaning in small.values()):
            return False
        trial = CheckResults()
        trial.add_clean(*self.results.clean_codes)
        meaning = MaskAndBias(Mask(causal=True), None)
        with record_calls(self.model, lambda call: self._compare_call(trial, call, meaning, "", inspect=True)):
            run()
        if trial.has_errors:
            return False
        self.results.merge(trial)
        return True

    def _record_masks(self, run: Run) -> dict[tuple[str, int], MaskAndBias]:
        try:
            return record_masks(self.model, run)
        except ModelError as error:
            self.results.add_untestable(str(error), *HYPOTHESIS_CODES)
            return {}

    def _compare_call(
        self, results: CheckResults, call: AttentionCall, meaning: MaskAndBias, input_name: str, *, inspect: bool
    ) -> None:
        """Compare one call with the definition and add the outcome to `results`."""
        self.compared_calls += 1
        problem = call.make_problem(meaning)
        place = f"{call.layer} ({input_name})" if input_name else call.layer
        queries = choose_queries(problem.shape.queries, SAMPLED_QUERIES)
        if not call.is_finite:
            # The output of a faulty earlier layer says nothing about this one.
            if not results.has_errors:
                results.merge(check_finite_inputs(problem, queries, place)[0])
            if results.has_errors:
                return
        expected = compute_expected(select_queries(problem, queries))
        observed = _read_output(call.output, queries)
        code, call_results = check_output(
            problem, queries, observed, place, expected=expected, known_clean=results.clean_codes
        )
        finding = None if code is None else call_results.get_finding(code)
        if finding is not None and code in MASK_CODES and not _may_receive_mask(call):
            measured = f"no mask function is registered as {call.implementation!r}, and {finding.measured}"
            results.add_finding("mask-lost", measured, finding.where, **finding.evidence)
            return
        if finding is not None and call.is_strided:
            contiguous = _read_output(call.repeat_contiguous(), queries)
            if check_output(problem, queries, contiguous, place, expected=expected).code is None:
                measured = f"right on contiguous copies; on the views that the model passes {finding.measured}"
                results.add_finding("strides-misread", measured, finding.where, **finding.evidence)
                return
        results.merge(call_results)
        if inspect and code is None:
            results.merge(inspect_call(problem, expected, call.layer))
            results.merge(_check_scale(call.layer, problem))


def _check_scale(layer: str, problem: Problem) -> CheckResults:
    """Report a scale other than 1 / sqrt(head_dim) as a note."""
    results = CheckResults()
    usual = problem.shape.head_dim**-0.5
    if abs(problem.scale - usual) > 1e-6 * usual:
        measured = f"scale {problem.scale:.4g}; 1 / sqrt({problem.shape.head_dim}) is {usual:.4g}"
        results.add_finding("scale-unusual", measured, Location((layer,)), scale=problem.scale)
    else:
        results.add_clean("scale-unusual")
    return results


def _is_plain_causal(meaning: MaskAndBias) -> bool:
    mask, bias = meaning
    if bias is not None or mask is None or not mask.causal:
        return False
    fields = (mask.window, mask.lengths, mask.starts, mask.documents, mask.allowed)
    return all(field is None for field in fields)


def _may_receive_mask(call: AttentionCall) -> bool:
    """Return whether the call received a mask, or transformers makes masks for its implementation."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    return call.attention_mask is not None or call.implementation in ALL_MASK_ATTENTION_FUNCTIONS


def _read_output(output: Any, queries: Array) -> Array:
    """Return sampled queries of an output [B, Q, Hq, Dv] as float64 [B, Hq, R, Dv]."""
    return as_host_array("output", output.detach().transpose(1, 2)[:, :, queries]).floats(np.float64)
