"""Make changes of a model's inputs that must not move its output."""

# ruff: noqa: PLC0415  (torch and transformers are slow to import, or absent: only calls need them)

from __future__ import annotations

import math
from typing import Any

from keywise.attention.mask import Mask
from keywise.diagnosis.codes import Severity
from keywise.diagnosis.definition import ROUNDING_UNITS
from keywise.diagnosis.findings import Location
from keywise.diagnosis.model_inputs import PADDING_TOKENS, ModelInputs
from keywise.diagnosis.recorder import AttentionCall, record_calls, record_masks
from keywise.diagnosis.results import CheckResults
from keywise.errors import ModelError

ROUNDINGS_PER_LAYER = 8
"""Norm, projections, scores, weights, output and feed-forward each round the residual stream once or twice."""
LIMIT_DEVIATIONS = 8
"""Standard deviations of rounding noise below which nothing is reported."""
MAX_RUN_DIFFERENCE = 1e-3
"""Largest difference of two runs, relative to the output: threads may sum in another order."""
COLLAPSED_DISTANCE = ROUNDING_UNITS["bfloat16"]
"""Relative distance of the tokens' states from their mean below which bfloat16 cannot tell them apart."""
DECODED_TOKENS = 3
"""Tokens decoded one by one."""

PROBE_CODES = (
    "rank-collapse",
    "future-leak",
    "window-leak",
    "padding-visible",
    "positions-not-shifted",
    "document-leak",
    "position-offset",
    "prefill-decode-disagree",
)
CACHE_CODES = ("prefill-decode-disagree", "position-offset")


