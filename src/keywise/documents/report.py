"""An answer and its evidence as a terminal report, as JSON, or as one HTML page that stands alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from keywise.errors import FormatError, OptionError
from keywise.util.atomic_write import atomic_write
from keywise.util.optional_imports import require_modules
from keywise.util.terminal_text import replace_controls

if TYPE_CHECKING:
    from rich.console import RenderableType

    from keywise.documents.answer import Answer
    from keywise.documents.evidence import Evidence
    from keywise.documents.files import Source

BAR_CELLS = 16
NONE_LIKELY = 0.5


def to_json(answer: Answer, *, top: int | None = None) -> dict[str, Any]:
    """Give an answer as plain values for ``json.dumps``, with the keys of `Answer` and `Evidence`.

    Parameters
    ----------
    answer
        What `Document.ask` gave.
    top
        Number of sentences, heaviest first; default all.

    Returns
    -------
    dict
        ``question, text, complete, model, document_tokens, reused_tokens, answer_tokens, sentences, tuned_on,
        none_share, windows``, ``words``, a list of ``start, end, sources``, and ``evidence``, a list of ``rank, share,
        attention, matching, copying, mass, words,
        paragraph_words, meaning, paragraph_meaning, source, start, end, text``.

    Raises
    ------
    OptionError
        If `top` is below 1.

    Examples
    --------
    >>>     >>> from keywise.documents import Answer
    >>> json.dumps(to_json(Answer("Ann.", [], "Who?", "m", True, 9, 2)))[:19]
    '{"question": "Who?"'
    """
    numbers = (
        "document_tokens",
        "reused_tokens",
        "answer_tokens",
        "sentences",
        "tuned_on",
        "no_answer_share",
        "windows",
    )
    clues = ("attention", "matching", "copying", "mass")
    of_text = ("words", "paragraph_words", "meaning", "paragraph_meaning")
    evidence_keys = ("rank", "share", *clues, *of_text, "source", "start", "end", "text")
    return {
        **{key: getattr(answer, key) for key in ("question", "text", "complete", "model", *numbers)},
        "words": [asdict(word) for word in answer.words],
        "evidence": [
            {key: getattr(evidence, key) for key in evidence_keys} for evidence in heaviest(answer.evidence, top)
        ],
    }


def evidence_table(evidence: Sequence[Evidence], *, top: int | None = None) -> RenderableType:
    """Draw the heaviest sentences as a table with bars, for ``rich.print``; those without any share are left out.

    Each is shown with its rank in brackets, with which `with_sources` marks the words of an answer.

    Parameters
    ----------
    evidence
        Ranked sentences.
    top
        Number of sentences, heaviest first; default all.

    Raises
    ------
    OptionError
        If `top` is below 1.

    Examples
    --------
    >>> from keywise.documents import Evidence
    >>> rain = Evidence("It rains.", 0, 9, "note", 1.0, 1.0, 1.0, 1.0, 0.4, 1.0, 1.0, None, None, 1)
    >>> evidence_table([rain]).row_count
    1
    """
    require_modules("app", "rich")
    from rich.bar import Bar  # noqa: PLC0415 - optional
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    shown = [item for item in heaviest(evidence, top) if item.share > 0]
    if not shown:
        return Text("no sentence stood out")
    longest = max(item.share for item in shown)
    table = Table(box=None, show_header=False, padding=(0, 2, 1, 0))
    table.add_column(justify="right")
    table.add_column(width=BAR_CELLS)
    table.add_column(ratio=1, overflow="fold")  # of a long path every letter counts
    for item in shown:
        # Text objects, so that square brackets in a document are no markup.
        sentence = Text(replace_controls(" ".join(item.text.split())), style="bold" if item.rank == 1 else "")
        where = f"[{item.rank}] {replace_controls(item.source)}, characters {item.start} to {item.end}"
        place = Text(where, style="dim")
        bar = Bar(longest, 0, item.share, width=BAR_CELLS, color="cyan")
        table.add_row(f"{item.share:.0%}" if item.share >= 0.005 else "<1%", bar, Text("\n").join([sentence, place]))
    return table


def answer_runs(answer: Answer) -> list[tuple[str, tuple[int, ...]]]:
    """Cut an answer's text where its sources change: pieces, each with the ranks of the sentences it came from.

    Examples
    --------
    >>> from keywise.documents import Answer, AnswerWord
    >>> words = [AnswerWord(0, 3, (1,)), AnswerWord(4, 7, (1,)), AnswerWord(8, 12, (2,))]
    >>> answer_runs(Answer("Ann Low 1862", [], "Who?", "m", True, 9, 2, words=words))
    [('Ann Low', (1,)), (' 1862', (2,))]
    """
    runs: list[tuple[str, tuple[int, ...]]] = []
    position = 0
    for word in answer.words:
        piece = answer.text[position : word.end]
        if runs and runs[-1][1] == word.sources:
            runs[-1] = runs[-1][0] + piece, word.sources
        else:
            runs.append((piece, word.sources))
        position = word.end
    rest = answer.text[position:]
    return [*runs, (rest, ())] if rest else runs


def with_sources(answer: Answer) -> str:
    """Give an answer's text with the numbers of its sources behind its words.

    Examples
    --------
    >>> from keywise.documents import Answer, AnswerWord
    >>> with_sources(Answer("Ann", [], "Who?", "m", True, 9, 2, words=[AnswerWord(0, 3, (1,))]))
    'Ann [1]'
    """
    return "".join(piece + "".join(f" [{rank}]" for rank in ranks) for piece, ranks in answer_runs(answer))


def caveat(answer: Answer) -> str | None:
    """Say what a reader should know before trusting an answer; None if there is nothing.

    Examples
    --------
    >>> from keywise.documents import Answer
    >>> caveat(Answer("Ann.", [], "Who?", "m", True, 9, 2, none_share=0.9, tuned_on="questions"))
    'probably not in the document: "none of these" has 90%'
    """
    if answer.no_answer_share > NONE_LIKELY:
        return f'probably not in the document: "none of these" has {answer.no_answer_share:.0%}'
    if answer.tuned_on is None:
        return f"no heads are tuned for model {answer.model}: evidence is a guess from its middle layers (keywise tune)"
    return None


def to_html(answer: Answer, sources: Sequence[Source]) -> str:
    """Give one self-contained HTML page: the answer, and the documents shaded by evidence.

    Parameters
    ----------
    answer
        What `Document.ask` gave.
    sources
        The `Document.sources` it was asked about.

    Returns
    -------
    str
        A page without scripts and outside assets; everything from documents, question and model is escaped.

    Examples
    --------
    >>> from keywise.documents import Answer, Source
    >>> page = to_html(Answer("<b>", [], "Who?", "m", True, 9, 2), [Source("note", "It rains.")])
    >>> "<b>" in page, "&lt;b&gt;" in page
    (False, True)
    """
    require_modules("app", "jinja2")
    import jinja2  # noqa: PLC0415 - optional

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("keywise.documents").joinpath("report.html.jinja").read_text("utf-8"))
    longest = max((evidence.share for evidence in answer.evidence), default=0.0) or 1.0
    return template.render(
        answer=answer,
        documents=[(source.name, _runs(source, answer.evidence)) for source in sources],
        strength={evidence.rank: round(evidence.share / longest, 3) for evidence in answer.evidence},
        answer_runs=answer_runs(answer),
        caveat=caveat(answer),
        listed=[evidence for evidence in answer.evidence if evidence.share > 0][:20],
    )


def write_html(path: str | os.PathLike[str], answer: Answer, sources: Sequence[Source]) -> None:
    """Write the page of `to_html` to a file: whole or not at all.

    Raises
    ------
    FormatError
        If the file cannot be written.

    Examples
    --------
    >>> write_html("answer.html", answer, document.sources)  # doctest: +SKIP
    """
    write_text_file(path, to_html(answer, sources))


def write_text_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file whole or not at all: aside, to the disk, then renamed.

    Raises
    ------
    FormatError
        If the file cannot be written.

    Examples
    --------
    >>> write_whole("note.txt", "It rains.")  # doctest: +SKIP
    """
    try:
        with atomic_write(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise FormatError(f"{os.fspath(path)!r} cannot be written: {error.strerror}; name another file") from error


def heaviest(evidence: Sequence[Evidence], top: int | None) -> Sequence[Evidence]:
    """Give the first `top` of ranked sentences, all for None."""
    if top is not None and top < 1:
        raise OptionError(f"top={top!r} is below 1; give the number of sentences to show")
    return evidence[:top]


def _runs(source: Source, evidence: Sequence[Evidence]) -> list[tuple[str, Evidence | None]]:
    """Cut a text into its sentences, each with its evidence, and what lies between them."""
    at = {item.start: item for item in evidence if item.source == source.name}
    runs: list[tuple[str, Evidence | None]] = []
    position = 0
    for start, end in source.sentences:
        runs += [(source.text[position:start], None), (source.text[start:end], at.get(start))]
        position = end
    return [*runs, (source.text[position:], None)]
