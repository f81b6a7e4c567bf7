"""Examines an attention function by what it does: compared with the definition, and poked where nothing may move."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keywise.attention.arrays import Array, as_host_array
from keywise.attention.mask import Mask
from keywise.attention.problem import Problem, make_problem
from keywise.diagnosis.finding import Diagnosis, Examination, Where
from keywise.diagnosis.judge import judge
from keywise.diagnosis.sample import at_rows, truth
from keywise.errors import DtypeError, ModelError, OptionError
from keywise.util.checks import check_int

TOKENS, FEW, BATCH = 37, 5, 2
"""Prime, so that no two axes are of one size by chance."""
PADDING = 9
OVERFLOWING = 8192.0
"""Queries times this give scores far above 88.7, the logarithm of float32's largest number, and products above
float16's largest number, while the queries themselves stay below it."""


def check_function(
    function: Callable[..., Any],
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    mask_argument: str | None = None,
    query_heads: int = 4,
    key_heads: int = 4,
    head_dim: int = 16,
    dtype: str = "float32",
    arrays: str | None = None,
) -> Diagnosis:
    """Say what is wrong with an attention function, by running it on small random inputs.

    The function is called as ``function(query, key, value)`` with arrays [B, heads, tokens, head_dim]; whatever else it
    needs is bound by the caller (`functools.partial`). The options say what it is meant to compute; they are not
    passed on.

    Parameters
    ----------
    function : callable
        Gives the output [B, Hq, Q, head_dim], or a tuple that begins with it.
    causal, window, scale, softcap, sinks
        What the function computes, as in `keywise.attend` and `keywise.Mask`.
    mask_argument : str, optional
        Keyword under which it takes a boolean array [B, 1, Q, N], True where a query may attend. Masks are tested only
        with it.
    query_heads, key_heads, head_dim : int
        Sizes to try; with fewer key heads query heads share them.
    dtype : str
        ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    arrays : str, optional
        ``"torch"`` or ``"numpy"``: what the function takes. Default: torch where torch has been imported.

    Returns
    -------
    Diagnosis

    Raises
    ------
    OptionError, DtypeError
        When an option cannot be used. What `function` itself raises is passed on.

    Examples
    --------
    >>> import keywise as kw
    >>> from keywise.diagnosis import check_function
    >>> check_function(kw.attend, mask_argument="mask", arrays="numpy").healthy
    True
    >>> check_function(lambda q, k, v: kw.attend(q, k, v, scale=1.0), arrays="numpy").codes
    ('scale-missing',)
    """
    if not callable(function):
        raise DtypeError(f"function is a {type(function).__name__}; give something that can be called")
    for name, count in (("query_heads", query_heads), ("key_heads", key_heads), ("head_dim", head_dim)):
        check_int(name, count, minimum=1)
    if query_heads % key_heads:
        raise OptionError(f"key_heads={key_heads}: it divides query_heads={query_heads}")
    subject = Subject(
        function=function,
        mask=Mask(causal=causal, window=window),
        options={"scale": scale, "softcap": softcap, "sinks": sinks},
        mask_argument=mask_argument,
        heads=(query_heads, key_heads),
        head_dim=head_dim,
        dtype=dtype,
        kind=_kind(arrays, dtype),
    )
    examination = Examination()
    if _steady(examination, subject) and _compare(examination, subject):
        _poke(examination, subject)
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or repr(function)
    return examination.diagnosis(f"{name} on {subject.kind} arrays in {dtype}")


def _kind(arrays: str | None, dtype: str) -> str:
    if dtype not in {"float32", "float16", "bfloat16"}:
        raise OptionError(f"dtype={dtype!r}: it is 'float32', 'float16' or 'bfloat16'")
    kind = arrays if arrays is not None else "torch" if "torch" in sys.modules else "numpy"
    if kind not in {"torch", "numpy"}:
        raise OptionError(f"arrays={arrays!r}: it is 'torch' or 'numpy'")
    if kind == "numpy" and dtype == "bfloat16":
        raise OptionError("dtype='bfloat16': NumPy has no such type; use arrays='torch'")
    return kind


