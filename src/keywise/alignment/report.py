"""Alignments as a terminal table and as HTML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from keywise.errors import FormatError
from keywise.util.atomic_write import atomic_write
from keywise.util.optional_imports import require_modules
from keywise.util.terminal_text import replace_controls

if TYPE_CHECKING:
    from rich.console import RenderableType

    from keywise.alignment.result import Alignment

_SHADES = " ░▒▓█"
_TEMPLATE = "report.html.jinja"


def make_table(alignment: Alignment) -> RenderableType:
    """Return a table with one line a target word: its source words, their scores, and a drawing of its row.

    Parameters
    ----------
    alignment : Alignment
        The alignment.
    """
    require_modules("app", "rich")
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("target")
    table.add_column("source")
    table.add_column("score", justify="right")
    table.add_column("null", justify="right")
    table.add_column("source words in order")
    for number, word in enumerate(alignment.target):
        linked = [source for source, target in alignment.links if target == number]
        names = " ".join(alignment.source[source] for source in linked)
        scores = " ".join(f"{alignment.scores[number, source]:.2f}" for source in linked)
        table.add_row(
            Text(replace_controls(word)),
            Text(replace_controls(names)) if linked else Text("—", style="dim"),
            scores,
            f"{alignment.null[number]:.2f}",
            Text(_draw_row(alignment.scores[number])),
        )
    return table


def _draw_row(scores: Any) -> str:
    """Return a character for each source word, darker for larger scores."""
    levels = np.clip(np.ceil(scores * (len(_SHADES) - 1) - 0.5), 0, len(_SHADES) - 1).astype(int)
    return "".join(_SHADES[level] for level in levels)


def make_matrix(alignment: Alignment) -> str:
    """Return an alignment as an HTML fragment: a matrix of words with shaded cells.

    Parameters
    ----------
    alignment : Alignment
        The alignment.
    """
    return _render([alignment], whole_page=False)


def write_page(alignments: Sequence[Alignment], path: str | os.PathLike[str]) -> None:
    """Write an HTML page that draws alignments.

    Parameters
    ----------
    alignments : sequence of Alignment
        The alignments, in order.
    path : path
        The file to write or replace.

    Raises
    ------
    FormatError
        The file cannot be written.
    """
    page = _render(alignments, whole_page=True)
    try:
        with atomic_write(path) as file:
            file.write(page.encode())
    except OSError as error:
        rule = "must name a file that can be written"
        raise FormatError("path", rule, got=os.fspath(path), remedy=str(error.strerror)) from error


def _render(alignments: Sequence[Alignment], *, whole_page: bool) -> str:
    require_modules("app", "jinja2")
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("keywise.alignment").joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    matrices = [_make_cells(alignment) for alignment in alignments]
    return template.render(matrices=matrices, whole_page=whole_page)


def _make_cells(alignment: Alignment) -> dict[str, Any]:
    linked = set(alignment.links)
    rows = [
        {
            "word": replace_controls(word),
            "null": float(alignment.null[target]),
            "cells": [
                {
                    "word": replace_controls(alignment.source[source]),
                    "score": float(np.clip(alignment.scores[target, source], 0, 1)),
                    "is_link": (source, target) in linked,
                }
                for source in range(len(alignment.source))
            ],
        }
        for target, word in enumerate(alignment.target)
    ]
    return {
        "source": [replace_controls(word) for word in alignment.source],
        "rows": rows,
        "tuned_on": alignment.heads.tuned_on,
    }
