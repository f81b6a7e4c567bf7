"""Maps of recorded statistics by layer and head, as HTML that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.errors import FormatError, OptionError
from keywise.hf.layer_stats import LayerStats, get_statistic
from keywise.util.atomic_write import atomic_write

# A statistic of each query, its title, and what a cell of deep blue means.
_MAPS: Final = (
    ("entropy", "Entropy", "nats; deeper blue: attention is spread over many keys"),
    ("top_mass", "Mass of the top keys", "share; deeper blue: few keys receive nearly all attention"),
)
_STYLE: Final = """
.keywise-map { border-collapse: collapse; font: 12px system-ui, sans-serif; margin: 0.5em 0 1.5em; }
.keywise-map caption { text-align: left; padding-bottom: 0.4em; }
.keywise-map th { font-weight: normal; text-align: right; padding: 1px 6px; }
.keywise-map td { min-width: 2.6em; text-align: center; padding: 2px 4px; border: 1px solid rgba(128, 128, 128, 0.3); }
"""
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Attention by layer and head</title>
<style>:root {{ color-scheme: light dark; }} body {{ margin: 2em; }}</style>
</head>
<body>
<h1>Attention by layer and head</h1>
{maps}
</body>
</html>
"""


def write_page(record: Sequence[LayerStats], path: str | os.PathLike[str]) -> None:
    """Write a page with the maps of a record.

    Parameters
    ----------
    record : sequence of LayerStats
        The recorded calls.
    path : path
        The file to write or replace.

    Raises
    ------
    FormatError
        The file cannot be written.
    OptionError
        Nothing was recorded.
    """
    if not len(record):
        raise OptionError("record", "must hold a call", got=record, remedy="run the model inside record_stats")
    try:
        with atomic_write(path) as file:
            file.write(_PAGE.format(maps=draw_maps(record)).encode())
    except OSError as error:
        rule = "must name a file that can be written"
        raise FormatError("path", rule, got=os.fspath(path), remedy=str(error.strerror or error)) from error


def draw_maps(record: Sequence[LayerStats]) -> str:
    """Return a table per statistic and kind of attention, with a row per layer and a column per head.

    A cell is the mean over steps, batch items and queries. With a key mass, a last table has the share of the first
    key, the attention sink of many models.

    Parameters
    ----------
    record : sequence of LayerStats
        The recorded calls.
    """
    tables = [f"<style>{_STYLE}</style><p>{escape(repr(record))}</p>"]
    for kind in dict.fromkeys(call.kind for call in record):
        calls = [call for call in record if call.kind == kind]
        for name, title, unit in _MAPS:
            values = {id(call): get_statistic(call, name).mean(axis=(0, 2)) for call in calls}
            tables.append(_draw_table(f"{title}, {kind}-attention ({unit})", calls, values))
        with_mass = [call for call in calls if call.stats.key_mass is not None]
        if with_mass:
            values = {id(call): _find_first_share(call) for call in with_mass}
            caption = f"Share of the first key, {kind}-attention (deeper blue: an attention sink)"
            tables.append(_draw_table(caption, with_mass, values))
    return "".join(tables)


def _find_first_share(call: LayerStats) -> NDArray[Any]:
    mass = get_statistic(call, "key_mass").sum(axis=0)
    total = np.maximum(mass.sum(axis=1), np.finfo(np.float32).tiny)
    return np.asarray(mass[:, 0] / total)


def _draw_table(caption: str, calls: list[LayerStats], values: dict[int, NDArray[Any]]) -> str:
    heads = sorted({head for call in calls for head in call.heads})
    rows: dict[str, dict[int, list[float]]] = {}
    for call in calls:
        cells = rows.setdefault(call.name if call.layer is None else f"layer {call.layer}", {})
        for head, value in zip(call.heads, values[id(call)], strict=True):
            cells.setdefault(head, []).append(float(value))
    means = {row: {head: float(np.mean(each)) for head, each in cells.items()} for row, cells in rows.items()}
    finite = [value for row_means in means.values() for value in row_means.values() if np.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    lines = [f'<table class="keywise-map"><caption>{escape(caption)}</caption><tr><th></th>']
    lines += [f'<th scope="col">head {head}</th>' for head in heads]
    for row, shown in means.items():
        lines.append(f'</tr><tr><th scope="row">{escape(row)}</th>')
        lines += [_draw_cell(shown.get(head), low, high) for head in heads]
    return "".join([*lines, "</tr></table>"])


def _draw_cell(value: float | None, low: float, high: float) -> str:
    if value is None:
        return "<td></td>"
    darkness = (value - low) / (high - low) if high > low and np.isfinite(value) else 0.0
    return f'<td style="background: rgba(66, 120, 200, {0.75 * darkness:.3f})">{value:.2f}</td>'
