"""Places of sentences in words: a page, a heading and a line, or the number of a sentence."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keywise.documents.files import FORMAT_BY_SUFFIX

if TYPE_CHECKING:
    from keywise.documents.evidence import Evidence
    from keywise.documents.files import Source

_LINE_END: Final = re.compile(r"\r\n|\n|\r")


class Places:
    r"""Places in some texts, described as a reader finds them.

    Parameters
    ----------
    sources
        The texts. A sentence of another text is described by its characters.

    Examples
    --------
    >>> from keywise.documents import Evidence, Source
    >>> note = Source("note.md", "It is dry.\nIt rains.")
    >>> rain = Evidence("It rains.", 11, 20, "note.md", 1.0, 1.0, 1.0, 1.0, 0.4, 1.0, 1.0, None, None, 1)
    >>> Places([note]).describe(rain)
    'note.md, line 2'
    """

    def __init__(self, sources: Sequence[Source] = ()) -> None:
        self._sources = {source.name: source for source in sources}
        self._line_starts: dict[str, list[int]] = {}

    def describe(self, evidence: Evidence) -> str:
        """Return where a sentence stands, such as ``"report.pdf, page 4"`` or ``"manual.md, § Pump, line 31"``.

        A PDF has pages; lines are those of files that are read as text; elsewhere headings, or the number of the
        sentence, tell the place.

        Parameters
        ----------
        evidence
            The sentence.
        """
        source = self._sources.get(evidence.source)
        parts = [evidence.source]
        if evidence.page:
            parts.append(f"page {evidence.page}")
            return ", ".join(parts)
        if evidence.heading_path:
            parts.append(f"§ {evidence.heading_path[-1]}")
        if source is None:
            if len(parts) == 1:
                parts.append(f"characters {evidence.start} to {evidence.end}")
        elif is_file_text(source):
            parts.append(f"line {self._count_lines(source, evidence.start)}")
        elif len(parts) == 1:
            parts.append(f"sentence {bisect.bisect_right(source.sentences, (evidence.start, len(source.text)))}")
        return ", ".join(parts)

    def _count_lines(self, source: Source, position: int) -> int:
        starts = self._line_starts.get(source.name)
        if starts is None:
            starts = [match.end() for match in _LINE_END.finditer(source.text)]
            self._line_starts[source.name] = starts
        return bisect.bisect_right(starts, position) + 1


def is_file_text(source: Source) -> bool:
    """Return whether a text is a file as it is, so that its lines can be counted.

    Parameters
    ----------
    source
        The text.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> is_file_text(Source("notes.txt", "It is dry.")), is_file_text(Source("page.html", "It is dry."))
    (True, False)
    """
    file_format = FORMAT_BY_SUFFIX.get(Path(source.name).suffix.lower())
    return source.blocks is None if file_format is None else file_format.is_text