@dataclass(frozen=True, eq=False)
class Subject:
    """The function under examination, what it is meant to compute, and how to call it."""

    function: Callable[..., Any]
    mask: Mask
    options: dict[str, Any]
    mask_argument: str | None
    heads: tuple[int, int]
    head_dim: int
    dtype: str
    kind: str

    def inputs(self, queries: int = TOKENS, keys: int = TOKENS, *, size: float = 1.0) -> list[Any]:
        """Draw query, key and value; `size` multiplies the query."""
        generator = np.random.default_rng(3)
        shapes = [
            (BATCH, heads, tokens, self.head_dim)
            for heads, tokens in ((self.heads[0], queries), (self.heads[1], keys), (self.heads[1], keys))
        ]
        drawn = [generator.normal(size=shape) for shape in shapes]
        return [self.array(array * factor) for array, factor in zip(drawn, (size, 1.0, 1.0), strict=True)]

    def array(self, numbers: Array) -> Any:
        """Make an array of the kind and dtype that the function is to be tried with."""
        if self.kind == "numpy":
            return numbers.astype(self.dtype)
        try:
            import torch  # noqa: PLC0415 - slow to import, or absent
        except ImportError as error:
            raise ModelError(f"arrays='torch' needs torch ({error}): pip install 'keywise[hf]'") from error
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(getattr(torch, self.dtype))

    def boolean(self, seen: Array) -> Any:
        """Make a boolean mask of the function's kind."""
        if self.kind == "numpy":
            return seen
        import torch  # noqa: PLC0415

        return torch.from_numpy(np.ascontiguousarray(seen))

    def call(self, inputs: list[Any], seen: Array | None = None) -> Any:
        """Call the function and give its output as it is."""
        options = {} if seen is None else {str(self.mask_argument): self.boolean(seen)}
        output = self.function(*inputs, **options)
        return output[0] if isinstance(output, tuple) else output

    def output(self, inputs: list[Any], seen: Array | None = None) -> Array:
        """Call the function and give its output as float64."""
        return as_host_array("output", _without_gradients(self.call(inputs, seen))).floats(np.float64)

    def problem(self, inputs: list[Any], mask: Mask | None = None) -> Problem:
        """Say what the function is meant to compute."""
        return make_problem(*inputs, mask=mask or self.mask, bias=None, **self.options)

    def mask_with(self, **fields: Any) -> Mask:
        """Give the function's own mask with further rules."""
        return Mask(causal=self.mask.causal, window=self.mask.window, **fields)


def _without_gradients(output: Any) -> Any:
    return output.detach() if hasattr(output, "detach") else output


def _steady(examination: Examination, subject: Subject) -> bool:
    """Check what every comparison stands on: shape, inputs left alone, the same answer twice."""
    inputs = subject.inputs()
    before = [_numbers(array).copy() for array in inputs]
    first = subject.call(inputs)
    expected = (BATCH, subject.heads[0], TOKENS, subject.head_dim)
    if tuple(getattr(first, "shape", ())) != expected:
        shape = list(getattr(first, "shape", ())) or type(first).__name__
        measured = f"the output has shape {shape}, expected {list(expected)}"
        examination.found("output-shape", measured, shape=shape, expected=list(expected))
        return False
    examination.clean("output-shape")
    changed: dict[str, Any] = {
        name: int((_numbers(array) != was).sum())
        for name, array, was in zip(("query", "key", "value"), inputs, before, strict=True)
    }
    if any(changed.values()):
        told = " and ".join(f"{count} elements of {name}" for name, count in changed.items() if count)
        examination.found("inputs-modified", f"the call changed {told}", **changed)
        return False
    examination.clean("inputs-modified")
    one = as_host_array("output", _without_gradients(first)).floats(np.float64)
    difference = _apart(one, subject.output(inputs))
    if difference.max() > float(truth(_whole(subject.problem(inputs))).tolerance.max()):
        measured = f"two calls on the same input differ by up to {difference.max():.3g}"
        examination.found("not-deterministic", measured, difference=float(difference.max()))
        return False
    examination.clean("not-deterministic")
    return True


