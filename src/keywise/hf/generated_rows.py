"""Rows of attention that were recorded while a model generates, one for each step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from keywise.hf.layer_stats import LayerStats


def group_heads(heads: Iterable[Sequence[int]]) -> dict[int, list[int]]:
    """Return the heads of each layer, for `keywise.hf.StatsSpec`.

    Parameters
    ----------
    heads : iterable of (int, int)
        Pairs of a layer and a head.

    Examples
    --------
    >>> group_heads([(3, 1), (4, 2), (3, 0)])
    {3: [1, 0], 4: [2]}
    """
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, head in heads:
        by_layer[int(layer)].append(int(head))
    return dict(by_layer)


def stack_steps(record: Iterable[LayerStats], heads: Iterable[Sequence[int]], statistic: str) -> Any:
    """Return the recorded rows of heads, one row for each step.

    Parameters
    ----------
    record : iterable of LayerStats
        Records of one query in each step: ``queries=1``.
    heads : iterable of (int, int)
        Pairs of a layer and a head.
    statistic : str
        ``"key_mass"``: the weights of the query; ``"segment_mass"``: their sums in segments.

    Returns
    -------
    tensor [B, heads, steps, keys or segments]
        Row 0 belongs to the last token of the prompt, row k to the k-th token that was generated.
    """
    import torch

    steps: dict[int, dict[int, tuple[tuple[int, ...], Any]]] = defaultdict(dict)
    for each in record:
        if each.layer is not None:
            values = getattr(each.stats, statistic)
            steps[each.layer][each.step] = (each.heads, values if values.ndim == 3 else values[:, :, -1])
    rows = []
    for layer, head in heads:
        rows.append(torch.stack([values[:, numbers.index(head)] for numbers, values in steps[layer].values()], dim=1))
    return torch.stack(rows, dim=1)


def select_beams(rows: Any, beam_indices: Any) -> Any:
    """Return the rows of the beams that were chosen in the end.

    Parameters
    ----------
    rows : tensor [B * beams, heads, steps, keys]
        Rows of every step.
    beam_indices : int tensor [B, tokens]
        The row of the batch that each token was generated from, -1 after the end; from ``generate``.

    Returns
    -------
    tensor [B, heads, steps of the longest text, keys]

    Examples
    --------
    >>> import torch
    >>> rows = torch.arange(4.0).reshape(2, 1, 2, 1)
    >>> select_beams(rows, torch.tensor([[1, 0]])).flatten().tolist()
    [2.0, 1.0]
    """
    import torch

    length = min(int((beam_indices != -1).sum(-1).max()), rows.shape[2])
    chosen = beam_indices[:, :length].clamp(min=0)
    return torch.stack([rows[chosen[:, step], :, step] for step in range(length)], dim=2)
