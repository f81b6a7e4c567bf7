"""Statistics of one attention call: which keys received the attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np

from keywise.errors import OptionError, ShapeError
from keywise.util.checks import check_int


class HeavyKey(NamedTuple):
    """A key, its mass and its share of all mass.

    Attributes
    ----------
    key
        Position of the key.
    label
        Its label, or ''.
    mass
        Weights summed over heads and queries.
    share
        Mass of the key as a share of all keys' mass.
    """

    key: int
    label: str
    mass: float
    share: float


@dataclass(frozen=True, eq=False)
class AttentionStats:
    """Output of attention, and statistics of which keys received it.

    Memory is linear in the number of tokens. Arrays are in the query's library (NumPy, torch, ...); all but `output`
    are float32, keys are int32. A query that may see no key has output 0, lse -inf, entropy 0, no top keys, and is
    counted nowhere. A query that sees a score of NaN or inf has NaN in place of numbers and no top keys; so has the key
    mass of every key that it sees.

    Attributes
    ----------
    output : [B, Hq, Q, Dv]
        As `attend` returns it.
    lse : [B, Hq, Q]
        Log-sum-exp of the scores in nats, sinks included.
    entropy : [B, Hq, Q]
        -sum w ln w over the keys, in nats.
    top_keys, top_weights : [B, Hq, Q, top_k]
        The heaviest keys and their weights, ties to the lower key; queries with fewer keys end in key -1, weight 0.
        A `top_k` above 64 is limited to the number of keys.
    top_mass : [B, Hq, Q]
        Sum of `top_weights`.
    key_mass : [B, Hq, N] or None
        Sum over the queries of query weight x weight.
    segment_mass : [B, Hq, Q, S] or None
        Weight per segment, when segments were passed.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> key = np.eye(4, dtype=np.float32)[None, None] * 9
    >>> kw.attention_stats(key[:, :, :1], key, key, top_k=1).top_keys.item()
    0
    """

    output: Any
    lse: Any
    entropy: Any
    top_keys: Any
    top_weights: Any
    top_mass: Any
    key_mass: Any = None
    segment_mass: Any = None

    def heaviest(self, *, labels: Sequence[str] | None = None, item: int = 0, count: int = 10) -> list[HeavyKey]:
        """Return the keys with most mass in one batch item, summed over heads.

        Parameters
        ----------
        labels : sequence of str, optional
            A label per key, for example its token.
        item : int
            Batch item.
        count : int
            Number of keys.

        Returns
        -------
        list of HeavyKey
            Heaviest first, ties to the lower key.

        Raises
        ------
        OptionError
            There is no key mass, no such item, or the count is below 1.
        DtypeError
            The item or the count is not an integer.
        ShapeError
            There is not one label per key.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> key = np.eye(2, dtype=np.float32)[None, None] * 9
        >>> kw.attention_stats(key[:, :, :1], key, key).heaviest(labels=["cat", "dog"])[0].label
        'cat'
        """
        if self.key_mass is None:
            raise OptionError("key_mass", "must have been computed", remedy="compute the statistics with key_mass=True")
        check_int("item", item, minimum=0, maximum=self.key_mass.shape[0] - 1)
        check_int("count", count, minimum=1)
        mass = np.asarray(self.key_mass[item], np.float64).sum(axis=0)
        if labels is not None and len(labels) != mass.size:
            raise ShapeError("labels", f"must have one entry per key, {mass.size}, got {len(labels)}")
        total = mass.sum() or 1.0
        heavy_keys = []
        for key in np.argsort(-mass, kind="stable")[:count]:
            label = "" if labels is None else labels[key]
            heavy_keys.append(HeavyKey(int(key), label, mass[key], mass[key] / total))
        return heavy_keys

    def table(self, *, labels: Sequence[str] | None = None, item: int = 0, count: int = 10) -> str:
        """Return the heaviest keys of one batch item as a text table.

        Parameters
        ----------
        labels, item, count
            As in `heaviest`, with the same errors.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> key = np.eye(2, dtype=np.float32)[None, None] * 9
        >>> print(kw.attention_stats(key[:, :, :1], key, key).table(labels=["cat", "dog"], count=1))
          key  label        mass   share
            0  cat        1.0000  100.0%
        """
        rows = self.heaviest(labels=labels, item=item, count=count)
        width = max([8, *(len(repr(label)) - 2 for _, label, _, _ in rows)])
        lines = [f"  key  {'label':<{width}} {'mass':>8}  {'share':>6}"]
        for key, label, mass, share in rows:
            lines.append(f"{key:>5}  {repr(label)[1:-1]:<{width}} {mass:>8.4f}  {share:>6.1%}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"AttentionStats(lse {tuple(self.lse.shape)}, top_k {self.top_keys.shape[-1]})"

    def _repr_html_(self) -> str:
        heavy_keys = [] if self.key_mass is None else self.heaviest()
        cells = "".join(
            f"<tr><td>{key}</td><td>{mass:.4f}</td><td>{share:.1%}</td>"
            f"<td><div style='background:#3b82f6;height:.8em;width:{max(share, 0) * 20:.2f}em'></div></td></tr>"
            for key, _, mass, share in heavy_keys
        )
        title = escape(repr(self))
        return f"<table><caption>{title}</caption><tr><th>key<th>mass<th>share<th></tr>{cells}</table>"
