"""Record the attention calls of a transformers model without changing what it computes."""

# ruff: noqa: PLC0415  (torch and transformers are slow to import, or absent: only calls need them)

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from keywise.attention.mask import Mask
from keywise.attention.problem import Problem, make_problem
from keywise.hf.mask_arguments import add_biases, is_causal_without_mask, read_mask
from keywise.hf.parts import list_parts
from keywise.hf.plugin import use_temporarily


class MaskAndBias(NamedTuple):
    """The meaning of an attention mask: the visible keys, and the bias of the scores."""

    mask: Mask | None
    bias: Any


class AttentionCall(NamedTuple):
    """One call of an attention function: the layer, its arguments and its output."""

    module: Any
    layer: str
    """The layer's qualified name."""
    call_index: int
    """0 for the layer's first recorded call."""
    implementation: str
    query: Any
    key: Any
    value: Any
    attention_mask: Any
    options: dict[str, Any]
    output: Any
    """[B, Q, Hq, Dv]."""
    function: Callable[..., Any]
    """The attention function that was called."""

    @property
    def is_causal(self) -> bool:
        """Return whether attention without a mask should be causal."""
        return is_causal_without_mask(self.module, self.options.get("is_causal")) and int(self.query.shape[2]) > 1

    @property
    def is_strided(self) -> bool:
        """Return whether any input is not contiguous, as most models pass them."""
        return not all(array.is_contiguous() for array in (self.query, self.key, self.value))

    @property
    def is_finite(self) -> bool:
        """Return whether query, key and value are finite."""
        return all(bool(array.isfinite().all()) for array in (self.query, self.key, self.value))

    def interpret_mask(self) -> MaskAndBias:
        """Return the call's mask and bias as keywise interprets them."""
        shape = (self.key.shape[0], self.query.shape[2], self.key.shape[2])
        return MaskAndBias(*read_mask(self.module, self.attention_mask, causal=self.is_causal, shape=shape))

    def repeat_contiguous(self) -> Any:
        """Call the function again with contiguous copies and return the output."""
        arrays = (array.contiguous() for array in (self.query, self.key, self.value))
        return self.function(self.module, *arrays, self.attention_mask, **self.options)[0]

    def make_problem(self, meaning: MaskAndBias) -> Problem:
        """Return the problem that the call should solve under a mask."""
        options = self.options
        sinks = options.get("s_aux") if options.get("sinks") is None else options["sinks"]
        query = self.query.expand(self.key.shape[0], -1, -1, -1)
        return make_problem(
            query.detach(),
            self.key.detach(),
            self.value.detach(),
            mask=meaning.mask,
            bias=add_biases(options.get("position_bias"), meaning.bias, query.dtype),
            scale=None if options.get("scaling") is None else float(options["scaling"]),
            softcap=options.get("softcap"),
            sinks=None if sinks is None else sinks.detach(),
        )


@contextmanager
def record_calls(model: Any, on_call: Callable[[AttentionCall], None]) -> Iterator[None]:
    """Call `on_call` after every attention call of the model inside the block.

    The functions that transformers looks up by name are replaced inside the block by ones that call the originals.
    Calls of other models are not recorded.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model to record.
    on_call : callable
        Receives each `AttentionCall`.

    Yields
    ------
    None
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    names = {module: name for name, module in model.named_modules()}
    counts: Counter[str] = Counter()
    overrides = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = dict(overrides)
    for implementation in {part.config._attn_implementation for part in list_parts(model)}:
        original = ALL_ATTENTION_FUNCTIONS.get(implementation)
        ALL_ATTENTION_FUNCTIONS[implementation] = _wrap(implementation, original, names, counts, on_call)
    try:
        yield
    finally:
        overrides.clear()
        overrides.update(before)


def record_masks(model: Any, run: Callable[[], None]) -> dict[tuple[str, int], MaskAndBias]:
    """Return the mask and bias of every call by transformers' rules.

    They are recorded in a run with keywise's own attention.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model; it attends as before afterwards.
    run : callable
        Runs the model.

    Returns
    -------
    dict
        From (layer, index of the call) to its mask and bias.

    Raises
    ------
    ModelError
        The model's attention cannot be replaced.
    """
    meanings: dict[tuple[str, int], MaskAndBias] = {}

    def record_meaning(call: AttentionCall) -> None:
        meanings[call.layer, call.call_index] = call.interpret_mask()

    with use_temporarily(model), record_calls(model, record_meaning):
        run()
    return meanings


def _wrap(
    implementation: str,
    original: Any,
    names: dict[Any, str],
    counts: Counter[str],
    on_call: Callable[[AttentionCall], None],
) -> Callable[..., Any]:
    """Return an attention function that calls the original and reports the call."""

    def recorded(  # noqa: PLR0917  (transformers calls it this way)
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **others: Any,
    ) -> Any:
        function = original or _find_eager_attention(module)
        options = {"dropout": dropout, "scaling": scaling, **others}
        result = function(module, query, key, value, attention_mask, **options)
        if module in names:
            layer = names[module]
            call = AttentionCall(
                module=module,
                layer=layer,
                call_index=counts[layer],
                implementation=implementation,
                query=query,
                key=key,
                value=value,
                attention_mask=attention_mask,
                options=options,
                output=result[0],
                function=function,
            )
            counts[layer] += 1
            on_call(call)
        return result

    return recorded


def _find_eager_attention(module: Any) -> Any:
    """Return the eager attention that transformers defines in a layer's module."""
    for cls in type(module).__mro__:
        if (function := getattr(sys.modules[cls.__module__], "eager_attention_forward", None)) is not None:
            return function
    raise LookupError(f"{type(module).__name__} has no eager_attention_forward in its module")
