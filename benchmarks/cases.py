"""The attention problems that are timed, in named groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Case:
    """One attention problem; its last query stands at its last key.

    Attributes
    ----------
    dtype
        Name of the element type.
    batch, query_heads, key_heads, queries, keys, head_dim
        The shape: query [batch, query_heads, queries, head_dim], key and value [batch, key_heads, keys, head_dim].
    causal
        Whether query i sees only the keys up to keys - queries + i.
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
        """Name of the case in tables."""
        heads = f"H={self.query_heads}/{self.key_heads}"
        return f"{self.mask_name} {self.dtype} B={self.batch} {heads} Q={self.queries} N={self.keys} D={self.head_dim}"

    @property
    def mask_name(self) -> str:
        """``"full"``, ``"causal"`` or ``"window"`` with its length."""
        if not self.causal:
            return "full"
        return "causal" if self.window is None else f"window {self.window}"

    @property
    def has_grouped_heads(self) -> bool:
        """Whether several query heads share a key head."""
        return self.query_heads != self.key_heads

    @property
    def has_hidden_keys(self) -> bool:
        """Whether some query does not see some key."""
        return self.causal and (self.queries > 1 or self.window is not None)

    @property
    def is_square_causal(self) -> bool:
        """Whether `is_causal`, aligned to the upper left as in torch, describes the mask."""
        return self.causal and self.queries == self.keys and self.window is None

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products, over visible keys only."""
        hidden = self.queries * (self.queries - 1) // 2 if self.causal else 0
        if self.window is not None:
            # The last query misses the most keys of the past, each query before it one fewer, down to none.
            most = self.keys - self.window
            least = max(most - self.queries + 1, 1)
            hidden += (most + least) * (most - least + 1) // 2 if most > 0 else 0
        return 4 * self.batch * self.query_heads * (self.queries * self.keys - hidden) * self.head_dim

    @property
    def key_value_bytes(self) -> int:
        """Size of keys and values, counted once per key head."""
        return 2 * self.batch * self.key_heads * self.keys * self.head_dim * ELEMENT_BYTES[self.dtype]

    @property
    def weights_bytes(self) -> int:
        """Size of all attention weights in float32."""
        return 4 * self.batch * self.query_heads * self.queries * self.keys


def sample_cases(count: int, seed: int = 0) -> list[Case]:
    """Sample random problems, no two alike and each small enough to be quick.

    Parameters
    ----------
    count
        Number of cases.
    seed
        Seed of the random numbers; the same seed samples the same cases.

    Examples
    --------
    >>> from benchmarks.cases import sample_cases
    >>> len(set(sample_cases(200)))
    200
    """
    random = np.random.default_rng(seed)
    cases: dict[Case, None] = {}
    while len(cases) < count:
        heads_per_key_head = int(random.choice([1, 1, 2, 3, 4, 7, 8]))
        key_heads = int(random.choice([1, 2, 3, 4, 8, 12]))
        keys = int(2 ** random.uniform(0, 13))
        kind = str(random.choice(["decoding", "few queries", "prefill"]))
        # The order of the random numbers fixes the cases of committed results.
        queries = {"decoding": 1, "few queries": min(keys, int(2 ** random.uniform(1, 7))), "prefill": keys}[kind]
        dtype = str(random.choice(list(ELEMENT_BYTES)))
        head_dim = int(random.choice([32, 64, 80, 96, 128, 256]))
        batch = int(random.choice([1, 1, 1, 2, 4, 16]))
        causal = bool(random.integers(2))
        case = Case(dtype, batch, heads_per_key_head * key_heads, key_heads, queries, keys, head_dim, causal)
        if case.operations < 2e10 and case.key_value_bytes < 2**28:
            cases[case] = None
    return list(cases)


@dataclass(frozen=True)
class Group:
    """Cases that belong together.

    Attributes
    ----------
    description
        The cases in a line.
    cases
        The cases.
    backends
        Names of the backends that are timed; empty for all.
    target
        The target that keywise uses, and the instructions torch is restricted to; None for the best.
    seconds
        Time for the rounds of one case.
    """

    description: str
    cases: tuple[Case, ...]
    backends: tuple[str, ...] = ()
    target: str | None = None
    seconds: float = 10.0


def _make_prefill(dtype: str, *, causal: bool, lengths: tuple[int, ...] = (2048, 8192)) -> tuple[Case, ...]:
    return tuple(Case(dtype, 1, 8, 8, length, length, dim, causal) for length in lengths for dim in (64, 128))


def _make_grouped_prefill(dtype: str) -> tuple[Case, ...]:
    return tuple(Case(dtype, 1, 9, 3, length, length, 64, causal=True) for length in (2048, 8192))


def _make_decode(*lengths: int) -> tuple[Case, ...]:
    shapes = (("float32", 8, 8, 64), ("float32", 32, 8, 128), ("bfloat16", 32, 8, 128), ("bfloat16", 9, 3, 64))
    return tuple(
        Case(dtype, 1, heads, key_heads, 1, length, dim, causal=True)
        for length in lengths
        for dtype, heads, key_heads, dim in shapes
    )


def _make_windows() -> Iterator[Case]:
    for dtype, heads, key_heads, dim, window in (
        ("float32", 8, 8, 64, 512),
        ("float32", 32, 8, 128, 1024),
        ("bfloat16", 8, 8, 64, 512),
        ("bfloat16", 9, 3, 64, 512),
    ):
        yield Case(dtype, 1, heads, key_heads, 8192, 8192, dim, causal=True, window=window)


def _make_few_queries() -> Iterator[Case]:
    for dtype in ("float32", "bfloat16"):
        for heads, key_heads, causal in ((8, 8, False), (9, 3, True)):
            for queries in (4, 16, 64):
                yield Case(dtype, 1, heads, key_heads, queries, 8192, 64, causal)


_LENGTHS = tuple(2**power for power in range(7, 14))

GROUPS = {
    "prefill-fp32-full": Group("whole texts in float32, every key visible", _make_prefill("float32", causal=False)),
    "prefill-fp32-causal": Group(
        "whole texts in float32, causal, some with grouped heads",
        _make_prefill("float32", causal=True) + _make_grouped_prefill("float32"),
    ),
    "prefill-bf16": Group(
        "whole texts in bfloat16, full and causal",
        _make_prefill("bfloat16", causal=False)
        + _make_prefill("bfloat16", causal=True)
        + _make_grouped_prefill("bfloat16"),
    ),
    "windows": Group("whole texts through a sliding window", tuple(_make_windows())),
    "decode": Group("one new token after many", _make_decode(8192, 32768)),
    "few-queries": Group("a question, or a few guessed tokens, after many", tuple(_make_few_queries())),
    "short": Group(
        "sentences as an encoder sees them, alone and 32 at a time",
        tuple(Case("float32", batch, 12, 12, length, length, 64) for batch in (1, 32) for length in (16, 64, 128)),
    ),
    "small": Group(
        "one query over 128 keys: mostly the cost of the call itself",
        tuple(Case(dtype, 1, 8, 8, 1, 128, 64) for dtype in ("float32", "bfloat16")),
    ),
    "statistics": Group(
        "attention statistics, against storing the weights",
        _make_prefill("float32", causal=True, lengths=(2048,))
        + _make_prefill("bfloat16", causal=True, lengths=(2048,))
        + _make_decode(8192),
        backends=("keywise", "keywise with statistics", "torch eager"),
    ),
    "avx2": Group(
        "whole texts in float32 on the AVX2 target, torch restricted to AVX2 too",
        _make_prefill("float32", causal=False, lengths=(2048,))
        + _make_prefill("float32", causal=True, lengths=(2048,)),
        backends=("keywise", "keywise with statistics", "torch", "torch eager"),
        target="avx2",
    ),
    "lengths": Group(
        "one shape at many lengths, for the plot",
        tuple(Case("float32", 1, 8, 8, length, length, 64, causal=True) for length in _LENGTHS)
        + tuple(Case("float32", 1, 32, 8, 1, 4 * length, 128, causal=True) for length in _LENGTHS),
    ),
    "sweep": Group(
        "random problems against torch; the table lists where torch is faster",
        tuple(sample_cases(240)),
        ("keywise", "torch"),
        seconds=0.3,
    ),
}
"""Every group under its name."""
