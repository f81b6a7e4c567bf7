"""Word times of Whisper on speech with known times, and what token timestamps cost."""

# ruff: noqa: PLC0415  (torch is slow to import: only the processes that measure need it)

from __future__ import annotations

import difflib
import re
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import format_table
from benchmarks.processes import run_in_process
from benchmarks.results import Run
from benchmarks.synthetic_speech import SpokenTime, Voice, synthesise
from keywise.alignment.audio import SAMPLING_RATE_HERTZ, load_audio
from keywise.util.machine import list_available_cpus

VOICES = (Voice(), Voice("en-gb", 140, 40), Voice("en-us", 175, 60), Voice("en-gb-x-rp", 150, 50))
PLAIN = "keywise without timestamps"
TIMED = "keywise with timestamps"
EAGER = "eager with timestamps"
WAYS = {PLAIN: ("keywise", False), TIMED: ("keywise", True), EAGER: ("eager", True)}
"""Each way to generate: its attention, and whether tokens have times."""

MIN_WORDS, MAX_WORDS = 5, 22
NOISE = 1e-3
PERCENTILE = 90


def measure_words(model: str, text: Path) -> Iterator[dict[str, Any]]:
    """Yield the errors of word times by keywise and by transformers' ``token_timestamps``.

    Parameters
    ----------
    model
        A folder of Whisper.
    text
        English sentences to speak.
    """
    import torch

    import keywise.hf
    from keywise.alignment import word_timestamps
    from keywise.alignment.spoken_words import group_tokens
    from keywise.models import load_model

    loaded = load_model(model, dtype="float32")
    keywise.hf.use(loaded.model)
    options = {"language": "en", "task": "transcribe"} if loaded.model.generation_config.is_multilingual else {}
    found: dict[str, list[tuple[SpokenTime, float, float]]] = {"keywise": [], "transformers": []}
    for number, sentence in enumerate(split_text(text)):
        samples, truth = make_utterance(sentence, number)
        transcript = word_timestamps(
            loaded.model, loaded.processor, samples, sampling_rate=SAMPLING_RATE_HERTZ, language="en"
        )
        timed = [(word.text, word.start, word.end) for word in transcript.words]
        found["keywise"] += match_words(timed, truth)
        features = loaded.processor(
            samples, sampling_rate=SAMPLING_RATE_HERTZ, return_tensors="pt", return_attention_mask=True
        )
        with torch.no_grad():
            out = loaded.model.generate(**features, **options, return_token_timestamps=True)
        end = loaded.model.generation_config.eos_token_id
        tokens = [token for token in out["sequences"][0].tolist() if token < end]
        times = out["token_timestamps"][0].tolist()
        times += times[-1:]
        timed = [
            (word.text, times[word.first], times[word.last]) for word in group_tokens(loaded.tokenizer, tokens, "en")
        ]
        found["transformers"] += match_words(timed, truth)
    for way, pairs in found.items():
        yield {"task": "words", "way": way, **summarise_errors(pairs)}


def split_text(text: Path) -> list[str]:
    """Return the sentences of a file that are short enough to be spoken at once."""
    plain = re.sub(r"[#*\s]+", " ", text.read_text(encoding="utf-8"))
    sentences = re.split(r"(?<=[.!?]) ", plain)
    return [each.strip() for each in sentences if MIN_WORDS <= len(each.split()) <= MAX_WORDS]


def make_utterance(sentence: str, number: int) -> tuple[Any, list[SpokenTime]]:
    """Return a spoken sentence behind some silence, with a little noise, and the times of its words."""
    samples, rate, words = synthesise(sentence, VOICES[number % len(VOICES)])
    pause = 0.2 + 0.3 * (number % 3)
    sound = np.concatenate([np.zeros(round(pause * SAMPLING_RATE_HERTZ), np.float32), load_audio(samples, rate)])
    sound += NOISE * np.random.default_rng(number).normal(size=sound.size).astype(np.float32)
    return sound, [SpokenTime(word.text, word.start + pause, word.end + pause) for word in words]


def match_words(
    timed: Sequence[tuple[str, float, float]], truth: Sequence[SpokenTime]
) -> list[tuple[SpokenTime, float, float]]:
    """Return the words that were understood, each with its found start and end."""
    heard = [_normalise(text) for text, _, _ in timed]
    said = [_normalise(word.text) for word in truth]
    blocks = difflib.SequenceMatcher(None, heard, said, autojunk=False).get_matching_blocks()
    return [(truth[block.b + offset], *timed[block.a + offset][1:]) for block in blocks for offset in range(block.size)]


