"""Run torch's own attention function on keywise: inside a block, or in a whole thread."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from keywise.attention.targets import choose_target
from keywise.errors import OptionError, TargetError
from keywise.torch.arguments import explain_unsupported
from keywise.torch.functional import scaled_dot_product_attention
from keywise.torch.projections import multi_head_attention_forward


@dataclass
class SdpaReport:
    """Count the calls of ``F.scaled_dot_product_attention`` that keywise computed, and those that it did not.

    Calls inside compiled graphs are not counted: they are chosen once, when the graph is traced.

    Attributes
    ----------
    served : int
        Calls that keywise computed.
    passed_on : Counter of str
        Calls that torch computed, by the reason why.

    Examples
    --------
    >>> SdpaReport(served=2)
    SdpaReport(served=2, passed_on=Counter())
    """

    served: int = 0
    passed_on: Counter[str] = field(default_factory=Counter)


class SdpaMode(TorchFunctionMode):  # type: ignore[misc]  # torch has no types here
    """Replace ``F.scaled_dot_product_attention`` while the mode is active.

    Parameters
    ----------
    report : SdpaReport
        Where calls are counted.
    """

    def __init__(self, report: SdpaReport) -> None:
        super().__init__()
        self.report = report

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function of torch."""
        replacement = _REPLACEMENTS.get(function)
        kwargs = kwargs or {}
        if replacement is None or (replacement is multi_head_attention_forward and _needs_weights(args, kwargs)):
            return function(*args, **kwargs)
        reason = explain_passing_on(args, kwargs)
        # A graph would be compiled again after each change of the numbers.
        if not torch.compiler.is_compiling():
            if reason is None:
                self.report.served += 1
            else:
                self.report.passed_on[reason] += 1
        return (function if reason is not None else replacement)(*args, **kwargs)


_REPLACEMENTS: dict[Any, Any] = {
    functional.scaled_dot_product_attention: scaled_dot_product_attention,
    # Inside of this function the mode is off, so the attention in it would not be seen.
    functional.multi_head_attention_forward: multi_head_attention_forward,
}
_NEED_WEIGHTS_POSITION = 15


def _needs_weights(args: Any, kwargs: Any) -> bool:
    """Return whether a call of F.multi_head_attention_forward computes the dense weights, without that function."""
    if len(args) > _NEED_WEIGHTS_POSITION:
        return bool(args[_NEED_WEIGHTS_POSITION])
    return bool(kwargs.get("need_weights", True))


def explain_passing_on(args: Any, kwargs: Any) -> str | None:
    """Return why torch has to compute a call, None if keywise can.

    Parameters
    ----------
    args, kwargs
        Arguments of the call.

    Examples
    --------
    >>> x = torch.zeros(1, 2, 3, 8, dtype=torch.float64)
    >>> explain_passing_on((x, x, x), {})
    'query has dtype torch.float64'
    """
    names = ("query", "key", "value")
    named = dict(zip(names, args, strict=False)) | {name: kwargs[name] for name in names if name in kwargs}
    tensors = {name: tensor for name, tensor in named.items() if isinstance(tensor, torch.Tensor)}
    if torch.jit.is_tracing():
        return "the call is traced by torch.jit.trace"
    for name, tensor in tensors.items():
        reason = explain_unsupported(name, tensor)
        if reason is None and tensor.dtype == torch.float64 and not _is_float64_supported():
            reason = f"{name} has dtype torch.float64"
        if reason is None and tensor.shape[-1:] == (0,):
            reason = f"{name} has a head_dim of 0"
        if reason is None and not torch.compiler.is_compiling() and _has_own_operations(tensor):
            reason = f"{name} has operations of its own"
        if reason is not None:
            return reason
    # Outside of dual levels no tensor has a tangent.
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    return None


def _has_own_operations(tensor: Any) -> bool:
    kind = type(tensor)
    return kind is not torch.Tensor and kind.__torch_function__ is not torch._C._disabled_torch_function_impl


def _is_float64_supported() -> bool:
    try:
        choose_target("float64")
    except TargetError:
        return False
    return True


@contextmanager
def sdpa() -> Iterator[SdpaReport]:
    """Run every ``F.scaled_dot_product_attention`` inside the block on keywise.

    Calls that keywise cannot compute (other devices, nested tensors, float64) go to torch and are counted with the
    reason. The block acts on its own thread. Run the backward pass inside it too if activations are checkpointed,
    because attention is then computed again.

    Yields
    ------
    SdpaReport
        Calls served and passed on; it grows while the block runs.

    Examples
    --------
    >>> import torch, keywise.torch
    >>> layer = torch.nn.TransformerEncoderLayer(16, 2, batch_first=True).eval()
    >>> with keywise.torch.sdpa() as report:
    ...     _ = layer(torch.randn(1, 4, 16))
    >>> report
    SdpaReport(served=1, passed_on=Counter())
    """
    report = SdpaReport()
    with SdpaMode(report):
        yield report


class _ThreadMode(threading.local):
    """The mode that `enable` started in this thread."""

    mode: SdpaMode | None = None


_enabled = _ThreadMode()


def enable() -> SdpaReport:
    """Run every ``F.scaled_dot_product_attention`` of this thread on keywise, until `disable`.

    Returns
    -------
    SdpaReport
        Calls served and passed on; it grows until `disable`.

    Raises
    ------
    OptionError
        It is enabled already.

    Examples
    --------
    >>> import torch, keywise.torch
    >>> report = keywise.torch.enable()
    >>> x = torch.zeros(1, 2, 3, 8)
    >>> _ = torch.nn.functional.scaled_dot_product_attention(x, x, x)
    >>> keywise.torch.disable().served
    1
    """
    if _enabled.mode is not None:
        raise OptionError("enable", "must not be called twice in a thread", remedy="call keywise.torch.disable() first")
    mode = SdpaMode(SdpaReport())
    mode.__enter__()
    _enabled.mode = mode
    return mode.report


def disable() -> SdpaReport:
    """Run attention of this thread on torch again, after `enable`.

    Returns
    -------
    SdpaReport
        Calls served and passed on since `enable`.

    Raises
    ------
    OptionError
        It is not enabled in this thread, or another mode of torch was entered since and not left.

    Examples
    --------
    >>> import keywise.torch
    >>> _ = keywise.torch.enable()
    >>> keywise.torch.disable()
    SdpaReport(served=0, passed_on=Counter())
    """
    mode = _enabled.mode
    if mode is None:
        raise OptionError("disable", "must follow enable() in the same thread", remedy="call keywise.torch.enable()")
    if torch.overrides._get_current_function_mode() is not mode:
        raise OptionError("disable", "must be called outside of torch function modes that were entered since enable()")
    _enabled.mode = None
    mode.__exit__(None, None, None)
    report: SdpaReport = mode.report
    return report
