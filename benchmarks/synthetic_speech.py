"""Speech of which the time of every word is known: the library of espeak-ng tells where each word begins."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.errors import ModelError

# Constants and structures of espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS: Final = 2
_PHONEME_EVENTS: Final = 0x0001
_DONT_EXIT: Final = 0x8000
_UTF8: Final = 1
_RATE, _PITCH = 1, 3
_END_OF_LIST, _WORD, _PHONEME = 0, 1, 7
_PAUSES: Final = (b"_:", b"_", b"_::", b"_!")


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("text", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class SpokenTime:
    """When a word is spoken, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Voice:
    """A voice of espeak-ng: its name, words per minute, and pitch from 0 to 99."""

    name: str = "en-us"
    words_per_minute: int = 160
    pitch: int = 50


def find_library() -> str | None:
    """Return the name of espeak-ng's library, if it is installed."""
    return ctypes.util.find_library("espeak-ng")


def synthesise(text: str, voice: Voice | None = None) -> tuple[NDArray[np.float32], int, list[SpokenTime]]:
    """Speak a text.

    Parameters
    ----------
    text
        The text; its words are separated by spaces.
    voice
        The voice; default American English at 160 words per minute.

    Returns
    -------
    samples : float32 array
    rate : int
        Samples per second.
    words : list of SpokenTime
        A word ends where the next begins, or a pause before it.

    Raises
    ------
    ModelError
        espeak-ng is not installed.
    """
    name = find_library()
    if name is None:
        raise ModelError("espeak-ng", "must be installed", remedy="use `apt-get install espeak-ng`")
    library = ctypes.CDLL(name)
    rate = int(library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, None, _PHONEME_EVENTS | _DONT_EXIT))
    parts: list[NDArray[Any]] = []
    events: list[tuple[int, int, int, float, bytes]] = []

    def receive(samples: Any, count: int, event: Any) -> int:
        if count > 0 and samples:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        number = 0
        while event[number].type != _END_OF_LIST:
            each = event[number]
            phoneme = bytes(each.id.text) if each.type == _PHONEME else b""
            events.append((each.type, each.text_position, each.length, each.sample / rate, phoneme))
            number += 1
        return 0

    callback = _Callback(receive)
    library.espeak_SetSynthCallback(callback)
    chosen = voice or Voice()
    library.espeak_SetVoiceByName(chosen.name.encode())
    library.espeak_SetParameter(_RATE, chosen.words_per_minute, 0)
    library.espeak_SetParameter(_PITCH, chosen.pitch, 0)
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    samples = np.concatenate(parts).astype(np.float32) / np.float32(32768)
    return samples, rate, _list_words(text, events, samples.size / rate)


def _list_words(text: str, events: list[tuple[int, int, int, float, bytes]], duration: float) -> list[SpokenTime]:
    """Return the words of a text by the characters of its events: numbers and such may have several events."""
    pauses = [second for kind, _, _, second, phoneme in events if kind == _PHONEME and phoneme in _PAUSES]
    starts: dict[int, float] = {}
    spans = []
    position = 0
    for word in text.split():
        begin = text.index(word, position)
        position = begin + len(word)
        spans.append((begin, position))
    for kind, place, _, second, _ in events:
        if kind == _WORD:
            number = next((at for at, (begin, end) in enumerate(spans) if begin <= place - 1 < end), None)
            if number is not None:
                starts.setdefault(number, second)
    words = []
    ordered = sorted(starts.items())
    for (number, start), following in zip(ordered, [*(second for _, second in ordered[1:]), duration], strict=True):
        end = min([following, *(pause for pause in pauses if pause > start)])
        words.append(SpokenTime(text[slice(*spans[number])], start, end))
    return words