def _normalise(word: str) -> str:
    return re.sub(r"[^a-z0-9']", "", word.lower())


def summarise_errors(pairs: Sequence[tuple[SpokenTime, float, float]]) -> dict[str, Any]:
    """Return the median and the 90th percentile of the errors of all edges, and the mean overlap of words."""
    errors = [
        abs(found - known) for word, start, end in pairs for found, known in ((start, word.start), (end, word.end))
    ]
    overlaps = [
        max(0.0, min(end, word.end) - max(start, word.start)) / max(max(end, word.end) - min(start, word.start), 1e-9)
        for word, start, end in pairs
    ]
    return {
        "words": len(pairs),
        "median_seconds": float(np.median(errors)),
        "percentile_90_seconds": float(np.percentile(errors, PERCENTILE)),
        "overlap": float(np.mean(overlaps)),
    }


def measure_cost(model: str, text: Path, batch: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the time of each way to generate, in turns, and its peak memory in a process of its own.

    Parameters
    ----------
    model
        A folder of Whisper.
    text
        English sentences to speak.
    batch
        Number of audios that are heard at once.
    rounds
        Number of measurements of each way.
    """
    threads = len(list_available_cpus())
    yield from run_in_process(_time_ways, model, text, batch, rounds, threads=threads)
    for way in WAYS:
        yield from run_in_process(_measure_peak, model, text, batch, way, threads=threads)


def _prepare(model: str, text: Path, batch: int) -> tuple[Any, dict[str, Any]]:
    from keywise.models import load_model

    loaded = load_model(model, dtype="float32")
    sounds = [make_utterance(sentence, number)[0] for number, sentence in enumerate(split_text(text)[:batch])]
    features = loaded.processor(
        sounds, sampling_rate=SAMPLING_RATE_HERTZ, return_tensors="pt", return_attention_mask=True
    )
    multilingual = loaded.model.generation_config.is_multilingual
    return loaded.model, {**features, **({"language": "en", "task": "transcribe"} if multilingual else {})}


def _generate(model: Any, inputs: dict[str, Any], way: str) -> Any:
    import torch

    attention, is_timed = WAYS[way]
    model.set_attn_implementation(attention)
    with torch.no_grad():
        return model.generate(**inputs, return_token_timestamps=is_timed)


def _time_ways(model_name: str, text: Path, batch: int, rounds: int) -> Iterator[dict[str, Any]]:
    import torch

    model, inputs = _prepare(model_name, text, batch)
    results = {way: _generate(model, inputs, way) for way in WAYS}
    is_equal = torch.equal(results[TIMED]["token_timestamps"], results[EAGER]["token_timestamps"])
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            start = time.perf_counter()
            _generate(model, inputs, way)
            seconds[way].append(time.perf_counter() - start)
    for way, samples in seconds.items():
        yield {"task": "time", "way": way, "batch": batch, "seconds": samples, "equal_to_eager": is_equal}


def _measure_peak(model_name: str, text: Path, batch: int, way: str) -> Iterator[dict[str, Any]]:
    model, inputs = _prepare(model_name, text, batch)
    _generate(model, inputs, way)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield {"task": "memory", "way": way, "batch": batch, "peak_bytes": peak}


def format_tables(runs: Sequence[Run]) -> str:
    """Format a table of errors and a table of costs for each run."""
    return "\n\n".join(part for run in runs for part in _format_run(run.results))


def _format_run(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    errors = [
        [
            result["way"],
            str(result["words"]),
            f"{result['median_seconds']:.3f} s",
            f"{result['percentile_90_seconds']:.3f} s",
            f"{result['overlap']:.2f}",
        ]
        for result in results
        if result["task"] == "words"
    ]
    if errors:
        yield format_table(["times by", "words", "median error", "90th percentile", "overlap"], errors)
    peaks = {(each["way"], each["batch"]): each["peak_bytes"] for each in results if each["task"] == "memory"}
    costs = [
        [
            result["way"],
            str(result["batch"]),
            f"{statistics.median(result['seconds']):.2f} s",
            f"{peaks[result['way'], result['batch']] / 1e6:.0f} MB"
            if (result["way"], result["batch"]) in peaks
            else "",
        ]
        for result in results
        if result["task"] == "time"
    ]
    if costs:
        yield format_table(["generate", "batch", "median time", "peak memory"], costs)
