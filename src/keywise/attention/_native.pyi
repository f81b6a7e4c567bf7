"""
The kernels of keywise. Private: keywise.attention.kernels is the only caller.
"""

from typing import Annotated

import numpy
from numpy.typing import NDArray


class Call:
    """One call of attention; arrays are validated by the caller."""

    def __init__(self) -> None: ...

    @property
    def dtype(self) -> str: ...

    @dtype.setter
    def dtype(self, arg: str, /) -> None: ...

    @property
    def stored(self) -> str: ...

    @stored.setter
    def stored(self, arg: str, /) -> None: ...

    @property
    def query(self) -> Annotated[NDArray, dict(shape=(None, None, None, None), device='cpu', writable=False)]: ...

    @query.setter
    def query(self, arg: Annotated[NDArray, dict(shape=(None, None, None, None), device='cpu', writable=False)], /) -> None: ...

    def add_piece(self, key: Annotated[NDArray, dict(shape=(None, None, None, None), device='cpu', writable=False)], value: Annotated[NDArray, dict(shape=(None, None, None, None), device='cpu', writable=False)]) -> None:
        """Add the next piece of keys and values."""

    def add_scales(self, key: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)], value: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)]) -> None:
        """Add the scales of the next int8 piece."""

    @property
    def bias(self) -> Annotated[NDArray, dict(shape=(None, None, None, None), device='cpu', writable=False)] | None: ...

    @bias.setter
    def bias(self, arg: Annotated[NDArray, dict(shape=(None, None, None, None), device='cpu', writable=False)] | None, /) -> None: ...

    @property
    def bias_dtype(self) -> str: ...

    @bias_dtype.setter
    def bias_dtype(self, arg: str, /) -> None: ...

    @property
    def sinks(self) -> Annotated[NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)] | None: ...

    @sinks.setter
    def sinks(self, arg: Annotated[NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)] | None, /) -> None: ...

    @property
    def scale(self) -> float: ...

    @scale.setter
    def scale(self, arg: float, /) -> None: ...

    @property
    def softcap(self) -> float: ...

    @softcap.setter
    def softcap(self, arg: float, /) -> None: ...

    @property
    def causal(self) -> bool: ...

    @causal.setter
    def causal(self, arg: bool, /) -> None: ...

    @property
    def left(self) -> int: ...

    @left.setter
    def left(self, arg: int, /) -> None: ...

    @property
    def right(self) -> int: ...

    @right.setter
    def right(self, arg: int, /) -> None: ...

    @property
    def keep_first(self) -> int: ...

    @keep_first.setter
    def keep_first(self, arg: int, /) -> None: ...

    @property
    def first_key(self) -> int: ...

    @first_key.setter
    def first_key(self, arg: int, /) -> None: ...

    @property
    def lengths(self) -> Annotated[NDArray[numpy.int64], dict(shape=(None,), device='cpu', writable=False)]: ...

    @lengths.setter
    def lengths(self, arg: Annotated[NDArray[numpy.int64], dict(shape=(None,), device='cpu', writable=False)], /) -> None: ...

    @property
    def starts(self) -> Annotated[NDArray[numpy.int64], dict(shape=(None,), device='cpu', writable=False)]: ...

    @starts.setter
    def starts(self, arg: Annotated[NDArray[numpy.int64], dict(shape=(None,), device='cpu', writable=False)], /) -> None: ...

    @property
    def documents(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None, None), device='cpu', writable=False)] | None: ...

    @documents.setter
    def documents(self, arg: Annotated[NDArray[numpy.int32], dict(shape=(None, None), device='cpu', writable=False)] | None, /) -> None: ...

    @property
    def allowed(self) -> Annotated[NDArray[numpy.bool_], dict(shape=(None, None, None, None), device='cpu', writable=False)] | None: ...

    @allowed.setter
    def allowed(self, arg: Annotated[NDArray[numpy.bool_], dict(shape=(None, None, None, None), device='cpu', writable=False)] | None, /) -> None: ...

    @property
    def output(self) -> Annotated[NDArray, dict(shape=(None, None, None, None), device='cpu')] | None: ...

    @output.setter
    def output(self, arg: Annotated[NDArray, dict(shape=(None, None, None, None), device='cpu')] | None, /) -> None: ...

    @property
    def peak(self) -> Annotated[NDArray[numpy.float32], dict(device='cpu')] | None: ...

    @peak.setter
    def peak(self, arg: Annotated[NDArray[numpy.float32], dict(device='cpu')] | None, /) -> None: ...

    @property
    def total(self) -> Annotated[NDArray[numpy.float32], dict(device='cpu')] | None: ...

    @total.setter
    def total(self, arg: Annotated[NDArray[numpy.float32], dict(device='cpu')] | None, /) -> None: ...

    @property
    def values(self) -> Annotated[NDArray[numpy.float32], dict(device='cpu')] | None: ...

    @values.setter
    def values(self, arg: Annotated[NDArray[numpy.float32], dict(device='cpu')] | None, /) -> None: ...

    @property
    def first_row(self) -> int: ...

    @first_row.setter
    def first_row(self, arg: int, /) -> None: ...

    @property
    def last_row(self) -> int: ...

    @last_row.setter
    def last_row(self, arg: int, /) -> None: ...

    @property
    def top(self) -> int: ...

    @top.setter
    def top(self, arg: int, /) -> None: ...

    @property
    def lse(self) -> Annotated[NDArray[numpy.float32], dict(device='cpu')] | None: ...

    @lse.setter
    def lse(self, arg: Annotated[NDArray[numpy.float32], dict(device='cpu')] | None, /) -> None: ...

    @property
    def entropy(self) -> Annotated[NDArray[numpy.float32], dict(device='cpu')] | None: ...

    @entropy.setter
    def entropy(self, arg: Annotated[NDArray[numpy.float32], dict(device='cpu')] | None, /) -> None: ...

    @property
    def top_keys(self) -> Annotated[NDArray[numpy.int32], dict(device='cpu')] | None: ...

    @top_keys.setter
    def top_keys(self, arg: Annotated[NDArray[numpy.int32], dict(device='cpu')] | None, /) -> None: ...

    @property
    def top_weights(self) -> Annotated[NDArray[numpy.float32], dict(device='cpu')] | None: ...

    @top_weights.setter
    def top_weights(self, arg: Annotated[NDArray[numpy.float32], dict(device='cpu')] | None, /) -> None: ...

    @property
    def covered(self) -> Annotated[NDArray[numpy.float32], dict(device='cpu')] | None: ...

    @covered.setter
    def covered(self, arg: Annotated[NDArray[numpy.float32], dict(device='cpu')] | None, /) -> None: ...

    @property
    def key_mass(self) -> Annotated[NDArray[numpy.float32], dict(device='cpu')] | None: ...

    @key_mass.setter
    def key_mass(self, arg: Annotated[NDArray[numpy.float32], dict(device='cpu')] | None, /) -> None: ...

    @property
    def segment_mass(self) -> Annotated[NDArray[numpy.float32], dict(device='cpu')] | None: ...

    @segment_mass.setter
    def segment_mass(self, arg: Annotated[NDArray[numpy.float32], dict(device='cpu')] | None, /) -> None: ...

    @property
    def runs(self) -> Annotated[NDArray[numpy.int64], dict(shape=(None, None), device='cpu', writable=False)] | None: ...

    @runs.setter
    def runs(self, arg: Annotated[NDArray[numpy.int64], dict(shape=(None, None), device='cpu', writable=False)] | None, /) -> None: ...

    @property
    def row_weights(self) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)] | None: ...

    @row_weights.setter
    def row_weights(self, arg: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)] | None, /) -> None: ...

def run(call: Call, target: str, threads: int, interruptible: bool) -> None:
    """
    Run a call on a target; where it is interruptible, Ctrl-C between blocks raises KeyboardInterrupt.
    """

def attend(exchange: object, query: object, key: object, value: object, causal: bool, left: int, right: int, keep_first: int, scale: float | None, transposed_output: bool, target: str, threads: int, interruptible: bool, plan: tuple[int, bool, int, int, Annotated[NDArray[numpy.int64], dict(shape=(None, None), device='cpu', writable=False)], int | None, Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)] | None] | None) -> object:
    """
    Attend to tensors of the library that gives `exchange`, keys and values in tuples where they lie in pieces; None where one of them needs a closer look.
    """

def environment(name: str) -> str | None:
    """Give a variable of the environment as it is now, or None."""

def multiply_adds(target: str, rounds: int, pairs: bool) -> float:
    """
    Multiply and add in registers alone, pairs of bfloat16 where asked for; gives the number of operations.
    """

def add_up(target: str, data: Annotated[NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)]) -> float:
    """Sum a contiguous float32 buffer."""

def candidates() -> list[tuple[str, str]]:
    """
    Targets compiled in, best first, with the reason each cannot run here or ''.
    """
