"""The problems that are timed: named cases in groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Case:
    """One attention problem: query rows, the last of them at the last key, against keys.

    Attributes
    ----------
    dtype
        Name of the element type.
    batch, query_heads, key_heads, queries, keys, head_dim
        The shape: query [batch, query_heads, queries, head_dim], key and value [batch, key_heads, keys, head_dim].
    causal
        Whether query i sees the keys up to keys - queries + i only.
    window
        How many of these it sees, the last ones; None for all. Only with `causal`.

    Examples
    --------
    >>> from benchmarks.cases import Case
    >>> Case("float32", 1, 8, 8, 2, 3, 64, causal=True).name
    'causal float32 B=1 H=8/8 Q=2 N=3 D=64'
    """

    dtype: str
    batch: int
    query_heads: int
    key_heads: int
    queries: int
    keys: int
    head_dim: int
    causal: bool = False
    window: int | None = None

    @property
    def name(self) -> str:
        """What the case is called in tables."""
        kind = "full" if not self.causal else "causal" if self.window is None else f"window {self.window}"
        heads = f"H={self.query_heads}/{self.key_heads}"
        return f"{kind} {self.dtype} B={self.batch} {heads} Q={self.queries} N={self.keys} D={self.head_dim}"

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a key head."""
        return self.query_heads != self.key_heads

    @property
    def hides(self) -> bool:
        """Whether some query does not see some key."""
        return self.causal and (self.queries > 1 or self.window is not None)

    @property
    def square_causal(self) -> bool:
        """Whether causal rows start at the first key and see all keys before their own: the usual `is_causal`."""
        return self.causal and self.queries == self.keys and self.window is None

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products, over visible keys only."""
        hidden = self.queries * (self.queries - 1) // 2 if self.causal else 0
        if self.window is not None:  # `most` more from the last row, one less from each before it, down to none
            most = self.keys - self.window
            least = max(most - self.queries + 1, 1)
            hidden += (most + least) * (most - least + 1) // 2 if most > 0 else 0
        return 4 * self.batch * self.query_heads * (self.queries * self.keys - hidden) * self.head_dim

    @property
    def key_value_bytes(self) -> int:
        """Size of keys and values, counted once per key head."""
        return 2 * self.batch * self.key_heads * self.keys * self.head_dim * BYTES[self.dtype]

    @property
    def weights_bytes(self) -> int:
        """Size of the weights that a method storing them all needs, in float32."""
        return 4 * self.batch * self.query_heads * self.queries * self.keys


def sweep(count: int, seed: int = 0) -> list[Case]:
    """Draw random problems, no two alike, from one row to thousands, small enough to run all of them.

    Parameters
    ----------
    count
        Number of cases.
    seed
        The same number draws the same cases.

    Examples
    --------
    >>> from benchmarks.cases import sweep
    >>> len(set(sweep(200)))
    200
    """
    random = np.random.default_rng(seed)
    found: dict[Case, None] = {}
    while len(found) < count:
        group, key_heads = int(random.choice([1, 1, 2, 3, 4, 7, 8])), int(random.choice([1, 2, 3, 4, 8, 12]))
        keys = int(2 ** random.uniform(0, 13))
        kind = random.choice(["decoding", "few rows", "prefill"])
        queries = {"decoding": 1, "few rows": min(keys, int(2 ** random.uniform(1, 7))), "prefill": keys}[str(kind)]
        dtype = str(random.choice(list(BYTES)))
        head_dim = int(random.choice([32, 64, 80, 96, 128, 256]))
        batch = int(random.choice([1, 1, 1, 2, 4, 16]))
        case = Case(dtype, batch, group * key_heads, key_heads, queries, keys, head_dim, bool(random.integers(2)))
        if case.operations < 2e10 and case.key_value_bytes < 2**28:
            found[case] = None
    return list(found)


@dataclass(frozen=True)
class Group:
    """Cases that belong together.

    Attributes
    ----------
    what
        What they are, in a line.
    cases
        The cases.
    rivals
        Who takes part; empty for all.
    target
        The target that keywise is held to, and torch to the like of; None for the best.
    seconds
        Time for the rounds of one case.
    """

    what: str
    cases: tuple[Case, ...]
    rivals: tuple[str, ...] = ()
    target: str | None = None
    seconds: float = 10.0


def _prefill(dtype: str, *, causal: bool, lengths: tuple[int, ...] = (2048, 8192)) -> tuple[Case, ...]:
    return tuple(Case(dtype, 1, 8, 8, length, length, dim, causal) for length in lengths for dim in (64, 128))


def _grouped_prefill(dtype: str) -> tuple[Case, ...]:
    return tuple(Case(dtype, 1, 9, 3, length, length, 64, causal=True) for length in (2048, 8192))


def _decode(*lengths: int) -> tuple[Case, ...]:
    shapes = (("float32", 8, 8, 64), ("float32", 32, 8, 128), ("bfloat16", 32, 8, 128), ("bfloat16", 9, 3, 64))
    return tuple(
        Case(dtype, 1, heads, key_heads, 1, length, dim, causal=True)
        for length in lengths
        for dtype, heads, key_heads, dim in shapes
    )


def _windows() -> Iterator[Case]:
    for dtype, heads, key_heads, dim, window in (
        ("float32", 8, 8, 64, 512),
        ("float32", 32, 8, 128, 1024),
        ("bfloat16", 8, 8, 64, 512),
        ("bfloat16", 9, 3, 64, 512),
    ):
        yield Case(dtype, 1, heads, key_heads, 8192, 8192, dim, causal=True, window=window)


def _few_rows() -> Iterator[Case]:
    for dtype in ("float32", "bfloat16"):
        for heads, key_heads, causal in ((8, 8, False), (9, 3, True)):
            for queries in (4, 16, 64):
                yield Case(dtype, 1, heads, key_heads, queries, 8192, 64, causal)


_LENGTHS = tuple(2**power for power in range(7, 14))

GROUPS = {
    "prefill-fp32-full": Group("whole texts in float32, every key seen", _prefill("float32", causal=False)),
    "prefill-fp32-causal": Group(
        "whole texts in float32, causal, one with grouped heads",
        _prefill("float32", causal=True) + _grouped_prefill("float32"),
    ),
    "prefill-bf16": Group(
        "whole texts in bfloat16, full and causal",
        _prefill("bfloat16", causal=False) + _prefill("bfloat16", causal=True) + _grouped_prefill("bfloat16"),
    ),
    "windows": Group("whole texts through a sliding window", tuple(_windows())),
    "decode": Group("one new token after many", _decode(8192, 32768)),
    "few-rows": Group("a question, or a few guessed tokens, after many", tuple(_few_rows())),
    "short": Group(
        "sentences as an encoder sees them, alone and 32 at a time",
        tuple(Case("float32", batch, 12, 12, length, length, 64) for batch in (1, 32) for length in (16, 64, 128)),
    ),
    "readings": Group(
        "readings, against what they replace: the weights kept",
        _prefill("float32", causal=True, lengths=(2048,))
        + _prefill("bfloat16", causal=True, lengths=(2048,))
        + _decode(8192),
        rivals=("keywise", "keywise read", "torch eager"),
    ),
    "avx2": Group(
        "whole texts in float32 on the AVX2 target, torch held to AVX2 too",
        _prefill("float32", causal=False, lengths=(2048,)) + _prefill("float32", causal=True, lengths=(2048,)),
        rivals=("keywise", "keywise read", "torch", "torch eager"),
        target="avx2",
    ),
    "lengths": Group(
        "one shape at many lengths, for the plot",
        tuple(Case("float32", 1, 8, 8, length, length, 64, causal=True) for length in _LENGTHS)
        + tuple(Case("float32", 1, 32, 8, 1, 4 * length, 128, causal=True) for length in _LENGTHS),
    ),
    "sweep": Group(
        "random problems against torch; the table lists where it is faster",
        tuple(sweep(240)),
        ("keywise", "torch"),
        seconds=0.3,
    ),
}
"""Every named group."""
