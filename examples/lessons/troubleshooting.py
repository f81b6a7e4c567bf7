"""Attention statistics show common faults: one healthy head and five broken ones."""

# %% A healthy head: near keys have more weight, some keys have more than others, later keys have none.
import numpy as np
from pictures import draw_grid, panels, save

import keywise as kw

random = np.random.default_rng(6)
count, half = 14, 32
positions = np.arange(count)
content = random.normal(size=(3, 1, 1, count, half)).astype(np.float32)
frequencies = np.geomspace(1, 1 / 16, half // 2)


def make_vectors(content, positions):
    """Concatenate content and a position code whose product is larger for closer positions."""
    angles = positions[:, None] * frequencies
    position_code = 1.4 * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)[None, None]
    return np.concatenate([content, position_code], axis=3).astype(np.float32)


query, key, value = (make_vectors(part, positions) for part in content)


def compute_stats(query=query, key=key, **options):
    """Return the statistics with one argument changed."""
    return kw.attention_stats(query, key, value, **{"mask": kw.Mask(causal=True), "segment_ids": positions, **options})


# %% Make one fault at a time.
records = {
    "healthy": compute_stats(),
    "keys identical": compute_stats(key=np.repeat(key[:, :, :1], count, axis=2)),
    "scale omitted": compute_stats(scale=1),
    "scale applied twice": compute_stats(scale=1 / (2 * half)),
    "causal mask lost": compute_stats(mask=None),
    "position off by six": compute_stats(query=make_vectors(content[0], positions - 6)),
}
visible = {name: np.tri(count, dtype=bool) for name in records} | {"causal mask lost": np.ones((count, count), bool)}
max_entropy = np.log(positions + 1).mean()  # mean entropy of uniform weights under a causal mask


def compute_relative_entropy(name):
    """Return the mean entropy relative to uniform weights: 1 = uniform, 0 = one key has all the weight."""
    return float(records[name].entropy.mean() / max_entropy)


def compute_future_weight(name):
    """Return the mean weight on keys after the query's own position."""
    return float(np.triu(records[name].segment_mass[0, 0], 1).sum() / count)


def compute_mean_distance(name):
    """Return the mean distance from a query back to its keys, weighted."""
    weights = records[name].segment_mass[0, 0]
    return float((weights * (positions[:, None] - positions)).sum() / count)


# %% Each fault changes one of the three numbers.
assert 0.5 < compute_relative_entropy("healthy") < 0.9
assert compute_future_weight("healthy") == 0
assert np.isclose(compute_relative_entropy("keys identical"), 1)
assert compute_relative_entropy("scale omitted") < 0.3
assert compute_relative_entropy("scale applied twice") > 0.97
assert compute_future_weight("causal mask lost") > 0.2
assert compute_mean_distance("position off by six") > 1.5 * compute_mean_distance("healthy")

# %%
shifted_distance, healthy_distance = compute_mean_distance("position off by six"), compute_mean_distance("healthy")
captions = {
    "healthy": f"entropy {compute_relative_entropy('healthy'):.0%} of ln n",
    "keys identical": f"entropy {compute_relative_entropy('keys identical'):.0%}: every weight 1/n",
    "scale omitted": f"entropy {compute_relative_entropy('scale omitted'):.0%}: nearly one key",
    "scale applied twice": f"entropy {compute_relative_entropy('scale applied twice'):.0%}: nearly uniform",
    "causal mask lost": f"{compute_future_weight('causal mask lost'):.0%} of the weight on later keys",
    "position off by six": f"mean distance {shifted_distance:.1f} keys, not {healthy_distance:.1f}",
}
figure, axes = panels(2, 3, width=9, height=6.6)
for axis, (name, stats) in zip(axes.flat, records.items(), strict=True):
    draw_grid(axis, stats.segment_mass[0, 0], f"{name}\n{captions[name]}", visible=visible[name])
    axis.set(xticks=[], yticks=[])
    axis.label_outer()
save(figure)
