"""Pokes a whole model: changes tokens that may not matter, fills batches, decodes in steps, and sees what moves."""

# ruff: noqa: PLC0415  (torch and transformers are slow to import, or absent: only calls need them)

from __future__ import annotations

import math
from typing import Any

from keywise.diagnosis.codes import Severity
from keywise.diagnosis.finding import Examination, Where
from keywise.diagnosis.inputs import PADDING, Inputs
from keywise.diagnosis.sample import UNITS
from keywise.diagnosis.tap import Call, listening
from keywise.errors import ModelError
from keywise.hf.plugin import use_temporarily

ROUNDINGS_PER_LAYER = 8
"""Norm, projections, scores, weights, output and feed-forward each round the stream once or twice."""
CERTAINTY = 8
"""Standard deviations of rounding noise below which nothing is reported."""
CLOSE_TOKENS = UNITS["bfloat16"]
"""Relative distance of the tokens' states from their mean below which bfloat16 cannot tell them apart."""

STEPS = 3
"""Tokens decoded one by one."""
CHECKED = (
    "rank-collapse",
    "future-leak",
    "window-leak",
    "padding-visible",
    "positions-not-shifted",
    "document-leak",
    "position-offset",
    "prefill-decode-disagree",
)
NO_DECODER = "checked in models that are a decoder alone"


