"""Results of a run in a JSON file, which is complete after every result."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from keywise.errors import FormatError, MissingFileError
from keywise.util.atomic_write import atomic_write

FORMAT = "keywise benchmarks 2"
EARLIER_FORMATS = ("keywise bench 1",)
HEADER_FIELDS = ("kind", "command", "machine", "interrupted")
CREATE_AGAIN = "delete it or create it again"


@dataclass
class Run:
    """The results of one run.

    Attributes
    ----------
    kind
        ``"attention"``, ``"model"``, ``"memory"``, ``"cache"``, ``"evidence"``, ``"library"``, ``"documents"``,
        ``"training"`` or ``"compare"``.
    command
        The command that repeats it.
    path
        File for the results; None for none.
    machine
        The machine, as `benchmarks.machine.describe_machine` returns it.
    limits
        The measured limits of the machine, per target and number of threads.
    results
        The results, in plain values.
    interrupted
        Whether Ctrl-C ended the run before its end.
    """

    kind: str
    command: str
    path: Path | None = None
    machine: dict[str, Any] = field(default_factory=describe_machine)
    limits: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False

    def add(self, result: dict[str, Any]) -> None:
        """Append a result and save the file."""
        self.results.append(result)
        self.save()

    def put(self, result: dict[str, Any]) -> None:
        """Add a result in place of the one with the same name, and save the file."""
        self.results = [other for other in self.results if other["name"] != result["name"]]
        self.add(result)

    def save(self) -> None:
        """Write the file, if there is one; it is complete at every moment.

        Raises
        ------
        FormatError
            The file cannot be written.
        """
        if self.path is None:
            return
        header = {"format": FORMAT} | {name: getattr(self, name) for name in HEADER_FIELDS}
        lines = [f'"{name}": {json.dumps(value)}' for name, value in header.items()]
        # A line per result: the files are under version control, and their changes are read.
        for name in ("limits", "results"):
            items = ",\n  ".join(json.dumps(item) for item in getattr(self, name))
            lines.append(f'"{name}": [\n  {items}\n ]' if items else f'"{name}": []')
        body = ",\n ".join(lines)
        write_file(self.path, f"{{\n {body}\n}}\n")


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all.

    Raises
    ------
    FormatError
        The file cannot be written.
    """
    try:
        with atomic_write(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise FormatError("path", f"{str(path)!r} cannot be written: {error.strerror}") from error


def read_text_file(path: Path) -> str:
    """Return the text of a file.

    Raises
    ------
    MissingFileError
        The file does not exist.
    FormatError
        The file cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingFileError("path", "must be an existing file", got=str(path)) from error
    except OSError as error:
        raise FormatError("path", f"{str(path)!r} must be readable: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError("path", f"{str(path)!r} must be UTF-8 text: {error}") from error


def read_run(path: Path) -> Run:
    """Read a run from its file.

    Raises
    ------
    MissingFileError
        The file does not exist.
    FormatError
        The file holds no run, or one of an earlier build.
    """
    text = read_text_file(path)
    try:
        values = json.loads(text)
    except ValueError as error:
        raise FormatError("path", f"{str(path)!r} must be a JSON file: {error}", remedy=CREATE_AGAIN) from error
    file_format = values.pop("format", None) if isinstance(values, dict) else None
    if file_format in EARLIER_FORMATS:
        raise FormatError("path", f"{str(path)!r} was made by an earlier build", remedy=CREATE_AGAIN)
    if file_format != FORMAT:
        raise FormatError("path", f"{str(path)!r} must be a file written by `python -m benchmarks ... --json`")
    try:
        return Run(path=path, **values)
    except TypeError as error:
        raise FormatError("path", f"{str(path)!r} is damaged: {error}", remedy=CREATE_AGAIN) from error
