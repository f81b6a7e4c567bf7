"""Examines a transformers model: every attention call against the definition, then the model's behaviour."""

# ruff: noqa: PLC0415  (torch and transformers are slow to import, or absent: only calls need them)

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from keywise.attention.arrays import Array, as_host_array
from keywise.attention.mask import Mask
from keywise.diagnosis.finding import Diagnosis, Examination, Where
from keywise.diagnosis.inputs import Inputs
from keywise.diagnosis.judge import finite_inputs, judge
from keywise.diagnosis.probes import Probes
from keywise.diagnosis.sample import at_rows, choose_rows, truth
from keywise.diagnosis.statistics import inspect
from keywise.diagnosis.suspects import SUSPECTS
from keywise.diagnosis.tap import Call, listening
from keywise.errors import DtypeError, ModelError, OptionError
from keywise.hf.parts import list_parts
from keywise.hf.plugin import use_temporarily

ROWS = 24
MASK_PARTS = ("padding-visible", "window-dropped", "document-leak")
MASK_FAULTS = ("mask-lost", "causal-mask-lost", *MASK_PARTS)


def check_model(
    model: Any, tokenizer: Any = None, text: str | None = None, *, inputs: dict[str, Any] | None = None
) -> Diagnosis:
    """Say what is wrong with the attention of a transformers model, whichever implementation it has chosen.

    The model is run on the text and on small inputs made for the purpose: padded, packed, in chunks, with a cache. Of
    every attention call a sample of rows is compared with the float64 definition of what the layer asked for, under the
    mask that transformers' own rules give. Then tokens are changed that may not matter. The model is left as it was.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        On the CPU.
    tokenizer : optional
        Turns `text` into tokens.
    text : str, optional
        What to run it on; default random tokens. Longer texts than the model has positions for are cut.
    inputs : dict, optional
        The model's own inputs instead of a text, exactly as they are passed in use: their masks and positions are
        judged too. Needed for models of anything but text, images and Whisper's features.

    Returns
    -------
    Diagnosis

    Raises
    ------
    DtypeError, OptionError, ModelError
        When an argument cannot be used, or the model runs on another device.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from keywise.diagnosis import check_model
    >>> small = LlamaConfig(
    ...     vocab_size=64, hidden_size=32, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2
    ... )
    >>> _ = torch.manual_seed(0)
    >>> model = LlamaForCausalLM(small).eval()
    >>> model.model.layers[1].self_attn.scaling = 1.0
    >>> check_model(model).codes
    ('setting-changed',)
    """
    parts = list_parts(model)
    import torch

    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise ModelError(f"model={type(model).__name__} is not on the CPU; move it there with model.cpu()")
    if text is not None and (tokenizer is None or inputs is not None):
        raise OptionError("text needs a tokenizer and goes without inputs; pass tokenizer=, or inputs= alone")
    if inputs is not None and not isinstance(inputs, dict):
        raise DtypeError(f"inputs is a {type(inputs).__name__}; give a dictionary of what the model takes")
    making = Inputs(model)
    given = inputs if inputs is not None else making.plain(_tokens(making, tokenizer, text))
    examination = Examination()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _evaluating(examination, model):
        examined = Model(examination, model, making)
        examined.examine(given, own_inputs=inputs is not None)
    names = sorted({part.config._attn_implementation for part in parts})
    length = int(given[making.model.main_input_name].shape[-1]) if making.text else 0
    size = f" on {length} tokens" if length else ""
    return examination.diagnosis(f"{type(model).__name__} with {' and '.join(names)} attention{size}")


def _tokens(making: Inputs, tokenizer: Any, text: str | None) -> Any:
    if text is None:
        return None
    if not making.text:
        raise OptionError(f"text: {type(making.model).__name__} takes {making.model.main_input_name!r}; pass inputs=")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    if not ids.shape[1]:
        raise OptionError("text is empty; give some sentences")
    most = making.most_tokens(making.model.config.get_text_config())
    return ids[:, : min(most, getattr(tokenizer, "model_max_length", most))]


