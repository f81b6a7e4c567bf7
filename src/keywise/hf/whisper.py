"""Token timestamps of Whisper from recorded cross-attention, without a change to eager attention.

``generate(return_token_timestamps=True)`` of transformers makes the whole model attend eagerly and keeps the weights of
every layer. Here three methods of its ``WhisperGenerationMixin`` act differently for models that attend with keywise:
only the cross-attention of the alignment heads is recorded, one row for each token. Other models are left alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from keywise.errors import ModelError
from keywise.hf.compatibility import set_attention
from keywise.hf.generated_rows import group_heads, select_beams, stack_steps
from keywise.hf.parts import ATTENTION_NAME, list_parts
from keywise.hf.recording import record_stats
from keywise.hf.stats_record import StatsRecord
from keywise.util.time_warping import filter_median, warp_time

MODULE = "transformers.models.whisper.generation_whisper"
"""The module of transformers whose methods are replaced."""

SECONDS_PER_FRAME = 0.02
_MARK = "_keywise_original"

_active_timing: ContextVar[_Timing | None] = ContextVar("keywise_active_timing", default=None)


class _Timing:
    """One call of ``generate`` that asks for token timestamps.

    Parameters
    ----------
    model : transformers.WhisperForConditionalGeneration
        The model.
    collects_weights, collects_scores : bool
        Whether the caller asks for attention weights and for the scores of tokens.
    """

    def __init__(self, model: Any, *, collects_weights: bool, collects_scores: bool) -> None:
        self.model = model
        self.collects_weights = collects_weights
        self.collects_scores = collects_scores
        self.record: StatsRecord | None = None
        self._parts = [(part, part.config._attn_implementation) for part in list_parts(model)]

    def restore_attention(self) -> None:
        """Make keywise the attention again, which transformers has replaced by eager."""
        for part, name in self._parts:
            set_attention(part, name)

    def take_rows(self, heads: Sequence[Sequence[int]]) -> Any:
        """Return the recorded rows of weights, and forget them.

        Parameters
        ----------
        heads
            Pairs of a layer and a head.

        Returns
        -------
        tensor [B, heads, steps, frames]
            Row 0 belongs to the last token of the prompt.
        """
        if self.record is None:
            raise ModelError("return_token_timestamps", "must be recorded while the model generates")
        rows = stack_steps(self.record, heads, "key_mass")
        # A fallback at another temperature begins anew.
        self.record._records.clear()
        return rows


def adapt_generation(module: Any) -> None:
    """Replace the methods of transformers' Whisper that token timestamps need; a second call changes nothing.

    Parameters
    ----------
    module : module
        ``transformers.models.whisper.generation_whisper``.
    """
    mixin = module.WhisperGenerationMixin
    replacements = {
        "generate": _generate,
        "generate_with_fallback": _generate_with_fallback,
        "_extract_token_timestamps": _extract_token_timestamps,
    }
    for name, replacement in replacements.items():
        original = getattr(mixin, name)
        if not hasattr(original, _MARK):
            setattr(mixin, name, _wrap(original, replacement))


def _wrap(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(model: Any, *args: Any, **keywords: Any) -> Any:
        return replacement(original, model, *args, **keywords)

    setattr(method, _MARK, original)
    return method


def _generate(original: Callable[..., Any], model: Any, *args: Any, **keywords: Any) -> Any:
    arguments = inspect.signature(original).bind(model, *args, **keywords).arguments
    is_timed = arguments.get("return_token_timestamps") and model.config._attn_implementation == ATTENTION_NAME
    if not is_timed:
        return original(model, *args, **keywords)
    others = arguments.get("kwargs", {})
    config = arguments.get("generation_config") or model.generation_config
    _refuse_guessed_tokens(others, config)
    timing = _Timing(
        model,
        collects_weights=bool(others.get("output_attentions") or config.output_attentions),
        # The fallback to other temperatures reads the scores.
        collects_scores=bool(others.get("output_scores") or config.output_scores)
        or arguments.get("logprob_threshold") is not None,
    )
    token = _active_timing.set(timing)
    try:
        return original(model, *args, **keywords)
    finally:
        _active_timing.reset(token)
        timing.restore_attention()


def _refuse_guessed_tokens(keywords: dict[str, Any], config: Any) -> None:
    """Raise an error for generation in which a step has several tokens, whose rows are not recorded."""
    for name in ("assistant_model", "prompt_lookup_num_tokens"):
        if keywords.get(name) is not None or getattr(config, name, None) is not None:
            raise ModelError(name, "cannot be combined with return_token_timestamps", remedy="leave one of them out")


def _generate_with_fallback(original: Callable[..., Any], model: Any, *args: Any, **keywords: Any) -> Any:
    timing = _active_timing.get()
    if timing is None or timing.model is not model:
        return original(model, *args, **keywords)
    config = inspect.signature(original).bind(model, *args, **keywords).arguments["generation_config"]
    timing.restore_attention()
    config.output_attentions = timing.collects_weights
    config.output_scores = timing.collects_scores
    with _record_rows(timing, config.alignment_heads):
        return original(model, *args, **keywords)


@contextmanager
def _record_rows(timing: _Timing, heads: Sequence[Sequence[int]]) -> Iterator[None]:
    """Record the rows of the alignment heads inside the block."""
    with record_stats(timing.model, heads=group_heads(heads), kind="cross", queries=1, top_k=0) as timing.record:
        yield
    timing.record = None


def _extract_token_timestamps(  # noqa: PLR0917 - transformers calls it this way
    original: Callable[..., Any],
    model: Any,
    generate_outputs: Any,
    alignment_heads: Sequence[Sequence[int]],
    time_precision: float = SECONDS_PER_FRAME,
    num_frames: Any = None,
    num_input_ids: int | None = None,
) -> Any:
    timing = _active_timing.get()
    if timing is None or timing.model is not model:
        return original(model, generate_outputs, alignment_heads, time_precision, num_frames, num_input_ids)
    import torch

    rows = timing.take_rows(alignment_heads)
    if "beam_indices" in generate_outputs:
        rows = select_beams(rows, generate_outputs.beam_indices)
    sequences = generate_outputs.sequences
    prompt = num_input_ids or 1
    timestamps = torch.zeros((sequences.shape[0], prompt + rows.shape[2]), dtype=torch.float32)
    if rows.shape[2] > 1:
        frames = _list_frames(num_frames, sequences.shape[0], rows.shape[-1])
        for number, count in enumerate(frames):
            starts = time_tokens(rows[number, :, 1:, :count].numpy(), width=model.config.median_filter_width)
            times = starts * time_precision
            # No row belongs to the last token, which mostly is the end of the text.
            timestamps[number, prompt:] = torch.from_numpy(np.append(times, times[-1]))
    return timestamps.to(sequences.device)


def _list_frames(num_frames: Any, sequences: int, frames: int) -> list[int]:
    """Return the number of encoder frames of each sequence; `num_frames` counts those of the spectrogram."""
    if num_frames is None:
        return [frames] * sequences
    counts = np.atleast_1d(np.asarray(num_frames)) // 2
    return [int(count) for count in np.repeat(counts, sequences // len(counts))]


def time_tokens(weights: Any, *, width: int) -> Any:
    """Return the encoder frame at which each token begins, from the weights of alignment heads.

    The weights of each frame are standardised over the tokens, smoothed by a median filter and averaged over the heads;
    the cheapest monotonic path through them gives the times. This is the method of openai-whisper (``timing.py``).

    Parameters
    ----------
    weights : float32 array [heads, tokens, frames]
        Weights of each token on the frames.
    width : int
        Width of the median filter.

    Returns
    -------
    int array [tokens]

    Examples
    --------
    >>> import numpy as np
    >>> weights = np.kron(np.eye(3, dtype=np.float32), np.ones((1, 8), np.float32))[None] + 0.01
    >>> time_tokens(weights, width=7).tolist()
    [0, 8, 16]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        standardised = (weights - weights.mean(1, keepdims=True)) / weights.std(1, keepdims=True)
    matrix = filter_median(standardised, width).mean(0)
    tokens, frames = warp_time(-matrix.astype(np.float64))
    return frames[np.diff(tokens, prepend=-1) > 0]
