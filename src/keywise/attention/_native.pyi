"""
The kernels of keywise. Private: keywise.attention.native is the only caller.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


class Refusal:
    """Which argument breaks which rule."""

    @property
    def argument(self) -> str:
        """query, key or value."""

    @property
    def chunk(self) -> int:
        """Number of the chunk of keys and values."""

    @property
    def rule(self) -> str:
        """Name of the rule."""

class Inputs:
    """Query, keys and values of one call, checked against each other."""

    @property
    def query_array(self) -> object:
        """The query as given, or as a HostArray."""

    @property
    def key_arrays(self) -> tuple:
        """The chunks of keys, likewise."""

    @property
    def value_arrays(self) -> tuple:
        """The chunks of values, likewise."""

    @property
    def dtype(self) -> str:
        """Name of the query's element type."""

    @property
    def batch(self) -> int: ...

    @property
    def query_heads(self) -> int: ...

    @property
    def queries(self) -> int: ...

    @property
    def keys(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def scores(self) -> tuple[int, int, int, int]:
        """(batch, query heads, queries, keys)."""

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int, int]:
        """(batch, query heads, key heads, queries, keys, head_dim, value_dim)."""

class CheckedMask:
    """A mask whose arrays are checked and broadcast."""

    def __init__(self, causal: bool, left: int, right: int, keep_first: int, lengths: Annotated[NDArray[numpy.int64], dict(shape=(None,), device='cpu', writable=False)] | None = None, starts: Annotated[NDArray[numpy.int64], dict(shape=(None,), device='cpu', writable=False)] | None = None, documents: Annotated[NDArray[numpy.int32], dict(shape=(None, None), device='cpu', writable=False)] | None = None, allowed: Annotated[NDArray[numpy.bool_], dict(shape=(None, None, None, None), device='cpu', writable=False)] | None = None) -> None: ...

class StatsPlan:
    """Which statistics a call computes, for which queries."""

    def __init__(self, top_k: int, key_mass: bool, first_query: int, last_query: int, segment_count: int | None = None, segment_ranges: Annotated[NDArray[numpy.int64], dict(shape=(None, None), device='cpu', writable=False)] | None = None, query_weights: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)] | None = None) -> None: ...

class DropoutPlan:
    """Which weights a call drops."""

    def __init__(self, seed: int, offset: int, threshold: int, factor: float) -> None: ...

class DefaultFloatMode:
    """
    A context in which the thread rounds to nearest and keeps subnormal numbers.
    """

    def __init__(self) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> None: ...

def set_array_functions(host_array: object, as_readable_array: object, allocate_result: object, to_library: object) -> None:
    """
    Set the functions for arrays that are neither plain torch tensors nor plain NumPy arrays.
    """

def read_inputs(query: object | None, keys: tuple, values: tuple) -> Inputs | Refusal:
    """
    Read and check the arrays of a call; keys and values come in as many chunks as each other.
    """

def attend(inputs: Inputs, mask: CheckedMask, stats: StatsPlan | None, bias: Annotated[NDArray, dict(shape=(None, None, None, None), device='cpu', writable=False)] | None, sinks: Annotated[NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)] | None, scale: float | None, softcap: float, dropout: DropoutPlan | None, first_key: int, transposed_output: bool, partial: bool, for_training: bool, target: str, threads: int) -> dict:
    """
    Run one call and return its results by name: the output or the partial, the statistics, and for training the LSE of every query.
    """

class SavedResults:
    """Results of a forward pass, and gradients of its results."""

    def __init__(self, output_gradient: Annotated[NDArray, dict(shape=(None, None, None, None), device='cpu', writable=False)], output: Annotated[NDArray, dict(shape=(None, None, None, None), device='cpu', writable=False)], lse: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)], lse_rest: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)] | None = None, entropy: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)] | None = None, segment_mass: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), device='cpu', writable=False)] | None = None, lse_gradient: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)] | None = None, entropy_gradient: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)] | None = None, key_mass_gradient: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), device='cpu', writable=False)] | None = None, segment_mass_gradient: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), device='cpu', writable=False)] | None = None) -> None: ...

def attend_backward(inputs: Inputs, mask: CheckedMask, stats: StatsPlan | None, bias: Annotated[NDArray, dict(shape=(None, None, None, None), device='cpu', writable=False)] | None, sinks: Annotated[NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)] | None, scale: float | None, softcap: float, dropout: DropoutPlan | None, saved: SavedResults, needs: Sequence[str], bias_shape: Sequence[int] | None, target: str, threads: int) -> dict:
    """
    Run one backward pass and return the gradients by name; that of the bias in its shape, of four axes.
    """

class QuantisedMatrix:
    """A matrix in the blocks of a GGUF file."""

    def __init__(self, bytes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], format: int, columns: int) -> None: ...

    def multiply(self, inputs: object, target: str, threads: int) -> object:
        """Multiply rows [1, 1, rows, columns] by the transpose of the matrix."""

    def write_weights(self, first_row: int, last_row: int, output: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], dtype: str, target: str, threads: int) -> None:
        """Write the weights of some rows into a buffer of bytes."""

def set_main_thread(thread: int) -> None:
    """Name the thread whose calls signals interrupt."""

def environment(name: str) -> str | None:
    """Return a variable of the environment as it is now, or None."""

def multiply_adds(target: str, rounds: int, pairs: bool) -> float:
    """
    Multiply and add in registers alone, pairs of bfloat16 if asked for; return the number of operations.
    """

def add_up(target: str, data: Annotated[NDArray[numpy.float32], dict(shape=(None,), device='cpu', writable=False)]) -> float:
    """Sum a contiguous float32 buffer."""

def candidates() -> list[tuple[str, str]]:
    """
    Return the targets compiled in, best first, each with the reason why it cannot run here, or ''.
    """
