"""Arrays whose elements are not where their type says: read right, or refused by the name of the argument."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import keywise as kw
from keywise.attention.arrays import as_host_array
from tests.attention.test_arrays import DlpackArray

GENERATOR = torch.Generator().manual_seed(3)
QUERY, KEY, VALUE = (torch.randn(2, 4, tokens, 8, generator=GENERATOR) for tokens in (3, 6, 6))
FLOATS = {
    "query": QUERY,
    "key": KEY,
    "value": VALUE,
    "bias": torch.randn(4, 3, 6, generator=GENERATOR),
    "sinks": torch.randn(4, generator=GENERATOR),
    "query_weights": torch.rand(4, 3, generator=GENERATOR),
}
OTHERS = {
    "mask": torch.rand(3, 6, generator=GENERATOR) < 0.8,
    "mask.allowed": torch.rand(2, 1, 3, 6, generator=GENERATOR) < 0.8,
    "mask.lengths": torch.tensor([5, 6]),
    "mask.starts": torch.tensor([0, 2]),
    "mask.documents": torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2]]),
    "segment_ids": torch.tensor([0, 0, 1, -1, 2, 2]),
    "segment_bounds": torch.tensor([0, 2, 5]),
}
ARGUMENTS = {**FLOATS, **OTHERS}


def call(argument: str, array: Any) -> kw.AttentionStats:
    """Compute attention with one argument replaced."""
    changes = {argument: array}
    if argument.startswith("mask."):
        changes = {"mask": kw.Mask(**{argument.removeprefix("mask."): array})}
    return kw.attention_stats(**{"query": QUERY, "key": KEY, "value": VALUE, **changes})


def check_refusal(argument: str | None, run: Callable[[], Any]) -> None:
    """Check that a call is refused with the name of an argument, or of any."""
    with pytest.raises(kw.KeywiseError) as caught:
        run()
    assert caught.value.argument in ({argument} if argument else {*ARGUMENTS}), caught.value


def free(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def free_view(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view behind the start of a storage that is freed."""
    storage = tensor.new_empty(tensor.numel() + 1000)
    view = storage[1000:].view(tensor.shape).copy_(tensor)
    storage.untyped_storage().resize_(0)
    return view


def shrink(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(tensor.nbytes - 1)
    return tensor


def shrink_before(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view whose storage has as many bytes as the view, but begins before it."""
    storage = tensor.new_empty(tensor.numel() + 1000)
    view = storage[1000:].view(tensor.shape).copy_(tensor)
    storage.untyped_storage().resize_(tensor.nbytes)
    return view


class Elsewhere(torch.Tensor):
    """A tensor whose elements are in an attribute."""

    elements: torch.Tensor

    @staticmethod
    def __new__(cls, elements: torch.Tensor) -> Any:
        self = torch.Tensor._make_wrapper_subclass(cls, elements.shape, dtype=elements.dtype)
        self.elements = elements
        return self

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = [argument.elements if isinstance(argument, Elsewhere) else argument for argument in args]
        return Elsewhere(function(*arguments, **(kwargs or {})))


class Centimetres(torch.Tensor):
    """A tensor whose operations mean something else."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(function, types, args, kwargs or {})


class Quantity(np.ndarray):
    """An array whose operations mean something else."""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("no operation may be called")


class BrokenExport(DlpackArray):
    def __init__(self) -> None:
        super().__init__(np.zeros(1))

    def __dlpack__(self, **_: Any) -> Any:
        raise OSError("the device is gone")


class NullExport(DlpackArray):
    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor.numpy())
        self.tensor = free(tensor)

    def __dlpack__(self, **_: Any) -> Any:
        return torch.utils.dlpack.to_dlpack(self.tensor)


UNREADABLE: dict[str, Callable[[torch.Tensor], Any]] = {
    "freed": free,
    "a view of a freed storage": free_view,
    "cut short": shrink,
    "behind the end of its storage": shrink_before,
    "fake": lambda tensor: FakeTensorMode().from_tensor(tensor),
    "on no device": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor.float()]),
    "elsewhere": Elsewhere,
    "of other operations": lambda tensor: tensor.as_subclass(Centimetres),
    "masked": lambda tensor: np.ma.masked_array(tensor.numpy(), np.ones(tensor.shape, bool)),
    "quantities": lambda tensor: tensor.numpy().view(Quantity),
    "objects": lambda tensor: tensor.numpy().astype(object),
    "records": lambda tensor: np.zeros(tensor.shape, [("x", np.float32), ("y", np.int32)]),
    "strings": lambda tensor: tensor.numpy().astype(str),
    "complex": lambda tensor: tensor.to(torch.complex64).conj(),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8),
    "a broken export": lambda _: BrokenExport(),
    "an export without memory": NullExport,
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.filterwarnings("ignore:.*(nested tensors|Nested|quantize|MaskedTensor).*")
def test_arrays_without_readable_elements_are_refused_by_name(argument: str, kind: str) -> None:
    if argument in {"query", "key", "value"} and kind in {"cut short", "behind the end of its storage"}:
        pytest.skip("found for large tensors only")
    array = UNREADABLE[kind](ARGUMENTS[argument])
    check_refusal(argument, lambda: call(argument, array))


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("change", [shrink, shrink_before, free, free_view])
def test_large_tensors_beyond_their_storage_are_refused_by_name(which: int, change: Any) -> None:
    arrays = [torch.randn(1, 4, 1024, 64) for _ in range(3)]
    kw.attend(*arrays, mask=kw.Mask(lengths=[1]))
    arrays[which] = change(arrays[which])
    check_refusal(("query", "key", "value")[which], lambda: kw.attend(*arrays))


