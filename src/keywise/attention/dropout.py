"""Dropout of attention weights by a counter-based generator: the same mask in the forward and the backward pass.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011), Philox4x32-10.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keywise.attention.arrays import Array
from keywise.attention.native import DropoutPlan
from keywise.attention.sizes import Sizes
from keywise.errors import DtypeError, OptionError
from keywise.util.checks import check_float, check_int

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_LOW_HALF = np.uint64(0xFFFFFFFF)
_HALF_BITS = np.uint64(32)
_KEYS_PER_COUNTER = 4
_MAX_RANDOM = 2**32


class Dropout(NamedTuple):
    """Which weights are dropped: each with a probability, by a random number of its own.

    The random number depends on the seed, the offset, the batch item, the query head, the query and the key alone.
    Weights that stay are multiplied by 1 / (1 - probability). Statistics are of the weights before dropout.

    Parameters
    ----------
    probability : float
        From 0 to 1; at 1 every weight is dropped.
    seed : int
        64 bits.
    offset : int
        32 bits; another one gives another mask of the same seed.

    Examples
    --------
    >>> Dropout(0.1, seed=7).offset
    0
    """

    probability: float
    seed: int
    offset: int = 0

    @property
    def threshold(self) -> int:
        """Random numbers of 32 bits below it drop their weight."""
        return round(self.probability * _MAX_RANDOM)

    @property
    def factor(self) -> float:
        """The factor of weights that stay."""
        return 0.0 if self.probability == 1.0 else 1.0 / (1.0 - self.probability)

    @property
    def native(self) -> DropoutPlan:
        """The dropout in the form that the kernels read."""
        return DropoutPlan(self.seed, self.offset, min(self.threshold, _MAX_RANDOM - 1), self.factor)


def check_dropout(dropout: Any, sizes: Any) -> Dropout | None:
    """Return a dropout with checked fields, None for a probability of 0, or raise.

    Parameters
    ----------
    dropout
        A `Dropout`.
    sizes
        The call's sizes.

    Raises
    ------
    DtypeError, OptionError
        `dropout` is of another type, or a field is out of range.

    Examples
    --------
    >>> from keywise.attention.sizes import Sizes
    >>> sizes = Sizes(batch=1, query_heads=2, key_heads=2, queries=3, keys=5, head_dim=8, value_dim=8)
    >>> check_dropout(Dropout(0.0, seed=7), sizes) is None
    True
    """
    if not isinstance(dropout, Dropout):
        raise DtypeError("dropout", f"must be a Dropout or None, got a {type(dropout).__name__}")
    probability = check_float("dropout.probability", dropout.probability)
    if not 0.0 <= probability <= 1.0:
        raise OptionError("dropout.probability", "must be from 0 to 1", got=probability)
    seed = check_int("dropout.seed", dropout.seed, minimum=0, maximum=2**64 - 1)
    offset = check_int("dropout.offset", dropout.offset, minimum=0, maximum=2**32 - 1)
    batch, query_heads = sizes.scores[:2]
    if batch * query_heads >= _MAX_RANDOM:
        raise OptionError("dropout", f"must have at most {_MAX_RANDOM - 1} heads of all batch items together")
    return Dropout(probability, seed, offset) if probability > 0.0 else None


def compute_dropout_factors(dropout: Dropout, sizes: Sizes) -> Array:
    """Compute the factor of every weight: 0, or 1 / (1 - probability).

    Parameters
    ----------
    dropout
        Checked fields.
    sizes
        The call's sizes.

    Returns
    -------
    [B, Hq, Q, N] float64

    Examples
    --------
    >>> from keywise.attention.sizes import Sizes
    >>> sizes = Sizes(batch=1, query_heads=1, key_heads=1, queries=1, keys=4, head_dim=8, value_dim=8)
    >>> compute_dropout_factors(Dropout(0.5, seed=1), sizes).shape
    (1, 1, 1, 4)
    """
    batch, query_heads, queries, keys = sizes.scores
    counters = -(-keys // _KEYS_PER_COUNTER)
    heads = np.arange(batch * query_heads, dtype=np.uint32)[:, None, None]
    shape = (batch * query_heads, queries, counters)
    counter = [
        np.broadcast_to(word, shape)
        for word in (
            np.arange(counters, dtype=np.uint32),
            np.arange(queries, dtype=np.uint32)[:, None],
            heads,
            np.uint32(dropout.offset),
        )
    ]
    key = (np.uint32(dropout.seed & 0xFFFFFFFF), np.uint32(dropout.seed >> 32))
    random = np.stack(run_philox(counter, key), axis=-1).reshape(*shape[:2], -1)[..., :keys]
    kept = random.astype(np.uint64) >= np.uint64(dropout.threshold)
    return np.where(kept, dropout.factor, 0.0).reshape(sizes.scores)


def run_philox(counter: list[Array], key: tuple[np.uint32, np.uint32]) -> list[Array]:
    """Compute the four random numbers of every counter by Philox4x32-10.

    Parameters
    ----------
    counter
        Four arrays of uint32 of one shape.
    key
        Two numbers of 32 bits.

    Returns
    -------
    list of four uint32 arrays

    Examples
    --------
    >>> import numpy as np
    >>> zeros = [np.zeros(1, np.uint32)] * 4
    >>> [hex(int(word[0])) for word in run_philox(zeros, (np.uint32(0), np.uint32(0)))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    with np.errstate(over="ignore"):
        for _ in range(_ROUNDS):
            products = [counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]]
            low = [(product & _LOW_HALF).astype(np.uint32) for product in products]
            high = [(product >> _HALF_BITS).astype(np.uint32) for product in products]
            counter = [high[1] ^ counter[1] ^ key[0], low[1], high[0] ^ counter[3] ^ key[1], low[0]]
            key = (np.uint32(key[0] + _KEY_STEPS[0]), np.uint32(key[1] + _KEY_STEPS[1]))
    return counter