class Probes:
    """The behavioural checks of one model."""

    def __init__(self, examination: Examination, model: Any, making: Inputs) -> None:
        self.examination, self.model, self.making = examination, model, making
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._limit: float | None = None

    def answer(self, given: dict[str, Any]) -> Any:
        """Run the model and give its logits (or last hidden states) in float64."""
        found = self.model(**given)
        logits = getattr(found, "logits", None)
        return (found[0] if logits is None else logits).double()

    def deterministic(self, given: dict[str, Any]) -> bool:
        """Run one input twice."""
        first, second = self.answer(given), self.answer(given)
        difference = _largest(first - second)
        # Threads may sum in another order; noise is larger by far.
        if difference > 1e-3 * _largest(first):
            measured = f"two runs on the same input differ by up to {difference:.3g}, of {_largest(first):.3g}"
            self.examination.found("not-deterministic", measured, difference=difference)
            return False
        self.examination.clean("not-deterministic")
        if not self.examination.has_found("dropout-active"):
            self.examination.clean("dropout-active")
        return True

    def behaviour(self) -> None:
        """Make the behavioural checks that fit the model, in the order of causes, up to the first fault."""
        if not self.making.text:
            self.examination.untestable("the model does not take text", *CHECKED)
            return
        for check in (self._rank, self._future, self._window, self._padding, self._packed, self._steps):
            if self.examination.errors:
                self.examination.untestable("what was found before explains it", *CHECKED)
                return
            check()

    def limit(self) -> float:
        """Give the largest change of an answer that rounding explains.

        The yardstick is measured: how far the answer moves when the embeddings are rounded once more. Every layer
        rounds the stream several times, independently, so the changes add as their squares do.
        """
        if self._limit is None:
            import torch

            given = self.making.plain()
            unit = UNITS[self.dtype]
            generator = torch.Generator().manual_seed(1)

            def rounded(_module: Any, _arguments: Any, output: Any) -> Any:
                signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
                return output * (1 + 2 * unit * signs).to(output.dtype)

            before = self.answer(given)
            handle = self.model.get_input_embeddings().register_forward_hook(rounded)
            try:
                moved = _largest(self.answer(given) - before)
            finally:
                handle.remove()
            config = self.model.config.get_text_config()
            roundings = ROUNDINGS_PER_LAYER * int(getattr(config, "num_hidden_layers", 1))
            self._limit = CERTAINTY * math.sqrt(roundings) * max(moved, unit * _largest(before))
        return self._limit

    def own_inputs(self, given: dict[str, Any]) -> None:
        """Judge the masks and positions that the user passes."""
        import torch

        mask, positions = given.get("attention_mask"), given.get("position_ids")
        ids = given.get("input_ids")
        if self.making.kind != "decoder" or ids is None:
            return
        if mask is not None and mask.ndim == 2 and positions is None and not bool(mask[:, 0].all()):
            shifted = (mask.cumsum(-1) - 1).clamp(min=0)
            moved = _largest((self.answer({**given, "position_ids": shifted}) - self.answer(given))[mask.bool()])
            self._moved(
                "positions-not-shifted", "giving real tokens their own positions, counted without padding,", moved
            )
        if positions is not None and bool((positions.diff(dim=-1) < 0).any()):
            restart = int(torch.nonzero(positions[0].diff() < 0)[0]) + 1
            changed = {**given, "input_ids": self._other(ids, slice(0, restart))}
            moved = _largest((self.answer(changed) - self.answer(given))[0, restart:])
            self._moved("document-leak", "changing the first of several packed documents", moved)

    def _moved(self, code: str, words: str, moved: float, severity: Severity | None = None) -> None:
        limit = self.limit()
        if not moved <= limit:
            measured = f"{words} moves the answer by {moved:.3g}, expected 0 (rounding explains {limit:.2g})"
            self.examination.found(code, measured, severity=severity, moved=moved, limit=limit)
        else:
            self.examination.clean(code)

    @staticmethod
    def _shift(ids: Any, vocabulary: int) -> Any:
        return (ids + 1 + ids % 3) % vocabulary

    def _other(self, ids: Any, where: slice) -> Any:
        """Put other tokens at some positions."""
        changed = ids.clone()
        changed[:, where] = self._shift(ids[:, where], int(self.model.get_input_embeddings().num_embeddings))
        return changed

    def _future(self) -> None:
        if self.making.kind == "encoder":
            self.examination.untestable("an encoder sees every token", "future-leak")
            return
        given = self.making.plain()
        masks = self._masks(given)
        if masks and not any(mask is not None and (mask.causal or mask.allowed is not None) for mask in masks.values()):
            self.examination.untestable("the model's own masks let tokens see later ones", "future-leak")
            return
        name = "decoder_input_ids" if self.making.kind == "encoder-decoder" else "input_ids"
        last = int(given[name].shape[1]) - 1
        changed = {**given, name: self._other(given[name], slice(last, None))}
        difference = (self.answer(changed) - self.answer(given))[:, :last]
        # Where the model's own rule is unknown it may be meant to look ahead, as XLNet is.
        severity: Severity = "error" if masks else "warning"
        self._moved("future-leak", "changing the last token", _largest(difference), severity)

    def _padding(self) -> None:
        making = self.making
        if "attention_mask" not in making.takes:
            self.examination.untestable("the model takes no padding mask", "padding-visible", "positions-not-shifted")
            return
        ids = making.ids(1, making.tokens - PADDING)
        given = making.padded(ids)
        filled = making.padded(ids, filling=making.ids(1, PADDING, seed=9))
        rows = slice(PADDING, None) if making.kind == "decoder" else slice(0, ids.shape[1])
        if making.kind == "encoder-decoder":
            rows = slice(None)
        moved = _largest((self.answer(filled) - self.answer(given))[0, rows])
        self._moved("padding-visible", "changing the tokens of the padding", moved)
        if making.kind != "decoder":
            self.examination.untestable(NO_DECODER, "positions-not-shifted")
            return
        if moved > self.limit():
            self.examination.untestable("padding is visible", "positions-not-shifted")
            return
        padded = {name: given[name] for name in ("input_ids", "attention_mask")}
        alone = {"input_ids": ids, "attention_mask": given["attention_mask"][:1, PADDING:]}
        first = {name: value[:1] for name, value in padded.items()}
        difference = _largest(self._first_step(first) - self._first_step(alone))
        self._moved("positions-not-shifted", "padding on the left, in generate(),", difference)

    def _first_step(self, given: dict[str, Any]) -> Any:
        """Give the logits of the first token that `generate` would choose."""
        found = self.model.generate(
            **given,
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        return found.logits[0].double()

    def _packed(self) -> None:
        making = self.making
        if making.kind != "decoder" or "position_ids" not in making.takes:
            self.examination.untestable("the model is no decoder that takes positions", "document-leak")
            return
        half = making.tokens // 2
        first, second = making.ids(1, half), making.ids(1, making.tokens - half, seed=8)
        given = making.packed(first, second)
        if not self._knows_documents(given):
            reason = "not every layer is known to tell packed documents apart"
            self.examination.untestable(reason, "document-leak")
            return
        changed = {**given, "input_ids": self._other(given["input_ids"], slice(0, half))}
        moved = _largest((self.answer(changed) - self.answer(given))[:, half:])
        self._moved("document-leak", "changing the first of two packed documents", moved)

    def _masks(self, given: dict[str, Any]) -> dict[str, Any] | None:
        """Learn what each attention layer's mask means by transformers' own rules; None where it cannot be learnt."""
        found: dict[str, Any] = {}

        def learn(call: Call) -> None:
            found[call.name], _ = call.meaning()

        try:
            with use_temporarily(self.model), listening(self.model, learn):
                self.model(**given)
        except ModelError:
            return None
        return found

    def _knows_documents(self, given: dict[str, Any]) -> bool:
        """Whether every layer is attention whose mask keeps documents apart: recurrent layers carry them along."""
        masks = self._masks(given) or {}
        apart = [name for name, mask in masks.items() if mask is not None and _separates(mask)]
        return bool(apart) and len(apart) >= int(getattr(self.model.config.get_text_config(), "num_hidden_layers", 1))

    def _steps(self) -> None:
        """Compare decoding with a cache with one pass over the same tokens."""
        from transformers.modeling_outputs import BaseModelOutput

        codes = ("prefill-decode-disagree", "position-offset")
        making = self.making
        if making.kind == "encoder" or "past_key_values" not in making.takes:
            self.examination.untestable("the model takes no cache", *codes)
            return
        given = making.plain()
        name = "decoder_input_ids" if making.kind == "encoder-decoder" else "input_ids"
        ids = given[name]
        right = int(ids.shape[1]) - 1
        heard: list[Call] = []
        with listening(self.model, heard.append):
            whole = self.answer(given)
            in_one_pass = {call.name: call.query[:, :, -1].clone() for call in heard}
            found = self.model(**{**given, name: ids[:, : right - STEPS + 1]}, use_cache=True)
            difference = 0.0
            for position in range(right - STEPS + 1, right + 1):
                heard.clear()
                step = {name: ids[:, position : position + 1], "past_key_values": found.past_key_values}
                if making.kind == "encoder-decoder":
                    step["encoder_outputs"] = BaseModelOutput(found.encoder_last_hidden_state)
                found = self.model(**step, use_cache=True)
                difference = max(difference, _largest(found.logits[:, -1].double() - whole[:, position]))
        limit = self.limit()
        if difference <= limit:
            self.examination.clean(*codes)
            return
        measured = (
            f"decoding {STEPS} tokens with a cache moves logits by {difference:.3g} (rounding explains {limit:.2g})"
        )
        # Nothing but its position tells the first layer's query of a token in one pass from that in a step.
        if heard and "position_ids" in making.takes:
            first = heard[0]
            apart = _largest(in_one_pass[first.name] - first.query[:, :, 0]) / _largest(first.query)
            if apart > limit / _largest(whole):
                stands = self._position_of(ids[:, -1:], first)
                measured += f"; the last one's query stands at position {stands}, expected {right}"
                self.examination.found("position-offset", measured, Where((first.name,)), position=stands)
                return
            self.examination.clean("position-offset")
        self.examination.found("prefill-decode-disagree", measured, difference=difference, limit=limit)

    def _position_of(self, token: Any, step: Call) -> int:
        """Find the position at which the first layer would have asked the query of a decoding step."""
        import torch

        heard: list[Call] = []
        candidates = torch.arange(2 * self.making.tokens)
        with listening(self.model, heard.append):
            self.model(
                input_ids=token.expand(candidates.numel(), 2),
                position_ids=candidates[:, None].expand(-1, 2),
                use_cache=False,
            )
        return int((heard[0].query[:, :, 0] - step.query[:, :, 0]).abs().amax(dim=(1, 2)).argmin())

    def _window(self) -> None:
        """Change a token that no chain of windows reaches."""
        config = self.model.config.get_text_config()
        layers = int(getattr(config, "num_hidden_layers", 1))
        window = self.making.window
        kinds = set(getattr(config, "layer_types", None) or ())
        if self.making.kind != "decoder" or window is None or kinds - {"sliding_attention"}:
            self.examination.untestable("not every layer has a window that a small input exceeds", "window-leak")
            return
        reach = layers * (window - 1)
        if reach + 2 > self.making.most_tokens(config):
            self.examination.untestable("the model has no positions beyond the reach of its windows", "window-leak")
            return
        ids = self.making.ids(1, reach + 2)
        given = {"input_ids": ids}
        changed = {"input_ids": self._other(ids, slice(0, 1))}
        moved = _largest((self.answer(changed) - self.answer(given))[:, reach + 1 :])
        self._moved("window-leak", f"changing a token {reach + 1} positions back, beyond all windows,", moved)

    def _rank(self) -> None:
        """Measure how far apart the tokens' states are as they enter the attention layers."""
        given = self.making.plain()
        layers: dict[str, Any] = {}
        with listening(self.model, lambda call: layers.setdefault(call.name, call.module)):
            self.model(**given)
        states: dict[Any, Any] = {}

        def keep(module: Any, arguments: Any, options: dict[str, Any]) -> None:
            state = options.get("hidden_states", arguments[0] if arguments else None)
            if state is not None:
                states.setdefault(module, state.double())

        handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in layers.values()]
        try:
            self.model(**given)
        finally:
            for handle in handles:
                handle.remove()
        for name, module in layers.items():
            if module not in states:
                continue
            unit = states[module] / states[module].norm(dim=-1, keepdim=True).clamp(min=1e-30)
            apart = float((unit - unit.mean(dim=1, keepdim=True)).norm(dim=-1).max())
            if apart < CLOSE_TOKENS:
                measured = (
                    f"the states of {unit.shape[1]} tokens differ by {apart:.2g} of their length; "
                    f"below {CLOSE_TOKENS:.2g} bfloat16 cannot tell them apart"
                )
                self.examination.found("rank-collapse", measured, Where((name,)), apart=apart)
        if states:
            self.examination.clean("rank-collapse")
        else:
            self.examination.untestable("no layer was seen to take hidden states", "rank-collapse")


def _separates(mask: Any) -> bool:
    return mask.documents is not None or mask.allowed is not None


def _largest(tensor: Any) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
