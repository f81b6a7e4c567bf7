"""One model class: built, run with each attention, compared."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers as hf
from torch.utils._python_dispatch import TorchDispatchMode

import keywise.hf
from keywise.errors import KeywiseError
from keywise.hf.parts import ATTENTION_NAME
from tests.families import settings, sizes
from tests.families.catalog import find_model_type
from tests.families.inputs import SIDES, Inputs, Maker, Plan, find
from tests.families.weights import draw_weights

TOLERANCE = 1e-4
"""Largest difference that counts as equal, relative to the largest number of the output."""

LARGEST_WIDTH = 1024
"""Hidden size above which a model is not built with the sizes of its default configuration."""

NEW_TOKENS = 4
STATUSES = ("served", "refused", "no attention", "not built", "unequal")


@dataclasses.dataclass
class Verdict:
    """The result for one class.

    Attributes
    ----------
    name, model_type, family : str
        The class, the model type of its configuration, the folder of its source.
    status : str
        One of `STATUSES`.
    reason : str
        Why it is refused, not built or unequal.
    recipe : str
        Which configuration was built.
    inputs : list of str
        What was passed.
    errors : dict
        Setting -> largest difference to eager, relative.
    notes : list of str
        Settings that were left out, with the reason.
    sensitivity : float
        Difference when keywise's scores are all zero: that attention matters for the output.
    calls, own : int
        Calls of keywise's attention, and softmaxes over keys outside of it.
    seconds : float
    """

    name: str
    model_type: str
    family: str
    status: str = "not built"
    reason: str = ""
    recipe: str = ""
    inputs: list[str] = dataclasses.field(default_factory=list)
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    sensitivity: float = 0.0
    calls: int = 0
    own: int = 0
    seconds: float = 0.0


def check_class(cls: type[Any]) -> list[Verdict]:
    """Return the verdicts on a class: one for the default configuration, one per variant."""
    return [check_variant(cls, overrides) for overrides in [{}, *list_variants(cls)]]


def list_variants(cls: type[Any]) -> list[dict[str, Any]]:
    """Return further configurations of a class: those of the table, and the decoder that an encoder can be."""
    variants = list(settings.VARIANTS.get(cls.__name__, []))
    fields = {field.name for field in dataclasses.fields(cls.config_class)}
    is_text = (
        cls.__name__.endswith(("Model", "ForCausalLM"))
        and "encoder_hidden_states" in inspect.signature(cls.forward).parameters
    )
    if is_text and {"is_decoder", "add_cross_attention"} <= fields:
        variants.append({"is_decoder": True, "add_cross_attention": True})
    return variants


def check_variant(cls: type[Any], overrides: dict[str, Any]) -> Verdict:
    """Return the verdict on a class with settings of its configuration."""
    start = time.monotonic()
    verdict = Verdict(cls.__name__, find_model_type(cls), cls.__module__.split(".")[2])
    if overrides:
        verdict.name += "(" + ", ".join(f"{name}={value!r}" for name, value in overrides.items()) + ")"
    if cls.__name__ in settings.NOT_BUILT:
        verdict.reason = settings.NOT_BUILT[cls.__name__]
    else:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            _check(cls, overrides, verdict)
    verdict.seconds = round(time.monotonic() - start, 2)
    return verdict


def _check(cls: type[Any], overrides: dict[str, Any], verdict: Verdict) -> None:
    failures = []
    for recipe in ("small", "few layers"):
        try:
            model = build_model(cls, overrides, sizes_too=recipe == "small")
        except Exception as error:  # noqa: BLE001  (whatever a configuration raises is the reason)
            failures.append(_describe(error))
            continue
        verdict.recipe = recipe
        refusal = _try_use(model)
        if refusal:
            verdict.status, verdict.reason = "refused", refusal
            return
        try:
            maker, plan, poorer = find_inputs(model)
        except Exception as error:  # noqa: BLE001
            failures.append(_describe(error))
            continue
        if poorer:
            verdict.notes.append(f"some inputs were left out: {poorer}")
        _compare(model, maker, plan, verdict)
        return
    verdict.reason = failures[0]


def build_model(cls: type[Any], overrides: dict[str, Any] | None = None, *, sizes_too: bool = True) -> Any:
    """Build a small model of a class with drawn weights."""
    settled = {**settings.CLASS_CONFIGS.get(cls.__name__, {}), **(overrides or {})}
    config = sizes.make_small(cls.config_class, settled, sizes=sizes_too)
    width = find(config, "hidden_size", "d_model", "n_embd", default=0)
    if not sizes_too and isinstance(width, int) and width > LARGEST_WIDTH:
        raise ValueError("the sizes of the default configuration are too large")
    torch.manual_seed(7)
    model = cls(config)
    model = model.float().eval()
    draw_weights(model)
    return model


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _try_use(model: Any) -> str:
    try:
        keywise.hf.use(model)
    except KeywiseError as error:
        return " ".join(str(error).split())
    return ""


def set_attention(model: Any, name: str) -> None:
    """Make a stock attention that of a model; the parts that cannot change keep theirs."""
    if name == ATTENTION_NAME:
        keywise.hf.use(model)
    else:
        model.set_attn_implementation(name)


def find_inputs(model: Any) -> tuple[Maker, Plan, str]:
    """Return a plan of inputs that a model accepts with eager attention, and why richer ones were not accepted."""
    set_attention(model, "eager")
    maker = Maker(model)
    first: Exception | None = None
    deadline = time.monotonic() + 25
    richest: Plan | None = None
    for candidate in maker.list_plans():
        richest = richest or candidate
        plan: Plan | None = candidate
        for _ in range(5):
            if plan is None or time.monotonic() > deadline:
                break
            try:
                outputs = run(model, maker.make(plan, None))
                if not outputs:
                    raise ValueError("no output holds numbers")
                return maker, plan, _describe(first) if first and plan.names != richest.names else ""
            except Exception as error:  # noqa: BLE001
                plan = maker.adjust(plan, str(error))
                # What follows the right number of placeholders says more than the wrong number.
                first = error if first is None or (plan is None and candidate is richest) else first
    raise first or ValueError("no inputs were found")


# Runs


def run(model: Any, inputs: Inputs) -> dict[str, Any]:
    """Return the numbers that a model computes, by name."""
    torch.manual_seed(3)
    arguments = {name: copy.deepcopy(value) for name, value in inputs.arguments.items()}
    return dict(_flatten("", model(**arguments)))


def _flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Tensor):
        if value.numel():
            yield name or "output", value.detach().float() if not value.is_complex() else torch.view_as_real(value)
    elif isinstance(value, dict) or hasattr(value, "items"):
        for key, item in value.items():
            if key not in {"past_key_values", "attentions", "cache_params", "mems"}:
                yield from _flatten(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _flatten(f"{name}[{number}]", item)


def measure_difference(expected: dict[str, Any], actual: dict[str, Any], inputs: Inputs) -> float:
    """Return the largest difference at positions of real tokens, relative to the largest number of each output."""
    if expected.keys() != actual.keys():
        return math.inf
    worst = 0.0
    for name, eager in expected.items():
        numbers, others = eager, actual[name]
        if others.shape != numbers.shape:
            return math.inf
        real = _find_real(numbers, inputs)
        if real is not None:
            numbers, others = numbers[real], others[real]
        finite = numbers.isfinite()
        if not torch.equal(finite, others.isfinite()):
            return math.inf
        if bool(finite.any()):
            numbers, others = numbers[finite], others[finite]
            worst = max(worst, float((numbers - others).abs().max() / max(float(numbers.abs().max()), 1e-3)))
    return worst


def _find_real(numbers: Any, inputs: Inputs) -> Any:
    """Return which rows [B, L] of an output belong to real tokens; None where it has no axis of tokens."""
    if not inputs.actual or numbers.ndim < 2:
        return None
    batch, length = numbers.shape[:2]
    for real in inputs.actual.values():
        # A row of the batch may be several of the output, one per codebook.
        repeats, rest = divmod(batch, real.shape[0])
        if rest or not repeats:
            continue
        if length in inputs.actual:
            return inputs.actual[length].repeat_interleave(repeats, dim=0)
        if inputs.sounds and numbers.ndim > 2:
            # The encoder shortened the sound: the positions before the padding, in proportion, without the last one.
            mask = next(m for m in inputs.actual.values() if m.shape[1] == max(inputs.actual))
            share = float(mask[1].float().mean())
            count = max(int(length * share) - 2, 1)
            rows = torch.ones(real.shape[0], length, dtype=torch.bool)
            rows[1, count:] = False
            return rows.repeat_interleave(repeats, dim=0)
    return None


class _CountSoftmaxes(TorchDispatchMode):
    """Counts softmaxes that look like attention: over scores with at least four axes, or three with many keys."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if ("_softmax.default" in name and "log" not in name and args[0].ndim >= 3) or (
            "scaled_dot_product" in name and "backward" not in name
        ):
            self.count += 1
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def watch_calls(*, blind: bool = False) -> Iterator[list[str]]:
    """Yield a list that gets the name of every module whose attention keywise computes.

    With `blind` every score is zero: each query sees its keys alike.
    """
    interface = hf.AttentionInterface._global_mapping
    forward = interface[ATTENTION_NAME]
    calls: list[str] = []

    def watch(module: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(type(module).__name__)
        return forward(module, query * 0 if blind else query, *args, **kwargs)

    interface[ATTENTION_NAME] = watch
    try:
        yield calls
    finally:
        interface[ATTENTION_NAME] = forward


# Comparison


def _compare(model: Any, maker: Maker, plan: Plan, verdict: Verdict) -> None:
    verdict.inputs = sorted(maker.make(plan, "right").arguments)
    verdict.status = "served"
    for side in SIDES:
        inputs = maker.make(plan, side)
        has_text = "input_ids" in inputs.arguments or "decoder_input_ids" in inputs.arguments
        is_repeated = inputs.arguments.keys() == maker.make(plan, None).arguments.keys() and not inputs.actual
        if side is not None and (is_repeated or (side == "left" and inputs.sounds and not has_text)):
            continue
        if not _compare_side(model, inputs, side, verdict):
            return
    if _can_generate(model):
        _compare_generation(model, maker, plan, verdict)
    if verdict.status == "served" and not verdict.calls:
        # A softmax over the channels of an image is no attention.
        attends = verdict.own > 0 and any("attention" in type(module).__name__.lower() for module in model.modules())
        verdict.status = "unequal" if attends else "no attention"
        verdict.reason = "no attention of the model calls keywise" if attends else ""


def _compare_side(model: Any, inputs: Inputs, side: str | None, verdict: Verdict) -> bool:
    setting = f"{side} padding" if side else "no padding"
    try:
        set_attention(model, "eager")
        expected = run(model, inputs)
        again = run(model, inputs)
    except Exception as error:  # noqa: BLE001
        verdict.notes.append(f"{setting}: eager fails ({_describe(error)[:120]})")
        return True
    if measure_difference(expected, again, inputs) > TOLERANCE / 10:
        verdict.notes.append(f"{setting}: eager differs from itself")
        return True
    if any(numbers.isnan().all() for numbers in expected.values()):
        verdict.notes.append(f"{setting}: eager computes no numbers")
        return True
    set_attention(model, ATTENTION_NAME)
    try:
        with watch_calls() as calls:
            actual = run(model, inputs)
    except KeywiseError as error:
        verdict.status, verdict.reason = "refused", f"{setting}: " + " ".join(str(error).split())
        return False
    except Exception as error:  # noqa: BLE001
        verdict.status, verdict.reason = "unequal", f"{setting}: keywise fails where eager works: {_describe(error)}"
        return False
    verdict.errors[setting] = difference = measure_difference(expected, actual, inputs)
    if side is None:
        verdict.calls = len(calls)
        with _CountSoftmaxes() as softmaxes:
            run(model, inputs)
        verdict.own = softmaxes.count
        with watch_calls(blind=True), contextlib.suppress(Exception):
            verdict.sensitivity = measure_difference(expected, run(model, inputs), inputs)
    if difference <= TOLERANCE:
        return True
    return _explain_difference(model, inputs, setting, expected, actual, verdict)


def _explain_difference(model: Any, inputs: Inputs, setting: str, expected: Any, actual: Any, verdict: Verdict) -> bool:
    difference = measure_difference(expected, actual, inputs)
    stock = math.nan
    with contextlib.suppress(Exception):
        set_attention(model, "sdpa")
        numbers = run(model, inputs)
        stock = measure_difference(expected, numbers, inputs)
        # An output that depends on padded tokens is another one with sdpa; keywise must agree with one of the two.
        closest = max(_measure_closest(name, expected, numbers, actual, inputs) for name in expected)
        if stock > TOLERANCE >= closest:
            verdict.errors[setting] = closest
            verdict.notes.append(f"{setting}: equals sdpa, which differs from eager by {stock:.1e}")
            return True
    pooled = {name for name in expected if "pool" in name and setting.startswith("left")}
    if pooled and math.isnan(stock):
        # The first token is pooled: in the padded row no token at all, which a causal layer hides from everything.
        rest = [
            measure_difference({name: expected[name][:1]}, {name: actual[name][:1]}, inputs)
            if name in pooled
            else measure_difference({name: expected[name]}, {name: actual[name]}, inputs)
            for name in expected
        ]
        if max(rest) <= TOLERANCE:
            verdict.errors[setting] = max(rest)
            verdict.notes.append(f"{setting}: a padded token is pooled")
            return True
    worst = {
        name: measure_difference({name: expected[name]}, {name: actual[name]}, inputs)
        for name in expected
        if name in actual
    }
    names = ", ".join(f"{name} {error:.1e}" for name, error in worst.items() if error > TOLERANCE)
    verdict.status = "unequal"
    verdict.reason = f"{setting}: differs from eager by {difference:.1e} (sdpa by {stock:.1e}) in {names}"
    return False


def _measure_closest(name: str, expected: Any, stock: Any, actual: Any, inputs: Inputs) -> float:
    """Return the difference of an output to eager's, or to that of sdpa where the two differ."""
    by_eager, by_stock, between = (
        measure_difference({name: first[name]}, {name: second[name]}, inputs)
        for first, second in ((expected, actual), (stock, actual), (expected, stock))
    )
    return by_stock if between > TOLERANCE else by_eager


# Generation


def _can_generate(model: Any) -> bool:
    with contextlib.suppress(Exception):
        return bool(model.can_generate()) and hasattr(model, "generate")
    return False


def _generate(model: Any, inputs: Inputs) -> tuple[Any, list[Any]]:
    torch.manual_seed(3)
    known = {"decoder_input_ids", "decoder_attention_mask"}
    arguments = {name: copy.deepcopy(value) for name, value in inputs.arguments.items() if name not in known}
    custom = "generation_config" not in inspect.signature(model.generate).parameters
    options = {} if custom else {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
    out = model.generate(**arguments, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, **options)
    if isinstance(out, torch.Tensor):
        return out, []
    logits = list(getattr(out, "logits", None) or [])
    return getattr(out, "sequences", None), [each.float() for each in logits]


def _compare_generation(model: Any, maker: Maker, plan: Plan, verdict: Verdict) -> None:
    if model.generation_config is not None:
        model.generation_config.eos_token_id = None
        if model.generation_config.decoder_start_token_id is None:
            model.generation_config.decoder_start_token_id = 1
    is_decoder = "decoder_input_ids" not in maker.parameters
    for side in (None, "left" if is_decoder else "right"):
        setting = f"generate, {side} padding" if side else "generate"
        inputs = maker.make(plan, side)
        if side is not None and not inputs.actual:
            continue
        try:
            set_attention(model, "eager")
            tokens, logits = _generate(model, inputs)
            if tokens is None:
                raise ValueError("generate returns no tokens")
        except Exception as error:  # noqa: BLE001
            verdict.notes.append(f"{setting}: eager fails ({_describe(error)[:120]})")
            continue
        set_attention(model, ATTENTION_NAME)
        try:
            others, other_logits = _generate(model, inputs)
        except KeywiseError as error:
            verdict.status, verdict.reason = "refused", f"{setting}: " + " ".join(str(error).split())
            return
        except Exception as error:  # noqa: BLE001
            verdict.status, verdict.reason = (
                "unequal",
                f"{setting}: keywise fails where eager works: {_describe(error)}",
            )
            return
        difference = _measure_generation(tokens, logits, others, other_logits)
        verdict.errors[setting] = difference
        if difference > TOLERANCE:
            with contextlib.suppress(Exception):
                set_attention(model, "sdpa")
                stock, stock_logits = _generate(model, inputs)
                by_stock = _measure_generation(tokens, logits, stock, stock_logits)
                closest = _measure_generation(stock, stock_logits, others, other_logits)
                if by_stock > TOLERANCE >= closest:
                    verdict.errors[setting] = closest
                    verdict.notes.append(f"{setting}: equals sdpa, which differs from eager by {by_stock:.1e}")
                    continue
            verdict.status = "unequal"
            verdict.reason = f"{setting}: tokens or logits differ from eager by {difference:.1e}"
            return


def _measure_generation(tokens: Any, logits: list[Any], others: Any, other_logits: list[Any]) -> float:
    worst = 0.0
    for expected, actual in zip(logits, other_logits, strict=False):
        if expected.shape != actual.shape:
            return math.inf
        finite = expected.isfinite() & actual.isfinite()
        worst = max(
            worst, float((expected - actual)[finite].abs().max() / expected[finite].abs().max().clamp(min=1e-3))
        )
        if worst > TOLERANCE:
            return worst
        if not torch.equal(expected.argmax(-1), actual.argmax(-1)):
            # Two tokens with the same logit: what follows is another text.
            return worst
    return worst if torch.equal(tokens, others) else math.inf
