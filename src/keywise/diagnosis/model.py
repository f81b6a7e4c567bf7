"""Examine the attention of a transformers model: `check_model`."""

# ruff: noqa: PLC0415  (torch is slow to import, or absent: only calls need it)

from __future__ import annotations

from typing import Any

from keywise.diagnosis.findings import Diagnosis
from keywise.diagnosis.model_calls import CallComparer
from keywise.diagnosis.model_inputs import ModelInputs
from keywise.diagnosis.model_probes import ModelProbes
from keywise.diagnosis.model_settings import check_dropout, check_settings, set_evaluation_mode
from keywise.diagnosis.results import CheckResults
from keywise.errors import DtypeError, ModelError, OptionError
from keywise.hf.parts import list_parts


def check_model(
    model: Any, tokenizer: Any = None, text: str | None = None, *, inputs: dict[str, Any] | None = None
) -> Diagnosis:
    """Diagnose the attention of a transformers model.

    The model runs with its own attention implementation on the text and on small random inputs: plain, padded, packed,
    in chunks, decoded with a cache. A sample of each attention call's queries is compared with the float64 definition,
    under the scale, softcap, sinks and bias that the layer passes and under the mask that transformers' rules give.
    Then probes change tokens that must not matter. The model is left unchanged.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        On the CPU.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        Needed for `text`.
    text : str, optional
        What to run the model on, cut to the positions that the model has. Default: random tokens.
    inputs : dict, optional
        The model's own inputs instead of a text, as they are passed in use; their masks and positions are checked too.
        Needed for models of anything but text, images and sound.

    Returns
    -------
    Diagnosis

    Raises
    ------
    DtypeError, OptionError
        An argument cannot be used.
    ModelError
        The model is on another device, or no input can be made for it.

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
        raise ModelError("model", "must be on the CPU", got=model.device.type, remedy="move it with model.cpu()")
    if text is not None and tokenizer is None:
        raise OptionError("tokenizer", "must be given with text")
    if text is not None and inputs is not None:
        raise OptionError("inputs", "must not be given with text", remedy="pass one of the two")
    if inputs is not None and not isinstance(inputs, dict):
        raise DtypeError("inputs", "must be a dictionary", got=type(inputs).__name__)
    maker = ModelInputs(model)
    run_inputs = maker.make_plain(_tokenize(maker, tokenizer, text)) if inputs is None else inputs
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        results = _examine(model, maker, run_inputs, are_own=inputs is not None)
    names = sorted({part.config._attn_implementation for part in parts})
    length = int(run_inputs[model.main_input_name].shape[-1]) if maker.takes_text else 0
    size = f" on {length} tokens" if length else ""
    return results.make_diagnosis(f"{type(model).__name__} with {' and '.join(names)} attention{size}")


def _tokenize(maker: ModelInputs, tokenizer: Any, text: str | None) -> Any:
    """Return the token ids [1, N] of a text, cut to the model's positions.

    The result is None for no text.
    """
    if text is None:
        return None
    if not maker.takes_text:
        name = maker.model.main_input_name
        raise OptionError("text", f"must not be given for a model that takes {name!r}", remedy="pass inputs=")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    if not ids.shape[1]:
        raise OptionError("text", "must not be empty", got=text)
    limit = maker.max_tokens
    return ids[:, : min(limit, getattr(tokenizer, "model_max_length", limit))]


def _examine(model: Any, maker: ModelInputs, run_inputs: dict[str, Any], *, are_own: bool) -> CheckResults:
    """Run the checks in the order of causes."""
    results = CheckResults()
    results.merge(check_dropout(model))
    with set_evaluation_mode(model):
        results.merge(check_settings(model))
        probes = ModelProbes(model, maker)
        # A few tokens show dropout as well as a long text does.
        results.merge(probes.check_repeated_run(maker.make_plain() if maker.takes_text else run_inputs))
        if results.has_finding("not-deterministic"):
            return results
        if not results.has_finding("dropout-active"):
            results.add_clean("dropout-active")
        comparer = CallComparer(model, maker, results)
        if are_own:
            comparer.compare_own_inputs(run_inputs)
            results.merge(probes.check_own_inputs(run_inputs))
        else:
            comparer.compare_text(run_inputs)
        comparer.compare_small_inputs()
        probes.run(results)
    return results