def _apart(one: Array, two: Array) -> Array:
    """Give the distance of two outputs: 0 where both are NaN or the same infinity, infinite where only one is."""
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    with np.errstate(invalid="ignore"):
        return np.where(same, 0.0, np.nan_to_num(np.abs(one - two), nan=np.inf))


def _numbers(array: Any) -> Array:
    return as_host_array("input", array).data


def _whole(problem: Problem) -> Problem:
    return at_rows(problem, np.arange(problem.shape.queries))


def _compare(examination: Examination, subject: Subject) -> bool:
    """Hold outputs on several inputs against the definition; tell whether to go on, with no cause known yet."""
    for words, queries in (("as many queries as keys", TOKENS), ("few queries", FEW), ("one query", 1)):
        inputs = subject.inputs(queries)
        judge(examination, subject.problem(inputs), np.arange(queries), subject.output(inputs), words)
        if examination.has_found_cause():
            return False
    if subject.mask_argument is None:
        masks = ("mask-inverted", "mask-added-as-numbers", "mask-lost", "padding-visible", "hidden-key-leak")
        examination.untestable("no mask_argument was named", *masks, "dead-row-nan", "dead-row-uniform")
    else:
        _compare_masks(examination, subject)
        if examination.has_found_cause():
            return False
    large = Examination()
    inputs = subject.inputs(size=OVERFLOWING)
    observed = subject.output(inputs)
    judge(large, subject.problem(inputs), np.arange(TOKENS), observed, "large scores")
    lost = large.finding("output-not-finite")
    if lost is not None and not examination.errors:
        examination.found("softmax-overflow", lost.measured, lost.where, **lost.evidence)
    elif (overflow := large.finding("float16-overflow")) is not None:
        examination.found("float16-overflow", overflow.measured, overflow.where, **overflow.evidence)
    else:
        examination.clean("softmax-overflow")
    _hidden_nan(examination, subject)
    return True


