"""Troubleshooting: what is wrong with attention shows in its readings. Six symptoms, side by side with health."""

# %% A healthy head: what is near matters more, some keys matter more, nobody looks ahead.
import numpy as np
from pictures import grid, panels, save

import keywise as kw

random = np.random.default_rng(6)
count, half = 14, 32
places = np.arange(count)
content = random.normal(size=(3, 1, 1, count, half)).astype(np.float32)
speeds = np.geomspace(1, 1 / 16, half // 2)


def vectors(content, places):
    """Put content and place side by side: the closer two places, the larger the product of their halves."""
    angles = places[:, None] * speeds
    place = 1.4 * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)[None, None]
    return np.concatenate([content, place], axis=3).astype(np.float32)


query, key, value = (vectors(part, places) for part in content)


def read(query=query, key=key, **options):
    """Attend with one thing changed."""
    return kw.attention_stats(query, key, value, **{"mask": kw.Mask(causal=True), "segment_ids": places, **options})


# %% One mistake at a time.
records = {
    "healthy": read(),
    "keys collapsed": read(key=np.repeat(key[:, :, :1], count, axis=2)),
    "scale forgotten": read(scale=1),
    "scale applied twice": read(scale=1 / (2 * half)),
    "causal mask lost": read(mask=None),
    "position off by six": read(query=vectors(content[0], places - 6)),
}
visible = {name: np.tri(count, dtype=bool) for name in records} | {"causal mask lost": np.ones((count, count), bool)}
most = np.log(places + 1).mean()  # the mean entropy of causal rows that cannot choose


def flatness(name):
    """Give mean entropy as a part of what it could be: 1 = no choice, 0 = one key takes all."""
    return float(records[name].entropy.mean() / most)


def ahead(name):
    """Give the mean weight on keys after the query's own position."""
    return float(np.triu(records[name].segment_mass[0, 0], 1).sum() / count)


def reach(name):
    """Give how far before itself a query looks, on average over rows and weights."""
    weights = records[name].segment_mass[0, 0]
    return float((weights * (places[:, None] - places)).sum() / count)


# %% Each symptom has a number of its own.
assert 0.5 < flatness("healthy") < 0.9
assert ahead("healthy") == 0
assert np.isclose(flatness("keys collapsed"), 1)
assert flatness("scale forgotten") < 0.3
assert flatness("scale applied twice") > 0.97
assert ahead("causal mask lost") > 0.2
assert reach("position off by six") > 1.5 * reach("healthy")

# %%
said = {
    "healthy": f"entropy {flatness('healthy'):.0%} of ln n",
    "keys collapsed": f"entropy {flatness('keys collapsed'):.0%}: every weight 1/n",
    "scale forgotten": f"entropy {flatness('scale forgotten'):.0%}: one key takes all",
    "scale applied twice": f"entropy {flatness('scale applied twice'):.0%}: hardly a choice",
    "causal mask lost": f"{ahead('causal mask lost'):.0%} of the weight looks ahead",
    "position off by six": f"looks {reach('position off by six'):.1f} keys back, not {reach('healthy'):.1f}",
}
figure, axes = panels(2, 3, width=9, height=6.6)
for axis, (name, stats) in zip(axes.flat, records.items(), strict=True):
    grid(axis, stats.segment_mass[0, 0], f"{name}\n{said[name]}", visible=visible[name])
    axis.set(xticks=[], yticks=[])
    axis.label_outer()
save(figure)
