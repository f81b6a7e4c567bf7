"""Answers and their evidence as a terminal report, JSON or one HTML page."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from keywise.documents.document_html import read_style, render_documents
from keywise.documents.page_images import picture_pages
from keywise.documents.places import Places
from keywise.documents.shading import find_cited_ranks, is_supported, make_shading
from keywise.documents.view import make_view
from keywise.errors import FormatError
from keywise.util.atomic_write import atomic_write
from keywise.util.checks import check_int
from keywise.util.optional_imports import require_modules
from keywise.util.terminal_text import replace_controls

if TYPE_CHECKING:
    from rich.console import RenderableType

    from keywise.documents.ablation import Ablation
    from keywise.documents.answer import Answer
    from keywise.documents.evidence import Evidence
    from keywise.documents.files import Source

BAR_CELLS: Final = 16
MIN_PERCENTAGE_SHARE: Final = 0.005
LISTED_SENTENCES: Final = 20

_ANSWER_KEYS = (
    "question",
    "text",
    "complete",
    "model",
    "answer_model",
    "document_tokens",
    "reused_tokens",
    "answer_tokens",
    "sentences",
    "tuned_on",
    "no_answer_share",
    "windows",
    "read_windows",
    "quote",
    "confidence",
)
_EVIDENCE_KEYS = (
    "rank",
    "share",
    "attention",
    "matching",
    "copying",
    "mass",
    "lexical",
    "paragraph_lexical",
    "semantic",
    "paragraph_semantic",
    "source",
    "start",
    "end",
    "page",
    "heading_path",
    "text",
)

_BOX_KEYS = ("page", "left", "bottom", "right", "top")


def to_json(
    answer: Answer,
    *,
    top: int | None = None,
    ablations: Sequence[Ablation] = (),
    sources: Sequence[Source] = (),
) -> dict[str, Any]:
    """Return an answer as plain values for ``json.dumps``.

    Parameters
    ----------
    answer
        From `Document.ask`.
    top
        Number of sentences, best first; default all.
    ablations
        From `Document.ablate`.
    sources
        The `Document.sources`, so that places have lines.

    Returns
    -------
    dict
        The attributes of `Answer`, and ``where`` with the place of its quote. ``words`` is a list of
        ``start, end, sources``; ``evidence`` is a list of the attributes of `Evidence`, each with ``where``, its place
        in words, and ``boxes``, a list of ``page, left, bottom, right, top`` in points. With ablations ``ablation`` is
        a list of ``rank, drop_nats, control``.

    Raises
    ------
    DtypeError
        `top` is not an integer.
    OptionError
        `top` is below 1.

    Examples
    --------
    >>> import json
    >>> from keywise.documents import Answer
    >>> json.dumps(to_json(Answer("Ann.", [], "Who?", "m", True, 9, 2)))[:19]
    '{"question": "Who?"'
    """
    report: dict[str, Any] = {key: getattr(answer, key) for key in _ANSWER_KEYS}
    places = Places(sources)
    quoted = find_quoted_sentence(answer)
    report["where"] = None if quoted is None else places.describe(quoted)
    report["words"] = [asdict(word) for word in answer.words]
    report["evidence"] = [
        {
            **{key: getattr(item, key) for key in _EVIDENCE_KEYS},
            "where": places.describe(item),
            "boxes": [{key: getattr(box, key) for key in _BOX_KEYS} for box in item.boxes],
        }
        for item in _select_best(answer.evidence, top)
    ]
    if ablations:
        report["ablation"] = [
            {"rank": each.evidence.rank, "drop_nats": each.drop_nats, "control": each.control} for each in ablations
        ]
    return report


def make_evidence_table(
    evidence: Sequence[Evidence], *, top: int | None = None, sources: Sequence[Source] = ()
) -> RenderableType:
    """Return the best sentences as a table with bars, for ``rich.print``.

    Each has its rank in brackets, as answers cite it, and its place. Sentences without any share are left out.

    Parameters
    ----------
    evidence
        Ranked sentences.
    top
        Number of sentences, best first; default all.
    sources
        The `Document.sources`, so that places have lines.

    Raises
    ------
    DtypeError
        `top` is not an integer.
    OptionError
        `top` is below 1.

    Examples
    --------
    >>> from keywise.documents import Evidence
    >>> rain = Evidence("It rains.", 0, 9, "note", 1.0, 1.0, 1.0, 1.0, 0.4, 1.0, 1.0, None, None, 1)
    >>> make_evidence_table([rain]).row_count
    1
    """
    require_modules("app", "rich")
    from rich.bar import Bar  # noqa: PLC0415 - optional
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    listed = [item for item in _select_best(evidence, top) if item.share > 0]
    if not listed:
        return Text("no sentence stands out")
    places = Places(sources)
    largest_share = max(item.share for item in listed)
    table = Table(box=None, show_header=False, padding=(0, 2, 1, 0))
    table.add_column(justify="right")
    table.add_column(width=BAR_CELLS)
    table.add_column(ratio=1, overflow="fold")  # a long path is shown in full
    for item in listed:
        # Text objects, so that square brackets in a document are not markup.
        sentence = Text(replace_controls(" ".join(item.text.split())), style="bold" if item.rank == 1 else "")
        place = Text(f"[{item.rank}] {format_line(places.describe(item))}", style="dim")
        bar = Bar(largest_share, 0, item.share, width=BAR_CELLS, color="cyan")
        percentage = f"{item.share:.0%}" if item.share >= MIN_PERCENTAGE_SHARE else "<1%"
        table.add_row(percentage, bar, Text("\n").join([sentence, place]))
    return table


def split_by_sources(answer: Answer) -> list[tuple[str, tuple[int, ...]]]:
    """Split an answer's text where its sources change.

    Returns
    -------
    list of (str, tuple of int)
        Parts of the text, each with the ranks of its sources.

    Examples
    --------
    >>> from keywise.documents import Answer, AnswerWord
    >>> words = [AnswerWord(0, 3, (1,)), AnswerWord(4, 7, (1,)), AnswerWord(8, 12, (2,))]
    >>> split_by_sources(Answer("Ann Low 1862", [], "Who?", "m", True, 9, 2, words=words))
    [('Ann Low', (1,)), (' 1862', (2,))]
    """
    parts: list[tuple[str, tuple[int, ...]]] = []
    position = 0
    for word in answer.words:
        text = answer.text[position : word.end]
        if parts and parts[-1][1] == word.sources:
            parts[-1] = parts[-1][0] + text, word.sources
        else:
            parts.append((text, word.sources))
        position = word.end
    rest = answer.text[position:]
    return [*parts, (rest, ())] if rest else parts


def list_sources(answer: Answer, *, top: int) -> list[int]:
    """Return the ranks of the sentences that an answer's words come from, in the order of the words.

    Parameters
    ----------
    answer
        From `Document.ask`.
    top
        Number of best sentences that are shown; others are not cited.

    Examples
    --------
    >>> from keywise.documents import Answer, AnswerWord
    >>> words = [AnswerWord(0, 3, (2, 1)), AnswerWord(4, 7, (9,))]
    >>> list_sources(Answer("Ann Low", [], "Who?", "m", True, 9, 2, words=words), top=5)
    [2, 1]
    """
    ranks = dict.fromkeys(rank for word in answer.words for rank in word.sources)
    return [rank for rank in ranks if rank <= top]


def find_quoted_sentence(answer: Answer) -> Evidence | None:
    """Return the sentence that an answer was quoted from: that of its first word, else the best one.

    Examples
    --------
    >>> from keywise.documents import Answer
    >>> find_quoted_sentence(Answer("Ann Low", [], "Who?", "m", True, 9, 2)) is None
    True
    """
    ranks = [rank for word in answer.words for rank in word.sources] if answer.sentences else []
    wanted = ranks[0] if ranks else 1
    return next((item for item in answer.evidence if item.rank == wanted), None)


def make_quote(answer: Answer, *, sources: Sequence[Source] = ()) -> RenderableType | None:
    """Return the sentence that an answer was quoted from, with the quoted words in bold, and its place.

    Parameters
    ----------
    answer
        From `Document.ask`.
    sources
        The `Document.sources`, so that the place has a line.

    Returns
    -------
    rich.text.Text or None
        A whole sentence as the answer is not repeated: only its place. None for an answer without evidence.

    Examples
    --------
    >>> from keywise.documents import Answer, Evidence
    >>> keeper = Evidence("Ann kept it.", 0, 12, "note", 1.0, 1.0, 1.0, 1.0, 0.4, 1.0, 1.0, None, None, 1)
    >>> print(make_quote(Answer("Ann", [keeper], "Who?", "m", True, 9, 2, quote=keeper.text)))
    “Ann kept it.” note, characters 0 to 12
    """
    require_modules("app", "rich")
    from rich.text import Text  # noqa: PLC0415 - optional

    quoted = find_quoted_sentence(answer)
    if quoted is None:
        return None
    place = Text(format_line(Places(sources).describe(quoted)), style="dim")
    quote, words = format_line(answer.quote), format_line(answer.text)
    if not quote or quote == words:
        return place
    sentence = Text(f"“{quote}” ")
    start = quote.find(words) if words else -1
    if start >= 0:
        sentence.stylize("bold", start + 1, start + 1 + len(words))
    return sentence + place


def format_line(text: str) -> str:
    r"""Return a text on one line, without control characters.

    Examples
    --------
    >>> format_line("a \x07\nb")
    'a � b'
    """
    return replace_controls(" ".join(text.split()))


def describe_doubt(answer: Answer) -> str | None:
    """Return the reason to doubt an answer, or None.

    Examples
    --------
    >>> from keywise.documents import Answer
    >>> describe_doubt(Answer("Ann.", [], "Who?", "m", True, 9, 2, no_answer_share=0.9, tuned_on="questions"))
    'probably not in the document: the probability that no sentence answers is 90%'
    """
    if not is_supported(answer):
        probability = f"{answer.no_answer_share:.0%}"
        return f"probably not in the document: the probability that no sentence answers is {probability}"
    if answer.tuned_on is None:
        return (
            f"no heads are tuned for model {answer.model}: evidence comes from all heads of its middle layers; "
            "tune it with `keywise tune`"
        )
    return None


def to_html(answer: Answer, sources: Sequence[Source]) -> str:
    """Return one HTML page with the answer and the documents, shaded by evidence.

    Parameters
    ----------
    answer
        From `Document.ask`.
    sources
        The `Document.sources` that the question was asked about.

    Returns
    -------
    str
        A page without scripts and external files, and with a content security policy that forbids them. It opens at the
        best sentence. Cited sentences are marked strongly, others that may answer faintly; nothing is marked if
        probably no sentence answers. Pages of PDF files that hold one of the best sentences are shown as pictures.
        Everything from documents, question and model is escaped; control and bidirectional characters are replaced by
        U+FFFD.

    Raises
    ------
    FormatError
        A PDF cannot be read again.

    Examples
    --------
    >>> from keywise.documents import Answer, Source
    >>> page = to_html(Answer("<b>", [], "Who?", "m", True, 9, 2), [Source("note", "It rains.")])
    >>> "<b>" in page, "&lt;b&gt;" in page
    (False, True)
    """
    require_modules("app", "jinja2")
    import jinja2  # noqa: PLC0415 - optional
    from markupsafe import Markup  # noqa: PLC0415

    shading = make_shading(answer)
    pictures = {source.name: picture_pages(source, answer.evidence, find_cited_ranks(answer)) for source in sources}
    views = [make_view(source, shading, pictures[source.name]) for source in sources]
    places = Places(sources)
    largest_share = max((item.share for item in answer.evidence), default=0.0) or 1.0
    folder = files("keywise.documents")
    style = read_style() + folder.joinpath("report.css").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_replace_controls_in_text,
    )
    template = environment.from_string(folder.joinpath("report.html.jinja").read_text("utf-8"))
    return template.render(
        answer=answer,
        answer_parts=split_by_sources(answer),
        documents=Markup(render_documents(views, shading)),
        shading=shading,
        pictured={mark.rank for images in pictures.values() for image in images for mark in image.marks},
        places={item.rank: places.describe(item) for item in answer.evidence if item.share > 0},
        widths={item.rank: round(10 * item.share / largest_share) for item in answer.evidence},
        doubt=describe_doubt(answer),
        listed=[item for item in answer.evidence if item.share > 0][:LISTED_SENTENCES],
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def write_html(path: str | os.PathLike[str], answer: Answer, sources: Sequence[Source]) -> None:
    """Write the page of `to_html` to a file, atomically.

    Parameters
    ----------
    path
        The file to write or replace.
    answer, sources
        As for `to_html`.

    Raises
    ------
    FormatError
        The file cannot be written, or a PDF cannot be read again.

    Examples
    --------
    >>> write_html("answer.html", answer, document.sources)  # doctest: +SKIP
    """
    write_text_file(path, to_html(answer, sources))


def write_text_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file atomically: completely or not at all.

    Parameters
    ----------
    path
        The file to write or replace.
    content
        Text, which is encoded as UTF-8, or bytes.

    Raises
    ------
    FormatError
        The file cannot be written.

    Examples
    --------
    >>> write_text_file("note.txt", "It rains.")  # doctest: +SKIP
    """
    try:
        with atomic_write(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        rule = "must name a file that can be written"
        raise FormatError("path", rule, got=os.fspath(path), remedy=str(error.strerror)) from error


def _select_best(evidence: Sequence[Evidence], top: int | None) -> Sequence[Evidence]:
    return evidence if top is None else evidence[: check_int("top", top, minimum=1)]


def _replace_controls_in_text(value: object) -> object:
    return replace_controls(value) if type(value) is str else value  # markup stays markup
