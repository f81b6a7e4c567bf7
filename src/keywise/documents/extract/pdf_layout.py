"""Reading order of a PDF page: columns, and what stands across them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Final

import numpy as np

from keywise.documents.extract.pdf_words import Fragment, group_lines

MAX_COLUMN_DEPTH: Final = 3
MIN_COLUMN_LINES: Final = 3
MIN_COLUMN_WORDS: Final = 3
MAX_CROSSING_SHARE: Final = 0.4
# Lines at the top and at the bottom of a page that may be a running header or footer.
EDGE_LINES: Final = 2
MIN_CELLS: Final = 3
MAX_CELL_WORDS: Final = 4
MIN_TABLE_SHARE: Final = 0.6
MIN_LINE_NUMBERS: Final = 8
MIN_NUMBERED_SHARE: Final = 0.7
_LINE_NUMBER: Final = re.compile(r"\d{1,3}")
# As shares of the font's size: narrower columns are those of a table.
MIN_COLUMN_WIDTH: Final = 13.0
EDGE_TOLERANCE_POINTS: Final = 6.0
_PAGE_NUMBER: Final = re.compile(
    r"\W*(?:(?:page|seite|p\.|s\.)\s*)?(?:\d{1,5}|[ivxlc]{1,8})(?:\s*(?:of|von|/)\s*\d{1,4})?\W*\Z", re.IGNORECASE
)


def find_columns(fragments: Sequence[Fragment], depth: int = 0) -> list[list[Fragment]]:
    """Return the fragments of a page in groups of one column each, in reading order.

    A gutter is a line from top to bottom that few fragments cross, with running text on both sides. Those that cross it
    divide the page; above and below them the left column comes first.

    Parameters
    ----------
    fragments
        The fragments.
    depth
        Number of gutters around them.
    """
    gutter = _find_gutter(fragments) if depth < MAX_COLUMN_DEPTH else None
    if gutter is None:
        return [list(fragments)] if fragments else []
    columns: list[list[Fragment]] = []
    band: list[Fragment] = []
    across: list[Fragment] = []
    for fragment in sorted(fragments, key=lambda each: (-each.baseline, each.left)):
        if fragment.left < gutter < fragment.right:
            columns += _read_band(band, gutter, depth)
            band = []
            across.append(fragment)
        else:
            if across:
                columns.append(across)
                across = []
            band.append(fragment)
    columns += _read_band(band, gutter, depth)
    return [*columns, across] if across else columns


def _read_band(band: Sequence[Fragment], gutter: float, depth: int) -> list[list[Fragment]]:
    left = [fragment for fragment in band if fragment.right <= gutter]
    right = [fragment for fragment in band if fragment.left >= gutter]
    return [*find_columns(left, depth + 1), *find_columns(right, depth + 1)]


def _find_gutter(fragments: Sequence[Fragment]) -> float | None:
    """Return the place between two columns of running text, or None."""
    if len(fragments) < 2 * MIN_COLUMN_LINES or _is_table(fragments):
        return None
    lefts = np.array([fragment.left for fragment in fragments])
    rights = np.array([fragment.right for fragment in fragments])
    places = np.unique(np.round(lefts, 1)) - 0.5
    crossing = ((lefts < places[:, None]) & (rights > places[:, None])).sum(axis=1)
    before = (rights <= places[:, None]).sum(axis=1)
    after = (lefts >= places[:, None]).sum(axis=1)
    scores = np.minimum(before, after) - 2.0 * crossing
    for index in np.argsort(-scores, kind="stable")[:8].tolist():
        if min(before[index], after[index]) < MIN_COLUMN_LINES:
            continue
        if crossing[index] > MAX_CROSSING_SHARE * len(fragments):
            continue
        place = float(places[index])
        sides = (
            [fragment for fragment in fragments if fragment.right <= place],
            [fragment for fragment in fragments if fragment.left >= place],
        )
        if all(_is_running_text(side) for side in sides) and _stand_beside(*sides):
            return place
    return None


def _is_table(fragments: Sequence[Fragment]) -> bool:
    """Return whether most lines consist of at least three short cells."""
    lines = group_lines(fragments)
    cells = sum(1 for line in lines if len(line) >= MIN_CELLS)
    words = sum(len(fragment.words) for fragment in fragments)
    return cells > MIN_TABLE_SHARE * len(lines) and words < MAX_CELL_WORDS * len(fragments)


def _is_running_text(fragments: Sequence[Fragment]) -> bool:
    lines = group_lines(fragments)
    if len(lines) < MIN_COLUMN_LINES:
        return False
    words = [sum(len(fragment.words) for fragment in line) for line in lines]
    left = min(fragment.left for fragment in fragments)
    width = max(fragment.right for fragment in fragments) - left
    filled = sum(1 for line in lines if line[-1].right - line[0].left > 0.6 * width)
    is_wide = width > MIN_COLUMN_WIDTH * median(fragment.size for fragment in fragments)
    return is_wide and median(words) >= MIN_COLUMN_WORDS and 3 * filled >= len(lines)


def _stand_beside(left: Sequence[Fragment], right: Sequence[Fragment]) -> bool:
    """Return whether two columns share a good part of their height."""
    top = min(max(fragment.baseline for fragment in side) for side in (left, right))
    bottom = max(min(fragment.baseline for fragment in side) for side in (left, right))
    heights = [max(s.baseline for s in side) - min(s.baseline for s in side) for side in (left, right)]
    return top - bottom > 0.3 * min(heights)


def remove_line_numbers(fragments: Sequence[Fragment]) -> list[Fragment]:
    """Return the fragments of a page without the numbers of its lines, as pleadings and manuscripts have them.

    Parameters
    ----------
    fragments
        The fragments.
    """
    lines = group_lines(fragments)
    numbered = [line for line in lines if len(line[0].words) == 1 and _LINE_NUMBER.fullmatch(line[0].words[0].text)]
    if len(numbered) < MIN_LINE_NUMBERS or len(numbered) < MIN_NUMBERED_SHARE * len(lines):
        return list(fragments)
    edge = median(line[0].right for line in numbered)
    numbered = [line for line in numbered if abs(line[0].right - edge) < line[0].size]
    values = [int(line[0].words[0].text) for line in numbered]
    rising = sum(1 for value, following in itertools.pairwise(values) if following == value + 1)
    # The rows of a table have more cells.
    if rising < len(numbered) - 2 or median(map(len, numbered)) > 2:
        return list(fragments)
    numbers = {id(line[0]) for line in numbered}
    return [fragment for fragment in fragments if id(fragment) not in numbers]


def remove_running_lines(pages: Sequence[list[Fragment]]) -> list[list[Fragment]]:
    """Return the fragments of the pages without running headers, footers and page numbers.

    A line at the edge of the page runs if it stands at the same height of another page with the same words; numbers
    count as equal.

    Parameters
    ----------
    pages
        The fragments of each page.
    """
    if len(pages) < 2:
        return [list(fragments) for fragments in pages]
    edges = [_find_edge_lines(fragments) for fragments in pages]
    counts: Counter[tuple[str, int]] = Counter()
    for lines in edges:
        counts.update({key for line in lines for key in _make_keys(line)})
    kept: list[list[Fragment]] = []
    for fragments, lines in zip(pages, edges, strict=True):
        running: set[int] = set()
        for line in lines:
            text = " ".join(fragment.text for fragment in line)
            if any(counts[key] > 1 for key in _make_keys(line)) or _PAGE_NUMBER.match(text):
                running.update(id(fragment) for fragment in line)
        kept.append([fragment for fragment in fragments if id(fragment) not in running])
    return kept


def _find_edge_lines(fragments: Sequence[Fragment]) -> list[list[Fragment]]:
    lines = group_lines(fragments)
    if len(lines) <= 2 * EDGE_LINES:
        return lines[:1] + lines[1:][-1:]
    return lines[:EDGE_LINES] + lines[-EDGE_LINES:]


def _make_keys(line: Sequence[Fragment]) -> list[tuple[str, int]]:
    """Return the words of a line with its height, rounded up and down so that near heights share a key."""
    text = re.sub(r"\d+", "#", " ".join(fragment.text for fragment in line).lower())
    place = line[0].baseline / EDGE_TOLERANCE_POINTS
    return [(text, int(place)), (text, int(place + 0.5) + 1_000_000)]