@pytest.mark.parametrize("kind", ["freed", "a view of a freed storage", "cut short", "fake", "masked", "elsewhere"])
@pytest.mark.parametrize("argument", ["key", "value"])
def test_a_cache_refuses_arrays_without_readable_elements(argument: str, kind: str) -> None:
    cache = kw.KVCache(layers=1)
    arrays = {"key": KEY, "value": VALUE, argument: UNREADABLE[kind](KEY)}
    check_refusal(argument, lambda: cache.append(0, **arrays))
    assert len(cache) == 0


def trace(argument: str, tensor: torch.Tensor) -> Any:
    return torch.jit.trace(lambda array: call(argument, array).output, (tensor,), check_trace=False)


def differentiate(argument: str, tensor: torch.Tensor) -> Any:
    with forward_ad.dual_level():
        return call(argument, forward_ad.make_dual(tensor, torch.ones_like(tensor)))


TRANSFORMS: dict[str, Callable[[str, torch.Tensor], Any]] = {
    "jit.trace": trace,
    "make_fx": lambda argument, tensor: make_fx(lambda array: call(argument, array).output)(tensor),
    "make_fx before dispatch": lambda argument, tensor: make_fx(
        lambda array: call(argument, array).output, pre_dispatch=True
    )(tensor),
    "make_fx of fakes": lambda argument, tensor: make_fx(
        lambda array: call(argument, array).output, tracing_mode="fake"
    )(tensor),
    "vmap": lambda argument, tensor: torch.vmap(lambda array: call(argument, array).output)(tensor[None]),
    "functionalize": lambda argument, tensor: torch.func.functionalize(lambda array: call(argument, array).output)(
        tensor
    ),
    "functionalize a view": lambda argument, tensor: torch.func.functionalize(
        lambda array: call(argument, array[1]).output
    )(torch.stack([tensor, tensor])),
    "fx": lambda argument, _: torch.fx.symbolic_trace(lambda array: call(argument, array)),
}
TRACES = {"jit.trace", "make_fx", "make_fx before dispatch", "make_fx of fakes"}
"""Every tensor of a trace may depend on its input, so that the first one is refused."""


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_arguments_inside_transforms_are_refused_by_name(argument: str, transform: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named = None if transform in TRACES else argument
        check_refusal(named, lambda: TRANSFORMS[transform](argument, ARGUMENTS[argument]))


@pytest.mark.parametrize("argument", FLOATS)
def test_derivatives_are_refused_by_name(argument: str) -> None:
    tensor = FLOATS[argument]
    check_refusal(argument, lambda: differentiate(argument, tensor))
    check_refusal(argument, lambda: torch.func.grad(lambda array: call(argument, array).output.sum())(tensor))
    tangents = (torch.ones_like(tensor),)
    # torch wraps every tensor that is read inside, so that the first one is refused.
    check_refusal(None, lambda: torch.func.jvp(lambda array: call(argument, array).output, (tensor,), tangents))


def test_tensors_without_tangents_are_read_inside_a_dual_level() -> None:
    expected = call("query", QUERY).output
    with forward_ad.dual_level():
        assert torch.equal(call("query", QUERY).output, expected)
        primal = forward_ad.unpack_dual(forward_ad.make_dual(QUERY, torch.ones_like(QUERY))).primal
        assert torch.equal(call("query", primal).output, expected)


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def test_modes_that_only_watch_operations_do_not_change_results() -> None:
    expected = call("query", QUERY).output
    with Watching(), torch.device("meta"):
        assert torch.equal(call("query", QUERY).output, expected)
        assert torch.equal(call("query", torch.nn.Parameter(QUERY, requires_grad=False)).output, expected)


READABLE: dict[str, Callable[[torch.Tensor], Any]] = {
    "parameter": lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
    "buffer": torch.nn.Buffer,
    "inference": torch.inference_mode()(torch.clone),
    "read-only": lambda tensor: np.frombuffer(tensor.numpy().tobytes(), tensor.numpy().dtype).reshape(tensor.shape),
    "record array": lambda tensor: tensor.numpy().view(np.recarray),
    "behind a gap": lambda tensor: torch.stack([tensor, tensor])[1],
    "exported": lambda tensor: DlpackArray(tensor.numpy()),
}


def check_equal(actual: kw.AttentionStats, expected: kw.AttentionStats, message: str) -> None:
    for name in ("output", "lse", "key_mass", "segment_mass"):
        actual_array, expected_array = getattr(actual, name), getattr(expected, name)
        if expected_array is not None:
            actual_array = getattr(actual_array, "array", actual_array)
            np.testing.assert_array_equal(np.asarray(actual_array), np.asarray(expected_array), err_msg=message)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_arrays_with_readable_elements_give_the_same_bits(argument: str) -> None:
    expected = call(argument, ARGUMENTS[argument])
    for kind, make in READABLE.items():
        check_equal(call(argument, make(ARGUMENTS[argument])), expected, kind)


@pytest.mark.parametrize("argument", FLOATS)
def test_negated_views_are_refused_by_name(argument: str) -> None:
    negated = torch.view_as_complex(torch.stack([FLOATS[argument], FLOATS[argument]], -1)).conj().imag
    assert negated.is_neg()
    check_refusal(argument, lambda: call(argument, negated))
    resolved = negated.resolve_neg()
    check_equal(call(argument, resolved), call(argument, -FLOATS[argument]), argument)


def test_a_matrix_is_read_as_an_array() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix(FLOATS["bias"][0].numpy())
    check_equal(call("bias", matrix), call("bias", FLOATS["bias"][0]), "matrix")
    assert type(as_host_array("bias", matrix).data) is np.ndarray


JAX_SCRIPT = """
import jax, numpy as np, keywise as kw
x = np.random.default_rng(0).standard_normal((1, 2, 5, 8)).astype(np.float32)
array = jax.numpy.asarray(x)
assert np.array_equal(np.asarray(kw.attend(array, x, x)), kw.attend(x, x, x))
for transform in (jax.jit, jax.vmap, lambda function: jax.grad(lambda array: function(array).sum())):
    try:
        transform(lambda array: kw.attend(array, x, x))(array)
    except kw.DtypeError as error:
        assert error.argument == "query" and "Tracer" in str(error), error
    else:
        raise AssertionError("taken")
"""


def test_jax_arrays_are_read_and_tracers_refused() -> None:
    pytest.importorskip("jaxlib")
    # In a process of its own: other tests fork, which JAX's threads do not survive.
    subprocess.run([sys.executable, "-c", JAX_SCRIPT], check=True, timeout=120)


def test_compiled_functions_give_the_same_bits() -> None:
    expected = kw.attend(QUERY * 2, KEY, VALUE, mask=kw.Mask(causal=True))
    compiled = torch.compile(lambda query: kw.attend(query * 2, KEY, VALUE, mask=kw.Mask(causal=True)), backend="eager")
    assert torch.equal(compiled(QUERY), expected)


HUGE_STRIDE = np.lib.stride_tricks.as_strided(np.zeros(4, np.float32), (2, 4, 3, 8), (1 << 61, 32, 32, 4))


def test_exported_arrays_with_impossible_strides_are_refused() -> None:
    check_refusal("query", lambda: call("query", DlpackArray(HUGE_STRIDE)))


@pytest.mark.parametrize("top_k", [65, 1_000, 10**7, 2**31 - 1])
def test_a_top_k_above_64_is_limited_to_the_number_of_keys(target: str, top_k: int) -> None:
    key = torch.randn(2, 4, 50, 8, generator=torch.Generator().manual_seed(0))
    stats = kw.attention_stats(QUERY, key, key, top_k=top_k)
    assert stats.top_keys.shape == stats.top_weights.shape == (2, 4, 3, 50)
    np.testing.assert_allclose(stats.top_mass, 1, rtol=1e-5)
    cache = kw.KVCache(layers=1)
    cache.append(0, key, key)
    assert cache.attention_stats(0, QUERY, top_k=top_k).top_keys.shape == (2, 4, 3, 50)


LISTS = {
    "ragged": [[0, 1], [2]],
    "of text": ["0", "1"],
    "of nothing": [None, 0],
    "of numbers past 64 bits": [10**30, 0],
    "of fractions": [0.5, 1.0],
    "of tensors without memory": [torch.zeros((), dtype=torch.int64, device="meta"), 0],
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("argument", ["mask.lengths", "mask.starts", "mask.documents", "segment_ids", "segment_bounds"])
def test_lists_that_are_no_integers_are_refused_by_name(argument: str, kind: str) -> None:
    check_refusal(argument, lambda: call(argument, LISTS[kind]))


@pytest.mark.parametrize("argument", ["segment_ids", "segment_bounds", "mask.documents", "mask.lengths"])
@pytest.mark.parametrize("number", [10**12, -(10**12), 2**63 - 1, -(2**63), 2**64 - 1])
def test_integers_out_of_range_are_refused_by_name(argument: str, number: int) -> None:
    array = ARGUMENTS[argument].numpy().astype(np.uint64 if number >= 2**63 else np.int64)
    array.flat[-1] = number
    check_refusal(argument, lambda: call(argument, array))


def test_numpy_integers_are_accepted_where_integers_are() -> None:
    mask = kw.Mask(causal=True, window=(np.int64(2), None), keep_first=np.int32(1), lengths=np.int16(5))
    expected = kw.Mask(causal=True, window=(2, None), keep_first=1, lengths=[5, 5])
    actual = kw.attend(QUERY, KEY, VALUE, mask=mask)
    assert torch.equal(actual, kw.attend(QUERY, KEY, VALUE, mask=expected))


NUMBERS = {"scale": kw.attend, "softcap": kw.attend, "top_k": kw.attention_stats, "first_key": kw.partial}


@pytest.mark.parametrize("argument", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        True,
        np.True_,
        "1",
        b"1",
        1j,
        [1],
        np.ones(1),
        np.array(1.0),
        torch.tensor(1.0),
        10**5000,
        -(10**5000),
        np.float64("nan"),
        np.longdouble("inf"),
        free(torch.tensor(1.0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_that_cannot_be_used_are_refused_by_name(argument: str, value: Any) -> None:
    function: Any = NUMBERS[argument]
    check_refusal(argument, lambda: function(QUERY, KEY, VALUE, **{argument: value}))


def test_float64_options_beyond_float32_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sinks = np.array([-1e300, -np.inf, -1e300, -np.inf])
        assert torch.equal(kw.attend(QUERY, KEY, VALUE, sinks=sinks), kw.attend(QUERY, KEY, VALUE))
        check_refusal("query_weights", lambda: call("query_weights", np.array([1.0, 1e300, 1.0])))


def test_partials_that_do_not_fit_are_refused() -> None:
    part = kw.partial(QUERY, KEY, VALUE)
    for field in ("running_max", "running_sum", "values"):
        cut = kw.Partial(**{**vars(part), field: getattr(part, field)[:1]})
        check_refusal("partials", lambda cut=cut: kw.merge(part, cut))
        check_refusal("partials", lambda cut=cut: part.share_of(cut))
    for sinks in ([0.0, float("nan"), 0.0, 0.0], ["a"] * 4, [0.0], np.zeros(4, int), free(torch.zeros(4))):
        check_refusal("sinks", lambda sinks=sinks: part.lse(sinks))
        check_refusal("sinks", lambda sinks=sinks: part.output(sinks))
    np.testing.assert_array_equal(part.lse([0.0] * 4), part.lse(torch.zeros(4, dtype=torch.bfloat16)))
    check_refusal("heads", lambda: kw.Partial.empty(1, -2, 3, 4))
    check_refusal("queries", lambda: kw.Partial.empty(1, 2, 2.5, 4))  # type: ignore[arg-type]