class ModelProbes:
    """Probe one model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode.
    inputs : ModelInputs
        Makes the model's inputs.
    """

    def __init__(self, model: Any, inputs: ModelInputs) -> None:
        self.model, self.inputs = model, inputs
        self._rounding_limit: float | None = None

    def compute_output(self, model_inputs: dict[str, Any]) -> Any:
        """Run the model and return its logits, or its last hidden states, in float64."""
        result = self.model(**model_inputs)
        logits = getattr(result, "logits", None)
        return (result[0] if logits is None else logits).double()

    def check_repeated_run(self, model_inputs: dict[str, Any]) -> CheckResults:
        """Check that two runs on the same input agree."""
        results = CheckResults()
        first, second = self.compute_output(model_inputs), self.compute_output(model_inputs)
        difference, size = _get_largest(first - second), _get_largest(first)
        if difference > MAX_RUN_DIFFERENCE * size:
            measured = f"two runs on the same input differ by up to {difference:.3g}, of {size:.3g}"
            results.add_finding("not-deterministic", measured, difference=difference)
        else:
            results.add_clean("not-deterministic")
        return results

    def check_own_inputs(self, model_inputs: dict[str, Any]) -> CheckResults:
        """Check the positions and the documents of the user's own inputs."""
        import torch

        results = CheckResults()
        mask, positions = model_inputs.get("attention_mask"), model_inputs.get("position_ids")
        ids = model_inputs.get("input_ids")
        if self.inputs.kind != "decoder" or ids is None:
            return results
        if mask is not None and mask.ndim == 2 and positions is None and not bool(mask[:, 0].all()):
            shifted = {**model_inputs, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
            difference = self.compute_output(shifted) - self.compute_output(model_inputs)
            description = "counting the positions of real tokens without the padding"
            self._record(results, "positions-not-shifted", description, _get_largest(difference[mask.bool()]))
        if positions is not None and bool((positions.diff(dim=-1) < 0).any()):
            restart = int(torch.nonzero(positions[0].diff() < 0)[0]) + 1
            changed = {**model_inputs, "input_ids": self._replace_tokens(ids, slice(0, restart))}
            difference = self.compute_output(changed) - self.compute_output(model_inputs)
            description = "changing the first of several packed documents"
            self._record(results, "document-leak", description, _get_largest(difference[0, restart:]))
        return results

    def run(self, results: CheckResults) -> None:
        """Run the probes that fit the model, up to the first error.

        Parameters
        ----------
        results : CheckResults
            Results so far, to which those of the probes are added.
        """
        if not self.inputs.takes_text:
            results.add_untestable("the model does not take text", *PROBE_CODES)
            return
        for probe in (
            self._check_rank,
            self._check_future,
            self._check_window,
            self._check_padding,
            self._check_packed,
            self._check_decoding,
        ):
            if results.has_errors:
                results.add_untestable("an earlier error explains it", *PROBE_CODES)
                return
            results.merge(probe())

    def compute_limit(self) -> float:
        """Return the largest change of an output that rounding explains.

        It is measured by the change of the output when the embeddings are rounded once more. Every layer rounds the
        residual stream several times, independently, so the changes add as their squares do.
        """
        if self._rounding_limit is None:
            import torch

            model_inputs = self.inputs.make_plain()
            unit = ROUNDING_UNITS[str(self.model.dtype).removeprefix("torch.")]
            generator = torch.Generator().manual_seed(1)

            def round_again(_module: Any, _arguments: Any, output: Any) -> Any:
                signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
                return output * (1 + 2 * unit * signs).to(output.dtype)

            before = self.compute_output(model_inputs)
            handle = self.model.get_input_embeddings().register_forward_hook(round_again)
            try:
                moved = _get_largest(self.compute_output(model_inputs) - before)
            finally:
                handle.remove()
            roundings = ROUNDINGS_PER_LAYER * self.inputs.layer_count
            smallest = unit * _get_largest(before)
            self._rounding_limit = LIMIT_DEVIATIONS * math.sqrt(roundings) * max(moved, smallest)
        return self._rounding_limit

    def _record(
        self, results: CheckResults, code: str, description: str, moved: float, severity: Severity | None = None
    ) -> None:
        """Record whether a change moved the output by more than rounding explains."""
        limit = self.compute_limit()
        if moved <= limit:
            results.add_clean(code)
            return
        measured = f"{description} moves the output by {moved:.3g}, expected 0 (rounding explains {limit:.2g})"
        results.add_finding(code, measured, severity=severity, moved=moved, limit=limit)

    def _replace_tokens(self, ids: Any, tokens: slice) -> Any:
        """Return ids with other tokens at some positions."""
        changed = ids.clone()
        selected = ids[:, tokens]
        changed[:, tokens] = (selected + 1 + selected % 3) % self.inputs.vocabulary_size
        return changed

    def _record_masks(self, model_inputs: dict[str, Any]) -> dict[str, Mask | None] | None:
        """Return each layer's mask by transformers' rules; None if it cannot be recorded."""
        try:
            meanings = record_masks(self.model, lambda: self.model(**model_inputs))
        except ModelError:
            return None
        return {layer: meaning.mask for (layer, _), meaning in meanings.items()}

    def _check_rank(self) -> CheckResults:
        """Measure how far apart the tokens' states are as they enter the attention layers."""
        results = CheckResults()
        layers, states = self._record_states()
        for name, module in layers.items():
            if module not in states:
                continue
            unit = states[module] / states[module].norm(dim=-1, keepdim=True).clamp(min=1e-30)
            distance = float((unit - unit.mean(dim=1, keepdim=True)).norm(dim=-1).max())
            if distance < COLLAPSED_DISTANCE:
                measured = (
                    f"the states of {unit.shape[1]} tokens differ by {distance:.2g} of their length; "
                    f"below {COLLAPSED_DISTANCE:.2g} bfloat16 cannot tell them apart"
                )
                results.add_finding("rank-collapse", measured, Location((name,)), distance=distance)
        if states:
            results.add_clean("rank-collapse")
        else:
            results.add_untestable("no layer takes hidden states", "rank-collapse")
        return results

    def _record_states(self) -> tuple[dict[str, Any], dict[Any, Any]]:
        """Return the attention layers by name, and the hidden states that each takes."""
        model_inputs = self.inputs.make_plain()
        layers: dict[str, Any] = {}
        with record_calls(self.model, lambda call: layers.setdefault(call.layer, call.module)):
            self.model(**model_inputs)
        states: dict[Any, Any] = {}

        def record_state(module: Any, arguments: Any, options: dict[str, Any]) -> None:
            state = options.get("hidden_states", arguments[0] if arguments else None)
            if state is not None:
                states.setdefault(module, state.double())

        handles = [module.register_forward_pre_hook(record_state, with_kwargs=True) for module in layers.values()]
        try:
            self.model(**model_inputs)
        finally:
            for handle in handles:
                handle.remove()
        return layers, states

    def _check_future(self) -> CheckResults:
        """Change the last token; earlier outputs must not move."""
        results = CheckResults()
        if self.inputs.kind == "encoder":
            results.add_untestable("an encoder sees every token", "future-leak")
            return results
        model_inputs = self.inputs.make_plain()
        masks = self._record_masks(model_inputs)
        if masks and not any(mask is not None and (mask.causal or mask.allowed is not None) for mask in masks.values()):
            results.add_untestable("the model's own masks let tokens see later ones", "future-leak")
            return results
        name = self.inputs.output_name
        last = int(model_inputs[name].shape[1]) - 1
        changed = {**model_inputs, name: self._replace_tokens(model_inputs[name], slice(last, None))}
        difference = (self.compute_output(changed) - self.compute_output(model_inputs))[:, :last]
        # A model whose own mask is unknown may see later tokens on purpose, as XLNet does.
        severity: Severity = "error" if masks else "warning"
        self._record(results, "future-leak", "changing the last token", _get_largest(difference), severity)
        return results

    def _check_window(self) -> CheckResults:
        """Change a token that no chain of windows reaches."""
        results = CheckResults()
        window = self.inputs.window
        kinds = set(getattr(self.inputs.text_config, "layer_types", None) or ())
        if self.inputs.kind != "decoder" or window is None or kinds - {"sliding_attention"}:
            results.add_untestable("not every layer has a window that a small input exceeds", "window-leak")
            return results
        reach = self.inputs.layer_count * (window - 1)
        if reach + 2 > self.inputs.max_tokens:
            results.add_untestable("the model has no positions beyond the reach of its windows", "window-leak")
            return results
        ids = self.inputs.draw_ids(1, reach + 2)
        changed = {"input_ids": self._replace_tokens(ids, slice(0, 1))}
        difference = (self.compute_output(changed) - self.compute_output({"input_ids": ids}))[:, reach + 1 :]
        description = f"changing a token {reach + 1} positions back, beyond all windows,"
        self._record(results, "window-leak", description, _get_largest(difference))
        return results

    def _check_padding(self) -> CheckResults:
        """Change the tokens of the padding, and compare `generate` with and without padding."""
        results = CheckResults()
        inputs = self.inputs
        if "attention_mask" not in inputs.parameters:
            reason = "the model takes no padding mask"
            results.add_untestable(reason, "padding-visible", "positions-not-shifted")
            return results
        ids = inputs.draw_ids(1, inputs.tokens - PADDING_TOKENS)
        padded = inputs.make_padded(ids)
        repadded = inputs.make_padded(ids, padding=inputs.draw_ids(1, PADDING_TOKENS, seed=9))
        real_tokens = {
            "decoder": slice(PADDING_TOKENS, None),
            "encoder": slice(0, ids.shape[1]),
            "encoder-decoder": slice(None),
        }[inputs.kind]
        difference = self.compute_output(repadded) - self.compute_output(padded)
        moved = _get_largest(difference[0, real_tokens])
        self._record(results, "padding-visible", "changing the tokens of the padding", moved)
        if inputs.kind != "decoder":
            results.add_untestable("tested only in models that are a decoder alone", "positions-not-shifted")
        elif moved > self.compute_limit():
            results.add_untestable("padding is visible", "positions-not-shifted")
        else:
            batch = {name: padded[name][:1] for name in ("input_ids", "attention_mask")}
            alone = {"input_ids": ids, "attention_mask": padded["attention_mask"][:1, PADDING_TOKENS:]}
            moved = _get_largest(self._generate_logits(batch) - self._generate_logits(alone))
            self._record(results, "positions-not-shifted", "padding on the left, in generate(),", moved)
        return results

    def _generate_logits(self, model_inputs: dict[str, Any]) -> Any:
        """Return the logits of the first token that `generate` chooses."""
        result = self.model.generate(
            **model_inputs,
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        return result.logits[0].double()

    def _check_packed(self) -> CheckResults:
        """Change the first of two packed documents; outputs of the second must not move."""
        results = CheckResults()
        if self.inputs.kind != "decoder" or "position_ids" not in self.inputs.parameters:
            results.add_untestable("the model is no decoder that takes positions", "document-leak")
            return results
        packed, first_tokens = self.inputs.make_packed()
        if not self._separates_documents(packed):
            results.add_untestable("not every layer is known to separate packed documents", "document-leak")
            return results
        changed = {**packed, "input_ids": self._replace_tokens(packed["input_ids"], slice(0, first_tokens))}
        difference = (self.compute_output(changed) - self.compute_output(packed))[:, first_tokens:]
        description = "changing the first of two packed documents"
        self._record(results, "document-leak", description, _get_largest(difference))
        return results

    def _separates_documents(self, packed: dict[str, Any]) -> bool:
        """Return whether every layer is attention whose mask separates documents."""
        masks = self._record_masks(packed) or {}
        separating = [
            layer
            for layer, mask in masks.items()
            if mask is not None and (mask.documents is not None or mask.allowed is not None)
        ]
        return bool(separating) and len(separating) >= self.inputs.layer_count

    def _check_decoding(self) -> CheckResults:
        """Compare decoding with a cache with one pass over the same tokens."""
        results = CheckResults()
        if self.inputs.kind == "encoder" or "past_key_values" not in self.inputs.parameters:
            results.add_untestable("the model takes no cache", *CACHE_CODES)
            return results
        model_inputs = self.inputs.make_plain()
        ids = model_inputs[self.inputs.output_name]
        expected_position = int(ids.shape[1]) - 1
        calls: list[AttentionCall] = []
        with record_calls(self.model, calls.append):
            one_pass = self.compute_output(model_inputs)
            one_pass_queries = {call.layer: call.query[:, :, -1].clone() for call in calls}
            difference = self._decode_with_cache(model_inputs, one_pass, calls)
        limit = self.compute_limit()
        if difference <= limit:
            results.add_clean(*CACHE_CODES)
            return results
        measured = (
            f"decoding {DECODED_TOKENS} tokens with a cache moves logits by {difference:.3g} "
            f"(rounding explains {limit:.2g})"
        )
        # Only its position distinguishes the first layer's query of a token in one pass from that in a decoding step.
        if calls and "position_ids" in self.inputs.parameters:
            first = calls[0]
            query_difference = _get_largest(one_pass_queries[first.layer] - first.query[:, :, 0])
            if query_difference / _get_largest(first.query) > limit / _get_largest(one_pass):
                position = self._find_position(ids[:, -1:], first)
                measured += f"; the last one's query is at position {position}, expected {expected_position}"
                results.add_finding("position-offset", measured, Location((first.layer,)), position=position)
                return results
            results.add_clean("position-offset")
        results.add_finding("prefill-decode-disagree", measured, difference=difference, limit=limit)
        return results

    def _decode_with_cache(self, model_inputs: dict[str, Any], one_pass: Any, calls: list[AttentionCall]) -> float:
        """Decode the last tokens one by one and return the largest difference.

        The calls of the last step are left in `calls`.
        """
        from transformers.modeling_outputs import BaseModelOutput

        name = self.inputs.output_name
        ids = model_inputs[name]
        tokens = int(ids.shape[1])
        result = self.model(**{**model_inputs, name: ids[:, : tokens - DECODED_TOKENS]}, use_cache=True)
        difference = 0.0
        for position in range(tokens - DECODED_TOKENS, tokens):
            calls.clear()
            step = {name: ids[:, position : position + 1], "past_key_values": result.past_key_values}
            if self.inputs.kind == "encoder-decoder":
                step["encoder_outputs"] = BaseModelOutput(result.encoder_last_hidden_state)
            result = self.model(**step, use_cache=True)
            difference = max(difference, _get_largest(result.logits[:, -1].double() - one_pass[:, position]))
        return difference

    def _find_position(self, token: Any, step: AttentionCall) -> int:
        """Return the position at which the token's query is nearest to that of a decoding step."""
        import torch

        calls: list[AttentionCall] = []
        candidates = torch.arange(2 * self.inputs.tokens)
        with record_calls(self.model, calls.append):
            self.model(
                input_ids=token.expand(candidates.numel(), 2),
                position_ids=candidates[:, None].expand(-1, 2),
                use_cache=False,
            )
        return int((calls[0].query[:, :, 0] - step.query[:, :, 0]).abs().amax(dim=(1, 2)).argmin())


def _get_largest(tensor: Any) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
