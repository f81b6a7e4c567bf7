"""Transcripts: words with their times, as text, subtitles and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_LINE_CHARACTERS: Final = 42
MAX_CUE_SECONDS: Final = 7.0
MAX_GAP_SECONDS: Final = 1.5
_SENTENCE_ENDS: Final = (".", "!", "?", "。", "！", "？", "…")


@dataclass(frozen=True)
class TimedWord:
    """A word and when it is spoken.

    Attributes
    ----------
    text : str
        The word with its punctuation.
    start, end : float
        Seconds from the beginning of the audio.
    confidence : float
        Share of the word's attention that lies between `start` and `end`, a frame of 20 ms more on each side.

    Examples
    --------
    >>> from keywise.alignment import TimedWord
    >>> TimedWord("Hello,", 0.4, 0.8, 0.9).end
    0.8
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """What is said in an audio, word by word.

    Attributes
    ----------
    words : tuple of TimedWord
        The words in order.
    language : str or None
        Code of the language; None for models of one language.
    duration : float
        Length of the audio in seconds.
    separator : str
        What stands between two words: a space, or nothing for languages without spaces.

    Examples
    --------
    >>> from keywise.alignment import TimedWord, Transcript
    >>> transcript = Transcript((TimedWord("It", 0.0, 0.2, 0.9), TimedWord("rained.", 0.2, 0.7, 0.8)), "en", 1.0)
    >>> transcript.text
    'It rained.'
    >>> print(transcript.srt(), end="")
    1
    00:00:00,000 --> 00:00:00,700
    It rained.
    """

    words: tuple[TimedWord, ...]
    language: str | None
    duration: float
    separator: str = " "

    @property
    def text(self) -> str:
        """All words as a text."""
        return self.separator.join(word.text for word in self.words)

    def srt(self) -> str:
        """Return subtitles in the format SubRip (.srt).

        Examples
        --------
        >>> from keywise.alignment import Transcript
        >>> Transcript((), "en", 1.0).srt()
        ''
        """
        cues = []
        for number, cue in enumerate(self._split_cues(), start=1):
            times = f"{_format_time(cue[0].start, ',')} --> {_format_time(cue[-1].end, ',')}"
            cues.append(f"{number}\n{times}\n{self._break_lines(cue)}\n")
        return "\n".join(cues)

    def vtt(self) -> str:
        r"""Return subtitles in the format WebVTT (.vtt), with the time of each word.

        Examples
        --------
        >>> from keywise.alignment import Transcript
        >>> Transcript((), "en", 1.0).vtt()
        'WEBVTT\n'
        """
        cues = ["WEBVTT\n"]
        for cue in self._split_cues():
            times = f"{_format_time(cue[0].start, '.')} --> {_format_time(cue[-1].end, '.')}"
            first, *rest = cue
            timed = [_escape(first.text), *(f"<{_format_time(word.start, '.')}>{_escape(word.text)}" for word in rest)]
            cues.append(f"{times}\n{self.separator.join(timed)}\n")
        return "\n".join(cues)

    def to_json(self) -> dict[str, Any]:
        """Return the transcript as plain values for ``json.dumps``.

        Examples
        --------
        >>> from keywise.alignment import Transcript
        >>> Transcript((), "en", 1.0).to_json()["duration"]
        1.0
        """
        return {
            "text": self.text,
            "language": self.language,
            "duration": round(self.duration, 3),
            "words": [
                {
                    "text": word.text,
                    "start": round(word.start, 3),
                    "end": round(word.end, 3),
                    "confidence": round(word.confidence, 3),
                }
                for word in self.words
            ],
        }

    def _split_cues(self) -> list[list[TimedWord]]:
        """Return the words by subtitle: at the ends of sentences, at pauses, and where two lines or 7 s are full."""
        cues: list[list[TimedWord]] = []
        for word in self.words:
            cue = cues[-1] if cues else []
            is_full = (
                not cue
                or cue[-1].text.endswith(_SENTENCE_ENDS)
                or word.start - cue[-1].end > MAX_GAP_SECONDS
                or word.end - cue[0].start > MAX_CUE_SECONDS
                or self._count_characters([*cue, word]) > 2 * MAX_LINE_CHARACTERS
            )
            if is_full:
                cues.append([word])
            else:
                cue.append(word)
        return cues

    def _count_characters(self, words: Sequence[TimedWord]) -> int:
        return len(self.separator.join(word.text for word in words))

    def _break_lines(self, cue: Sequence[TimedWord]) -> str:
        """Return a subtitle's text in one line, or two of about the same length."""
        text = self.separator.join(word.text for word in cue)
        if len(text) <= MAX_LINE_CHARACTERS or len(cue) < 2:
            return text
        cuts = range(1, len(cue))
        cut = min(cuts, key=lambda at: abs(self._count_characters(cue[:at]) - self._count_characters(cue[at:])))
        return "\n".join(self.separator.join(word.text for word in part) for part in (cue[:cut], cue[cut:]))


def _format_time(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _escape(text: str) -> str:
    """Return a text without marks of WebVTT."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
