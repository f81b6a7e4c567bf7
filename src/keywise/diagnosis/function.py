"""Examine an attention function by running it on small random inputs: `check_function`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from keywise.attention.mask import Mask
from keywise.diagnosis.findings import Diagnosis
from keywise.diagnosis.function_probes import (
    check_hidden_nan,
    check_large_scores,
    check_outputs,
    check_prerequisites,
    run_probes,
)
from keywise.diagnosis.function_under_test import FunctionUnderTest
from keywise.diagnosis.results import CheckResults
from keywise.errors import DtypeError, OptionError
from keywise.util.checks import check_int

DTYPES = ("float32", "float16", "bfloat16")
LIBRARIES = ("torch", "numpy")


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
    """Diagnose an attention function by running it on small random inputs.

    The function is called as ``function(query, key, value)`` with arrays [B, heads, tokens, head_dim]. Bind other
    arguments with `functools.partial`. The options of `check_function` describe what the function should compute; they
    are not passed to it.

    Parameters
    ----------
    function : callable
        Returns the output [B, Hq, Q, head_dim], or a tuple that begins with it.
    causal : bool
        Whether a query sees no later key; with fewer queries than keys aligned at the last key.
    window : (int or None, int or None), optional
        Keys visible to the left and to the right, as in `keywise.Mask`.
    scale, softcap, sinks
        As in `keywise.attend`.
    mask_argument : str, optional
        Keyword for a boolean array [B, 1, Q, N], True where a query may attend. Masks are tested only if it is given.
    query_heads, key_heads, head_dim : int
        Sizes to test; with fewer key heads, query heads share them.
    dtype : str
        ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    arrays : str, optional
        ``"torch"`` or ``"numpy"``: the arrays that the function accepts. Default: torch if it has been imported.

    Returns
    -------
    Diagnosis

    Raises
    ------
    OptionError, DtypeError
        An option cannot be used. Errors of `function` itself are not caught.

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
        raise DtypeError("function", "must be callable", got=function)
    for name, count in (("query_heads", query_heads), ("key_heads", key_heads), ("head_dim", head_dim)):
        check_int(name, count, minimum=1)
    if query_heads % key_heads:
        raise OptionError("key_heads", f"must divide query_heads={query_heads}", got=key_heads)
    tested = FunctionUnderTest(
        function=function,
        mask=Mask(causal=causal, window=window),
        options={"scale": scale, "softcap": softcap, "sinks": sinks},
        mask_argument=mask_argument,
        query_heads=query_heads,
        key_heads=key_heads,
        head_dim=head_dim,
        dtype=dtype,
        library=_choose_library(arrays, dtype),
    )
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or repr(function)
    return _examine(tested).make_diagnosis(f"{name} on {tested.library} arrays in {dtype}")


def _choose_library(arrays: str | None, dtype: str) -> str:
    if dtype not in DTYPES:
        raise OptionError("dtype", f"must be one of {', '.join(DTYPES)}", got=dtype)
    imported = "torch" if "torch" in sys.modules else "numpy"
    library = imported if arrays is None else arrays
    if library not in LIBRARIES:
        raise OptionError("arrays", f"must be one of {', '.join(LIBRARIES)}", got=arrays)
    if library == "numpy" and dtype == "bfloat16":
        raise OptionError(
            "dtype", "must be float32 or float16 for NumPy arrays", got=dtype, remedy="pass arrays='torch'"
        )
    return library


def _examine(tested: FunctionUnderTest) -> CheckResults:
    """Run the checks in order, up to the stage that finds an error."""
    results = check_prerequisites(tested)
    if results.has_errors:
        return results
    results.merge(check_outputs(tested))
    if results.has_call_errors:
        return results
    results.merge(check_large_scores(tested, wrong_already=results.has_errors))
    results.merge(check_hidden_nan(tested, wrong_already=results.has_errors))
    results.merge(run_probes(tested))
    return results
