"""Shared parts of the lessons' pictures: style, grids of weights, and saving."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keywise.documents.report import write_text_file

# Okabe and Ito's colours stay apart for colour-blind readers.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8C8C8C"
HIDDEN = "#E4E4E4"

plt.rcParams |= {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "keywise",  # equal pictures give equal files
}


def panels(rows: int = 1, columns: int = 1, *, width: float = 8, height: float = 3.4, **options: Any) -> Any:
    """Return a figure and its axes."""
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def draw_grid(axis: Axes, weights: Any, title: str, *, visible: Any = None, max_weight: float = 1) -> None:
    """Draw weights as a grid: a row per query, a column per key, hidden keys in grey."""
    weights = np.asarray(weights)
    if visible is not None:
        weights = np.ma.masked_array(weights, ~np.asarray(visible))
    axis.set_facecolor(HIDDEN)
    # Pixels: a path per cell makes the file ten times as large.
    axis.pcolormesh(weights, cmap="Blues", vmin=0, vmax=max_weight, edgecolors="white", linewidth=0.6, rasterized=True)
    axis.set(title=title, aspect="equal", xlabel="key", ylabel="query")
    axis.invert_yaxis()
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def label_ticks(axis: Axes, queries: Sequence[str], keys: Sequence[str], *, rotation: float = 90) -> None:
    """Label queries and keys by words."""
    axis.set_yticks(np.arange(len(queries)) + 0.5, queries)
    alignment = {"ha": "right", "rotation_mode": "anchor"} if rotation < 90 else {}
    axis.set_xticks(np.arange(len(keys)) + 0.5, keys, rotation=rotation, **alignment)


def save(figure: Figure) -> None:
    """Save the lesson's picture in the folder given by ``--pictures``; do nothing in a notebook."""
    if "ipykernel" in sys.modules:
        return
    parser = argparse.ArgumentParser(description="Run this lesson and check its claims.")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="save the picture in this folder")
    folder = parser.parse_args().pictures
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None}, dpi=150)
    write_text_file(folder / f"{Path(sys.argv[0]).stem}.svg", picture.getvalue())
