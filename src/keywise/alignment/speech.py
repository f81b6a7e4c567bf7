"""When each word of an audio is spoken, by the cross-attention of a Whisper model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.alignment.audio import SAMPLING_RATE_HERTZ, Samples, load_audio
from keywise.alignment.heads import check_heads
from keywise.alignment.spoken_words import UNSPACED_LANGUAGES, group_tokens
from keywise.alignment.transcript import TimedWord, Transcript
from keywise.alignment.word_times import FRAME_SECONDS, Lateness, time_words
from keywise.alignment.words import encode_text
from keywise.errors import ModelError, OptionError
from keywise.hf.compatibility import import_internals
from keywise.hf.generated_rows import group_heads
from keywise.hf.plugin import use_temporarily
from keywise.hf.recording import record_stats
from keywise.hf.stats_spec import StatsSpec
from keywise.models.quiet_transformers import quiet_transformers

WINDOW_SECONDS: Final = 30
_WINDOW_SAMPLES: Final = WINDOW_SECONDS * SAMPLING_RATE_HERTZ
# A quieter window is silence, in which Whisper would invent words: 60 dB below full scale.
_SILENCE_RMS: Final = 1e-3
_MIN_SAMPLES: Final = 400
TASKS: Final = ("transcribe", "translate")
# By alignment heads; measured on speech with known times (`python -m benchmarks speech`). Those of other models are
# estimated from the sound.
_KNOWN_LATENESS_SECONDS: Final[dict[tuple[tuple[int, int], ...], float]] = {
    # tiny.en
    ((1, 0), (2, 0), (2, 5), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)): 0.08,
    # base
    ((3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)): -0.05,
}


@dataclass(frozen=True, eq=False)
class _Window:
    """A part of the audio that the model hears at once.

    Attributes
    ----------
    encoded
        The encoder's output.
    mask
        1 for each frame of the spectrogram that belongs to the sound, 0 for padding.
    frames
        Encoder frames that belong to the sound.
    """

    encoded: Any
    mask: Any
    frames: int


@dataclass(frozen=True)
class _Request:
    """What the model is asked to write."""

    language: str | None
    task: str
    num_beams: int

    def list_options(self, model: Any) -> dict[str, Any]:
        """Return the arguments of ``generate``; models of English alone take none."""
        if not model.generation_config.is_multilingual:
            return {}
        return {"language": self.language, "task": self.task}

    def list_prompt(self, model: Any) -> list[int]:
        """Return the tokens in front of a text without times."""
        config = model.generation_config
        prompt = [config.decoder_start_token_id]
        if config.is_multilingual:
            prompt += [config.lang_to_id[f"<|{self.language}|>"], config.task_to_id[self.task]]
        return [*prompt, config.no_timestamps_token_id]


def word_timestamps(
    model: Any,
    processor: Any,
    audio: str | os.PathLike[str] | Any,
    *,
    sampling_rate: int | None = None,
    text: str | None = None,
    language: str | None = None,
    task: str = "transcribe",
    num_beams: int = 1,
    progress: Callable[[float, float], None] | None = None,
) -> Transcript:
    """Transcribe an audio with the time of each word.

    The audio is heard in windows of 30 seconds, each beginning where the last whole sentence ended. The decoder then
    reads the text of a window once more, and only the rows of the alignment heads are recorded, in memory of heads x
    tokens x frames. The times follow from dynamic time warping through these rows and from the energy of the sound.

    Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), and openai-whisper's
    ``timing.py``, from which the method starts.

    Parameters
    ----------
    model : transformers.WhisperForConditionalGeneration
        A Whisper model whose generation config names ``alignment_heads``.
    processor : transformers.WhisperProcessor
        Its processor; `keywise.models.load_model` returns both.
    audio : path, or array [samples] or [samples, channels]
        A sound file, or samples.
    sampling_rate : int, optional
        Samples per second of an array. Other rates than 16,000 are converted with soxr.
    text : str, optional
        What is said, if it is known: it is aligned as it stands. The audio must not be longer than 30 seconds.
    language : str, optional
        Code or English name of the language, such as ``"fr"``. Default: the model detects it in the first window.
    task : str
        ``"transcribe"``, or ``"translate"`` into English.
    num_beams : int
        Beams of the search.
    progress : callable, optional
        Called with the seconds that were heard and those of the audio.

    Returns
    -------
    Transcript
        No words for silence.

    Raises
    ------
    ModelError
        The model is no Whisper model, or has no alignment heads.
    OptionError
        The language or task is unknown, the text is empty, or the audio is too long for it.
    FormatError, ShapeError, DtypeError
        The audio cannot be decoded or is no sound.

    Examples
    --------
    >>> from keywise.alignment import word_timestamps
    >>> from keywise.models import load_model
    >>> loaded = load_model("faster-whisper-base")  # doctest: +SKIP
    >>> print(word_timestamps(loaded.model, loaded.processor, "speech.wav").srt())  # doctest: +SKIP
    """
    if task not in TASKS:
        raise OptionError("task", f"must be one of {', '.join(TASKS)}", got=task)
    if task == "translate" and getattr(model.generation_config, "is_multilingual", None) is False:
        raise OptionError("task", "must be 'transcribe' for a model of English alone", got=task)
    heads = _group_heads(model)
    code = find_language(model, language)
    if text is not None and not text.strip():
        raise OptionError("text", "must have at least one word", got=text)
    samples = load_audio(audio, sampling_rate)
    duration = samples.size / SAMPLING_RATE_HERTZ
    if text is not None and samples.size > _WINDOW_SAMPLES:
        rule = f"must be left out for audio of more than {WINDOW_SECONDS} seconds"
        raise OptionError("text", rule, got=f"{duration:.1f} seconds", remedy="align it in parts")
    words: list[TimedWord] = []
    pairs = tuple(sorted((layer, head) for layer, numbers in heads.items() for head in numbers))
    lateness = Lateness(_KNOWN_LATENESS_SECONDS.get(pairs))
    start = 0
    with use_temporarily(model):
        while start < samples.size:
            part = samples[start : start + _WINDOW_SAMPLES]
            used = part.size
            if not is_silent(part):
                window = _hear(model, processor, part)
                code = code or _detect_language(model, window)
                request = _Request(code, task, num_beams)
                is_last = start + part.size >= samples.size
                if text is None:
                    tokens, used = _write(model, window, request, is_last=is_last)
                else:
                    tokens = _encode_known_text(model, processor.tokenizer, text, request)
                weights = _record_rows(model, window, request, tokens, heads)
                spoken = group_tokens(processor.tokenizer, tokens, code)
                frames = max(round(min(used, part.size) / SAMPLING_RATE_HERTZ / FRAME_SECONDS), 1)
                timed = time_words(weights[:, :, :frames], spoken, part[:used], lateness)
                words += _shift(timed, start / SAMPLING_RATE_HERTZ)
            start += used
            if progress is not None:
                progress(min(start, samples.size) / SAMPLING_RATE_HERTZ, duration)
    return Transcript(tuple(words), code, duration, "" if code in UNSPACED_LANGUAGES else " ")


def is_silent(samples: Samples) -> bool:
    """Return whether a sound is so quiet that it holds no speech.

    Parameters
    ----------
    samples : float32 array [samples]
        The sound.

    Examples
    --------
    >>> import numpy as np
    >>> is_silent(np.zeros(16000, np.float32))
    True
    """
    return samples.size < _MIN_SAMPLES or float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) < _SILENCE_RMS


def find_language(model: Any, language: str | None) -> str | None:
    """Return the code of a language, or raise.

    Parameters
    ----------
    model : transformers.WhisperForConditionalGeneration
        The model.
    language : str or None
        A code, such as ``"fr"``, or an English name; None to let the model detect it.

    Returns
    -------
    str or None
        None where the model has to detect the language, or knows English alone and none was named.

    Raises
    ------
    OptionError
        The model does not know the language.
    """
    if language is None:
        return None
    name = language.strip().lower()
    code = str(import_internals("models.whisper.tokenization_whisper").TO_LANGUAGE_CODE.get(name, name))
    if not model.generation_config.is_multilingual:
        if code != "en":
            raise OptionError("language", "must be 'en' for a model of English alone", got=language)
        return "en"
    known = [token.strip("<|>") for token in model.generation_config.lang_to_id]
    if code not in known:
        raise OptionError(
            "language",
            f"must be one of the model's {len(known)}",
            got=language,
            remedy=f"such as {', '.join(known[:8])}",
        )
    return code


def _group_heads(model: Any) -> dict[int, list[int]]:
    """Return the alignment heads of a model by layer."""
    from transformers import WhisperForConditionalGeneration

    if not isinstance(model, WhisperForConditionalGeneration):
        raise ModelError("model", "must be a Whisper model (WhisperForConditionalGeneration)", got=type(model).__name__)
    heads = getattr(model.generation_config, "alignment_heads", None)
    if not heads:
        raise ModelError(
            "model", "must have alignment_heads in its generation config", remedy="set them, or load another"
        )
    sizes = model.config.decoder_layers, model.config.decoder_attention_heads
    chosen = check_heads("alignment_heads", heads, sizes)
    return group_heads((head.layer, head.head) for head in chosen.forward)


def _hear(model: Any, processor: Any, samples: Samples) -> _Window:
    import torch

    features = processor.feature_extractor(
        samples, sampling_rate=SAMPLING_RATE_HERTZ, return_tensors="pt", return_attention_mask=True
    )
    with torch.no_grad():
        encoded = model.get_encoder()(features["input_features"].to(model.dtype))
    frames = int(features["attention_mask"].sum()) // 2
    return _Window(encoded, features["attention_mask"], max(frames, 1))


def _detect_language(model: Any, window: _Window) -> str | None:
    """Return the code of the language that a model hears; English for a model of English alone."""
    if not model.generation_config.is_multilingual:
        return "en"
    token = int(model.detect_language(encoder_outputs=window.encoded)[0])
    names = {number: name for name, number in model.generation_config.lang_to_id.items()}
    return str(names[token]).strip("<|>")


def _write(model: Any, window: _Window, request: _Request, *, is_last: bool) -> tuple[list[int], int]:
    """Return the tokens of a window's text, and the number of samples that they cover."""
    import torch

    # transformers warns of the arguments with which its Whisper calls itself.
    with torch.no_grad(), quiet_transformers():
        sequences = model.generate(
            encoder_outputs=window.encoded,
            attention_mask=window.mask,
            return_timestamps=True,
            num_beams=request.num_beams,
            **request.list_options(model),
        )
    first_time = model.generation_config.no_timestamps_token_id + 1
    return cut_text(sequences[0].tolist(), first_time, model.generation_config.eos_token_id, is_last=is_last)


