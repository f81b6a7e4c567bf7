"""Listens to the attention calls of a transformers model without changing what it computes."""

# ruff: noqa: PLC0415  (torch and transformers are slow to import, or absent: only calls need them)

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from keywise.attention.problem import Problem, make_problem
from keywise.hf.mask_arguments import add_biases, read_mask
from keywise.hf.parts import list_parts


class Call(NamedTuple):
    """One call of an attention function: who asked, what for, and what came back."""

    module: Any
    name: str
    """The layer's qualified name."""
    number: int
    """0 for this layer's first call while listening."""
    implementation: str
    query: Any
    key: Any
    value: Any
    attention_mask: Any
    options: dict[str, Any]
    output: Any
    """[B, Q, Hq, Dv]."""
    function: Callable[..., Any]
    """What computed it."""

    @property
    def causal(self) -> bool:
        """Whether attention without a mask is meant to be causal."""
        asked = self.options.get("is_causal")
        causal = asked if asked is not None else getattr(self.module, "is_causal", True)
        return bool(causal) and int(self.query.shape[2]) > 1

    def meaning(self) -> tuple[Any, Any]:
        """Say what the mask that arrived means, as keywise's own attention takes it: (mask, added scores)."""
        return read_mask(self.module, self.attention_mask, causal=self.causal)

    def again(self) -> Any:
        """Ask once more with contiguous copies, and give the output; the layout may not matter."""
        arrays = (array.contiguous() for array in (self.query, self.key, self.value))
        return self.function(self.module, *arrays, self.attention_mask, **self.options)[0]

    @property
    def strided(self) -> bool:
        """Whether any input is a view that is not contiguous, as most models hand over."""
        return not all(array.is_contiguous() for array in (self.query, self.key, self.value))

    def problem(self, mask: Any, mask_bias: Any) -> Problem:
        """Say what should have been computed, given what the mask means."""
        options = self.options
        sinks = options.get("s_aux") if options.get("sinks") is None else options["sinks"]
        query = self.query.expand(self.key.shape[0], -1, -1, -1)
        return make_problem(
            query.detach(),
            self.key.detach(),
            self.value.detach(),
            mask=mask,
            bias=add_biases(options.get("position_bias"), mask_bias, query.dtype),
            scale=None if options.get("scaling") is None else float(options["scaling"]),
            softcap=options.get("softcap"),
            sinks=None if sinks is None else sinks.detach(),
        )


@contextmanager
def listening(model: Any, heard: Callable[[Call], None]) -> Iterator[None]:
    """Call `heard` after every attention call of the model inside the block.

    The functions that transformers looks up by name are overridden for the time being by ones that pass everything on;
    calls of other models go through untouched.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    names = {module: name for name, module in model.named_modules()}
    numbers: Counter[str] = Counter()
    overrides = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = dict(overrides)
    for implementation in {part.config._attn_implementation for part in list_parts(model)}:
        original = ALL_ATTENTION_FUNCTIONS.get(implementation)
        ALL_ATTENTION_FUNCTIONS[implementation] = _passing_on(implementation, original, names, numbers, heard)
    try:
        yield
    finally:
        overrides.clear()
        overrides.update(before)


def _passing_on(
    implementation: str, original: Any, names: dict[Any, str], numbers: Counter[str], heard: Callable[[Call], None]
) -> Callable[..., Any]:
    def function(  # noqa: PLR0917  (transformers calls it this way)
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **others: Any,
    ) -> Any:
        inner = original or _eager(module)
        asked = {"dropout": dropout, "scaling": scaling, **others}
        result = inner(module, query, key, value, attention_mask, **asked)
        if module in names:
            name = names[module]
            call = Call(
                module=module,
                name=name,
                number=numbers[name],
                implementation=implementation,
                query=query,
                key=key,
                value=value,
                attention_mask=attention_mask,
                options=asked,
                output=result[0],
                function=inner,
            )
            numbers[name] += 1
            heard(call)
        return result

    return function


def _eager(module: Any) -> Any:
    """Find the eager attention of a layer: transformers keeps one beside every model, under this name."""
    for cls in type(module).__mro__:
        if (function := getattr(sys.modules[cls.__module__], "eager_attention_forward", None)) is not None:
            return function
    raise LookupError(f"{type(module).__name__} has no eager_attention_forward beside it")
