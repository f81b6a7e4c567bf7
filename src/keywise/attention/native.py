"""The interface to the native module, which no other file imports."""

from __future__ import annotations

import os
from threading import main_thread

from keywise.attention import _native
from keywise.attention._native import (
    CheckedMask,
    DefaultFloatMode,
    DropoutPlan,
    Inputs,
    QuantisedMatrix,
    Refusal,
    SavedResults,
    StatsPlan,
    attend,
    attend_backward,
    multiply_adds,
    read_inputs,
)
from keywise.attention._native import add_up as sum_buffer
from keywise.attention._native import candidates as list_candidates
from keywise.attention._native import environment as read_environment
from keywise.attention.arrays import HostArray, allocate_result, as_readable_array, to_library

__all__ = [
    "CheckedMask",
    "DefaultFloatMode",
    "DropoutPlan",
    "Inputs",
    "QuantisedMatrix",
    "Refusal",
    "SavedResults",
    "StatsPlan",
    "attend",
    "attend_backward",
    "list_candidates",
    "multiply_adds",
    "read_environment",
    "read_inputs",
    "sum_buffer",
]

_native.set_array_functions(
    host_array=HostArray,
    as_readable_array=as_readable_array,
    allocate_result=allocate_result,
    to_library=to_library,
)


def _set_main_thread() -> None:
    _native.set_main_thread(main_thread().ident or 0)


_set_main_thread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_set_main_thread)
