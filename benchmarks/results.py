"""What a run found, as a JSON file: written whole after every finding, checked when it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from keywise.documents.report import write_text_file
from keywise.errors import FormatError

FORMAT = "keywise bench 1"
FACTS = ("kind", "command", "machine", "interrupted")


@dataclass
class Run:
    """The findings of one run.

    Attributes
    ----------
    kind
        ``"attention"``, ``"model"``, ``"memory"``, ``"cache"``, ``"evidence"`` or ``"library"``.
    command
        The command that does it again.
    path
        Where to keep it; None for nowhere.
    limits
        What the machine can do, per target and number of threads.
    results
        The findings, in plain values.
    interrupted
        Whether Ctrl-C ended the run before it was done.
    """

    kind: str
    command: str
    path: Path | None = None
    machine: dict[str, Any] = field(default_factory=describe_machine)
    limits: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False

    def add(self, result: dict[str, Any]) -> None:
        """Add a finding and keep it."""
        self.results.append(result)
        self.save()

    def save(self) -> None:
        """Write the file: aside, to the disk, then renamed, so that it is whole at every moment.

        Raises
        ------
        FormatError
            If it cannot be written.
        """
        if self.path is None:
            return
        facts = {"format": FORMAT} | {name: getattr(self, name) for name in FACTS}
        lines = [f'"{name}": {json.dumps(value)}' for name, value in facts.items()]
        # A line per finding: the files are kept, and changes to them read.
        for name in ("limits", "results"):
            findings = ",\n  ".join(json.dumps(finding) for finding in getattr(self, name))
            lines.append(f'"{name}": [\n  {findings}\n ]' if findings else f'"{name}": []')
        body = ",\n ".join(lines)
        write_text_file(self.path, f"{{\n {body}\n}}\n")


def read_run(path: Path) -> Run:
    """Read a run from its file.

    Raises
    ------
    FormatError
        If the file is missing, or no such run.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FormatError(f"{str(path)!r} is no JSON file: {error}") from error
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise FormatError(f"{str(path)!r} was not written by `keywise bench` of this version; measure again")
    try:
        return Run(path=path, **found)
    except TypeError as error:
        raise FormatError(f"{str(path)!r} is damaged: {error}; measure again") from error