def _compare_masks(examination: Examination, subject: Subject) -> None:
    inputs = subject.inputs()
    rows = np.arange(TOKENS)
    own = np.eye(TOKENS, dtype=bool)
    seen = (np.random.default_rng(5).random((BATCH, 1, TOKENS, TOKENS)) < 0.6) | own
    judge(
        examination,
        subject.problem(inputs, subject.mask_with(allowed=seen)),
        rows,
        subject.output(inputs, seen),
        "mask",
    )
    real = np.ones((BATCH, 1, TOKENS, TOKENS), bool)
    real[1, ..., :PADDING] = False
    padded = subject.problem(inputs, subject.mask_with(starts=[0, PADDING]))
    judge(examination, padded, rows, subject.output(inputs, real), "left padding")
    if examination.errors:
        return
    empty = seen.copy()
    empty[0, :, TOKENS // 2] = False
    dead = subject.problem(inputs, subject.mask_with(allowed=empty))
    judge(examination, dead, rows, subject.output(inputs, empty), "a row without keys")


def _hidden_nan(examination: Examination, subject: Subject) -> None:
    """Put NaN where nobody may look; a function that lets it through would do so in use, but has not yet."""
    if examination.errors or not (subject.mask.causal or subject.mask_argument):
        examination.untestable("nothing hidden to put NaN into, or the output is wrong anyway", "hidden-nan-leak")
        return
    inputs = subject.inputs()
    numbers = as_host_array("value", inputs[2]).floats(np.float64).copy()
    numbers[:, :, -1] = np.nan
    inputs[2] = subject.array(numbers)
    seen = None
    if subject.mask_argument:
        seen = np.ones((BATCH, 1, TOKENS, TOKENS), bool)
        seen[..., -1] = False
    mask = subject.mask_with(allowed=seen) if seen is not None else subject.mask
    probe = Examination()
    rows = np.arange(TOKENS - 1)
    judge(probe, subject.problem(inputs, mask), rows, subject.output(inputs, seen)[:, :, rows], "NaN in a hidden value")
    leak = probe.finding("hidden-nan-leak")
    if leak is not None:
        examination.found(leak.code, leak.measured, leak.where, severity="warning", **leak.evidence)
    else:
        examination.clean("hidden-nan-leak")


def _poke(examination: Examination, subject: Subject) -> None:
    """Change what may not matter and see whether the output moves."""
    inputs = subject.inputs()
    problem = subject.problem(inputs)
    before = subject.output(inputs)
    tolerance = truth(_whole(problem)).tolerance

    def moved(code: str, words: str, changed: list[Any], rows: slice, items: slice = slice(None)) -> None:
        difference = _apart(subject.output(changed), before)[items, :, rows]
        limit = 2 * tolerance[items, :, rows]
        wrong: Array = np.asarray((difference > limit).any(axis=3))
        if not wrong.any():
            examination.clean(code)
            return
        touched = np.arange(TOKENS)[rows][wrong.any(axis=(0, 1))]
        measured = f"{words} moves outputs by up to {difference.max():.3g}, expected 0 (rounding: {limit.max():.2g})"
        where = Where(("poking",), (), tuple(touched.tolist()))
        examination.found(code, measured, where, moved=float(difference.max()))

    moved("strides-misread", "handing over views that are not contiguous", [_strided(a) for a in inputs], slice(None))
    moved(
        "batch-leak",
        "changing item 0",
        [subject.array(_numbers_changed(a, 0)) for a in inputs],
        slice(None),
        slice(1, 2),
    )
    if subject.mask.causal:
        moved(
            "future-leak", "changing the last key and value", _last_changed(subject, inputs, -1), slice(0, TOKENS - 1)
        )
    else:
        examination.untestable("not causal", "future-leak")
    left, right = subject.mask.window or (None, None)
    if left is not None and left + 1 < TOKENS:
        moved(
            "window-leak", "changing the first key and value", _last_changed(subject, inputs, 0), slice(left + 1, None)
        )
    else:
        examination.untestable("no window to the left", "window-leak")
    if not subject.mask.causal and left is None and right is None:
        order = np.arange(TOKENS)[::-1]
        moved(
            "key-order-matters",
            "reordering keys and values together",
            [inputs[0], *_reordered(inputs, order)],
            slice(None),
        )
    else:
        examination.untestable("the mask depends on the order of the keys", "key-order-matters")
    if subject.mask_argument:
        _poke_hidden(examination, subject, inputs, tolerance)


def _poke_hidden(examination: Examination, subject: Subject, inputs: list[Any], tolerance: Array) -> None:
    seen = np.ones((BATCH, 1, TOKENS, TOKENS), bool)
    seen[..., FEW] = False
    seen[:, :, FEW, FEW] = True
    rows = np.delete(np.arange(TOKENS), FEW)
    changed = _last_changed(subject, inputs, FEW)
    difference = _apart(subject.output(changed, seen), subject.output(inputs, seen))[:, :, rows]
    if (difference <= 2 * tolerance[:, :, rows]).all():
        examination.clean("hidden-key-leak")
    else:
        measured = f"changing a hidden key and value moves outputs by up to {difference.max():.3g}, expected 0"
        examination.found("hidden-key-leak", measured, Where(("poking",)), moved=float(difference.max()))


def _strided(array: Any) -> Any:
    """Give the same numbers stored [batch, tokens, heads, head_dim], as most models hand them over."""
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array.swapaxes(1, 2)).swapaxes(1, 2)
    return array.transpose(1, 2).contiguous().transpose(1, 2)


def _numbers_changed(array: Any, item: int) -> Array:
    numbers = as_host_array("input", array).floats(np.float64).copy()
    numbers[item] = 1.5 - numbers[item]
    return numbers


def _last_changed(subject: Subject, inputs: list[Any], position: int) -> list[Any]:
    """Change key and value at one position."""
    changed = [inputs[0]]
    for array in inputs[1:]:
        numbers = as_host_array("input", array).floats(np.float64).copy()
        numbers[:, :, position] = 1.5 - numbers[:, :, position]
        changed.append(subject.array(numbers))
    return changed


def _reordered(inputs: list[Any], order: Array) -> list[Any]:
    if isinstance(inputs[0], np.ndarray):
        return [array[:, :, order] for array in inputs[1:]]
    return [array[:, :, order.tolist()] for array in inputs[1:]]
