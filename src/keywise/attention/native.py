"""The interface to the native module, which no other file imports."""

from __future__ import annotations

import os
from threading import get_ident, main_thread

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
    "is_interruptible",
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


class _MainThread:
    ident = main_thread().ident

    @classmethod
    def update(cls) -> None:
        cls.ident = main_thread().ident


# main_thread() at every call would take three times as long, which is noticeable in a small call.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_MainThread.update)


def is_interruptible() -> bool:
    """Return whether Ctrl-C can stop a call on this thread.

    Python runs signal handlers on the main thread only; other threads would wait for the GIL without effect.
    """
    return get_ident() == _MainThread.ident