def cut_text(tokens: Sequence[int], first_time: int, end: int, *, is_last: bool) -> tuple[list[int], int]:
    """Return the tokens of text in whole sentences, and the number of samples that they cover.

    A window that ends inside of a sentence ends with the last whole one; the next window begins there. Times stand in
    pairs between sentences.

    Parameters
    ----------
    tokens : sequence of int
        What the model wrote.
    first_time : int
        The token of the time 0; those above follow in steps of 20 ms.
    end : int
        The token of the end of the text; special tokens follow it.
    is_last : bool
        Whether the audio ends with this window.

    Examples
    --------
    >>> cut_text([50, 1, 2, 60, 60, 3], first_time=50, end=40, is_last=False)
    ([1, 2], 3200)
    """
    is_time = [token >= first_time for token in tokens]
    pairs = [at for at in range(1, len(tokens)) if is_time[at - 1] and is_time[at]]
    ends_whole = len(tokens) > 1 and is_time[-1] and not is_time[-2]
    used, kept = _WINDOW_SAMPLES, list(tokens)
    if pairs and not is_last and not ends_whole and tokens[pairs[-1]] > first_time:
        kept = list(tokens[: pairs[-1]])
        used = round((tokens[pairs[-1]] - first_time) * FRAME_SECONDS * SAMPLING_RATE_HERTZ)
    return [token for token in kept if token < end], used


