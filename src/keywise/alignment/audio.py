"""Sound files and arrays as mono samples at the rate that speech models hear."""

from __future__ import annotations

import os
import wave
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.errors import DtypeError, FormatError, MissingFileError, ModelError, OptionError, ShapeError
from keywise.util.checks import check_int

SAMPLING_RATE_HERTZ: Final = 16_000
MAX_RATE_HERTZ: Final = 768_000

Samples = NDArray[np.float32]


def load_audio(audio: str | os.PathLike[str] | Any, sampling_rate: int | None = None) -> Samples:
    """Return sound as mono samples at 16 kHz.

    Parameters
    ----------
    audio : path, or array [samples] or [samples, channels]
        A file that soundfile reads (WAV, FLAC, OGG, MP3 ...; without soundfile, WAV of 16 bits), or samples: floats
        between -1 and 1, or 16-bit integers.
    sampling_rate : int, optional
        Samples per second of an array; files say it themselves.

    Returns
    -------
    float32 array [samples]

    Raises
    ------
    MissingFileError, FormatError
        The file is missing or cannot be decoded.
    OptionError, ShapeError, DtypeError
        An array has no sampling rate, no samples, more than two axes, or values that are no sound.
    ModelError
        The rate must be changed and soxr is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.alignment.audio import load_audio
    >>> load_audio(np.zeros(8000, np.float32), 16000).shape
    (8000,)
    """
    if isinstance(audio, str | os.PathLike):
        if sampling_rate is not None:
            raise OptionError("sampling_rate", "must be left out with a file, which says its own", got=sampling_rate)
        samples, rate = _read_file(Path(audio))
    else:
        if sampling_rate is None:
            raise OptionError("sampling_rate", "must be given with an array", remedy="in samples per second")
        samples, rate = (
            _check_samples(audio),
            check_int("sampling_rate", sampling_rate, minimum=1, maximum=MAX_RATE_HERTZ),
        )
    if samples.ndim == 2:
        samples = samples.mean(1)
    if samples.size == 0:
        raise OptionError("audio", "must have at least one sample", got=0)
    if not np.isfinite(samples).all():
        raise OptionError("audio", "must have finite samples only")
    return _resample(np.ascontiguousarray(samples, np.float32), rate)


def _check_samples(audio: Any) -> NDArray[Any]:
    samples = np.asarray(audio)
    if samples.ndim not in (1, 2):
        raise ShapeError("audio", "must have one axis, or samples and channels", got=list(samples.shape))
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32768
    if not np.issubdtype(samples.dtype, np.floating):
        raise DtypeError("audio", "must hold floats between -1 and 1, or 16-bit integers", got=str(samples.dtype))
    return samples


def _read_file(path: Path) -> tuple[NDArray[Any], int]:
    if not path.exists():
        raise MissingFileError("audio", "must name an existing file", got=str(path))
    if find_spec("soundfile") is None:
        return _read_wave(path)
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="float32")
    except (soundfile.SoundFileError, OSError) as error:
        raise _refuse(path, str(error)) from error
    return samples, int(rate)


def _read_wave(path: Path) -> tuple[NDArray[Any], int]:
    """Read a WAV file of 16 bits with the standard library."""
    try:
        with wave.open(str(path), "rb") as file:
            if file.getsampwidth() != 2:
                raise _refuse(path, f"it has {8 * file.getsampwidth()} bits; `pip install soundfile` reads these")
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
            return samples.astype(np.float32) / 32768, file.getframerate()
    except (wave.Error, EOFError, OSError) as error:
        raise _refuse(path, f"{error}; `pip install soundfile` reads other formats") from error


def _refuse(path: Path, reason: str) -> FormatError:
    remedy = f"{reason}; convert it, for example with `ffmpeg -i {path.name} audio.wav`"
    return FormatError("audio", "must be a sound file that can be decoded", got=str(path), remedy=remedy)


def _resample(samples: Samples, rate: int) -> Samples:
    if rate == SAMPLING_RATE_HERTZ:
        return samples
    if find_spec("soxr") is None:
        raise ModelError(
            "audio",
            f"must have {SAMPLING_RATE_HERTZ:,} samples per second, got {rate:,}",
            remedy="`pip install soxr` lets keywise change the rate",
        )
    import soxr

    return np.asarray(soxr.resample(samples, rate, SAMPLING_RATE_HERTZ), np.float32)
