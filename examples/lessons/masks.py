"""Masks: what a query may see. What is hidden never leaks, whatever stands there."""

# %% One head, ten tokens, and four masks.
import numpy as np
from pictures import grid, panels, save

import keywise as kw

random = np.random.default_rng(3)
count = 10
query, key, value = random.normal(size=(3, 1, 1, count, 16)).astype(np.float32)
places = np.arange(count)
before = places <= places[:, None]  # a key at or before the query
packed = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
masks = {
    "causal: no look ahead": (kw.Mask(causal=True), before),
    "right padding: 7 real keys": (kw.Mask(lengths=[7]), (places < 7) & np.ones_like(before)),
    "left padding: 3 keys hidden": (kw.Mask(causal=True, starts=[3]), before & (places >= 3)),
    "three packed documents": (
        kw.Mask(causal=True, documents=packed[None]),
        before & (packed == packed[:, None]),
    ),
}

# %% Hidden keys get no weight at all; the others share it: every row that sees a key sums to 1.
figure, axes = panels(1, 4, width=11, height=3.2)
for axis, (title, (mask, visible)) in zip(axes, masks.items(), strict=True):
    stats = kw.attention_stats(query, key, value, mask=mask, segment_ids=places)
    weights = stats.segment_mass[0, 0]
    assert (weights[~visible] == 0).all()
    assert np.allclose(weights.sum(axis=1), visible.any(axis=1))
    grid(axis, weights, title, visible=visible)
    axis.set(xticks=[], yticks=[])
    axis.label_outer()

    # Keys that nobody sees may hold anything, NaN too: not one bit of the output moves.
    unseen = ~visible.any(axis=0)
    spoilt_key, spoilt_value = key.copy(), value.copy()
    spoilt_key[:, :, unseen] = spoilt_value[:, :, unseen] = np.nan
    assert np.array_equal(kw.attend(query, spoilt_key, spoilt_value, mask=mask), stats.output)

# %% A token of the future may change as it likes: the rows before it stay as they are.
other_key, other_value = key.copy(), value.copy()
other_key[:, :, 6:], other_value[:, :, 6:] = 99, np.nan
causal = kw.Mask(causal=True)
now, then = (kw.attend(query, k, v, mask=causal) for k, v in ((other_key, other_value), (key, value)))
assert np.array_equal(now[:, :, :6], then[:, :, :6])
assert not np.array_equal(now[:, :, 6:], then[:, :, 6:])

# %% Fewer queries than keys: they are the last ones (lower right), as in decoding.
last = kw.attend(query[:, :, -2:], key, value, mask=causal)
assert np.allclose(last, then[:, :, -2:], atol=1e-6)

# %%
save(figure)