@contextmanager
def _evaluating(examination: Examination, model: Any) -> Iterator[None]:
    """Put the model in evaluation mode for the time being; tell when dropout was on."""
    modes = {module: module.training for module in model.modules()}
    active = [name for name, module in model.named_modules() if module.training and _drops(module)]
    if active:
        measured = f"{len(active)} layers with dropout are in training mode ({active[0]} is the first)"
        examination.found("dropout-active", measured, Where(tuple(active)), layers=len(active))
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _drops(module: Any) -> bool:
    """Whether a layer drops something in training: a dropout layer, or attention that is handed the probability."""
    names = ("p",) if "Dropout" in type(module).__name__ else ("attention_dropout", "dropout")
    chances = (getattr(module, name, None) for name in names)
    return any(isinstance(chance, float) and chance > 0 for chance in chances)


class Model:
    """One model under examination."""

    def __init__(self, examination: Examination, model: Any, making: Inputs) -> None:
        self.examination, self.model, self.making = examination, model, making
        self.judged = 0

    def examine(self, given: dict[str, Any], *, own_inputs: bool) -> None:
        """Make every check."""
        probes = Probes(self.examination, self.model, self.making)
        self._settings()
        # A few tokens show dropout as well as a long text does.
        if not probes.deterministic(self.making.plain() if self.making.text else given):
            return
        if own_inputs or not self._judged_as_plainly_causal(self.making.frugal(given)):
            self._judged(self.making.frugal(given), "", statistics=True)
        if own_inputs:
            probes.own_inputs(given)
        for words, steps in self._situations():
            self._judged(steps, words)
        if not self.judged:
            reason = f"no attention of {type(self.model).__name__} goes through transformers' AttentionInterface"
            self.examination.untestable(reason, *(suspect.code for suspect in SUSPECTS))
        self.examination.unite(MASK_PARTS, "mask-lost")
        probes.behaviour()

    def _situations(self) -> Iterator[tuple[str, Any]]:
        """Give inputs that show faults which plain text does not."""
        making = self.making
        if not making.text:
            return
        ids = making.ids()
        yield "plain", making.plain(ids)
        if "attention_mask" in making.takes:
            yield "padded", making.padded(making.ids(1, making.tokens - 5))
        if making.kind == "decoder":
            if "position_ids" in making.takes:
                half = making.tokens // 2
                yield "packed", making.packed(making.ids(1, half), making.ids(1, making.tokens - half, seed=8))
            if "past_key_values" in making.takes:
                bounds = (0, making.tokens - 4, making.tokens - 1, making.tokens)
                yield "cached", [ids[:, first:last] for first, last in itertools.pairwise(bounds)]

    def _run(self, steps: Any) -> None:
        """Run one input, or token ids in several steps with a cache."""
        if isinstance(steps, dict):
            self.model(**steps)
            return
        cache = None
        for ids in steps:
            cache = self.model(input_ids=ids, past_key_values=cache, use_cache=True).past_key_values

    def _judged(self, steps: Any, words: str, *, statistics: bool = False) -> None:
        """Compare every attention call with the definition, under the mask that transformers' rules give."""
        meanings = self._meanings(steps)

        def compare(call: Call) -> None:
            meaning = meanings.get((call.name, call.number))
            if meaning is not None:
                self._compare(call, meaning, words, statistics=statistics)

        if meanings:
            with listening(self.model, compare):
                self._run(steps)

    def _judged_as_plainly_causal(self, given: dict[str, Any]) -> bool:
        """Judge a text without learning its masks, which would take as long as the judging; tell whether that sufficed.

        It does for a decoder whose every mask is causal and nothing else on a small input, whose configuration knows no
        window that a longer text could pass, and whose every call is right under that mask.
        """
        config = self.model.config.get_text_config()
        limited = any(getattr(config, name, None) is not None for name in ("sliding_window", "attention_chunk_size"))
        if self.making.kind != "decoder" or limited:
            return False
        small = self._meanings(self.making.plain())
        if not small or not all(_plainly_causal(*meaning) for meaning in small.values()):
            return False
        before, self.examination = self.examination, self.examination.branch()
        with listening(self.model, lambda call: self._compare(call, (Mask(causal=True), None), "", statistics=True)):
            self._run(given)
        tried, self.examination = self.examination, before
        if tried.errors:
            return False
        self.examination.take(tried)
        return True

    def _meanings(self, steps: Any) -> dict[tuple[str, int], Any]:
        """Learn what each call's mask means by transformers' rules, from a run with keywise's own attention."""
        meanings: dict[tuple[str, int], Any] = {}

        def learn(call: Call) -> None:
            meanings[call.name, call.number] = call.meaning()

        try:
            with use_temporarily(self.model), listening(self.model, learn):
                self._run(steps)
        except ModelError as error:
            self.examination.untestable(str(error), *(suspect.code for suspect in SUSPECTS))
            return {}
        return meanings

    def _compare(self, call: Call, meaning: Any, words: str, *, statistics: bool) -> None:
        self.judged += 1
        problem = call.problem(*meaning)
        place = f"{call.name} ({words})" if words else call.name
        rows = choose_rows(problem.shape.queries, ROWS)
        if not _finite(call):
            # What came out of a faulty layer before says nothing about this one.
            if not self.examination.errors:
                finite_inputs(self.examination, problem, rows, place)
            if self.examination.errors:
                return
        observed = _rows_of(call.output, rows)
        alone = self.examination.branch()
        right = truth(at_rows(problem, rows))
        code = judge(alone, problem, rows, observed, place, right=right)
        if code in MASK_FAULTS and call.attention_mask is None and not _has_mask_function(call.implementation):
            found = alone.finding(code)
            assert found is not None  # judge() has just recorded it
            measured = f"no mask function is registered as {call.implementation!r}, and {found.measured}"
            self.examination.found("mask-lost", measured, found.where, **found.evidence)
            return
        if (
            code is not None
            and call.strided
            and judge(Examination(), problem, rows, _rows_of(call.again(), rows), place, right=right) is None
        ):
            found = alone.finding(code)
            assert found is not None
            measured = f"right on contiguous copies; on the views that the model hands over {found.measured}"
            self.examination.found("strides-misread", measured, found.where, **found.evidence)
            return
        self.examination.take(alone)
        if statistics and code is None:
            inspect(self.examination, problem, right, call.name)
            self._scale(call, problem)

    def _scale(self, call: Call, problem: Any) -> None:
        usual = problem.shape.head_dim**-0.5
        if abs(problem.scale - usual) > 1e-6 * usual:
            measured = f"scale {problem.scale:.4g}; 1 / sqrt({problem.shape.head_dim}) is {usual:.4g}"
            self.examination.found("scale-unusual", measured, Where((call.name,)), scale=problem.scale)
        else:
            self.examination.clean("scale-unusual")

    def _settings(self) -> None:
        """Compare the attention layers' plain settings with those of a new model of the same configuration."""
        import torch

        model, compared = self.model, False
        try:
            with torch.device("meta"):
                fresh = type(model)(copy.deepcopy(model.config))
        except TypeError as error:
            self.examination.untestable(f"no second {type(model).__name__} can be made: {error}", "setting-changed")
            return
        expected = dict(fresh.named_modules())
        for name, module in model.named_modules():
            twin = expected.get(name)
            if twin is None or (not hasattr(module, "scaling") and not hasattr(module, "is_causal")):
                continue
            compared = True
            for setting, value in vars(module).items():
                if setting.startswith("_") or setting == "training" or not _plain(value):
                    continue
                right = getattr(twin, setting, None)
                if _plain(right) and right != value:
                    measured = f"{setting} is {value!r}; the configuration gives {right!r}"
                    self.examination.found("setting-changed", measured, Where((name,)), setting=setting)
        if compared:
            self.examination.clean("setting-changed")
        else:
            self.examination.untestable("no layer with attention's settings was found", "setting-changed")


def _plainly_causal(mask: Any, bias: Any) -> bool:
    fields = (mask.window, mask.lengths, mask.starts, mask.documents, mask.allowed) if mask is not None else ()
    return bias is None and mask is not None and mask.causal and all(field is None for field in fields)


def _rows_of(output: Any, rows: Array) -> Array:
    """Give query rows of an output [B, Q, Hq, Dv] as float64 [B, Hq, R, Dv]."""
    return as_host_array("output", output.detach().transpose(1, 2)[:, :, rows]).floats(np.float64)


def _finite(call: Call) -> bool:
    return all(bool(array.isfinite().all()) for array in (call.query, call.key, call.value))


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _has_mask_function(implementation: str) -> bool:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    return implementation in ALL_MASK_ATTENTION_FUNCTIONS