def _encode_known_text(model: Any, tokenizer: Any, text: str, request: _Request) -> list[int]:
    """Return the tokens of a text that is known, or raise if the decoder has too few positions for it."""
    tokens = encode_text(tokenizer, f" {text.strip()}")
    limit = model.config.max_target_positions - len(request.list_prompt(model))
    if len(tokens) > limit:
        raise OptionError("text", f"must be at most {limit} tokens long", got=len(tokens), remedy="align it in parts")
    return tokens


def _record_rows(
    model: Any, window: _Window, request: _Request, tokens: Sequence[int], heads: dict[int, list[int]]
) -> NDArray[np.float32]:
    """Return the rows of the alignment heads: [heads, tokens + 1, frames]."""
    import torch

    prompt = request.list_prompt(model)
    limit = model.config.max_target_positions
    ids = [*prompt, *tokens][:limit]
    layers = sum(len(numbers) for numbers in heads.values())
    rows = np.zeros((layers, len(tokens) + 1, window.frames), np.float32)
    spec = StatsSpec(
        heads=heads,
        kind="cross",
        queries=slice(len(prompt) - 1, len(ids)),
        segment_ids=np.arange(window.frames),
        top_k=0,
        key_mass=False,
        stop=True,
    )
    with torch.no_grad(), record_stats(model, spec) as record:
        model(encoder_outputs=window.encoded, decoder_input_ids=torch.tensor([ids]))
    found = torch.cat([each.stats.segment_mass[0].float() for each in record]).numpy()
    rows[:, : found.shape[1]] = found
    return rows


def _shift(words: Sequence[TimedWord], seconds: float) -> list[TimedWord]:
    return [replace(word, start=word.start + seconds, end=word.end + seconds) for word in words]
