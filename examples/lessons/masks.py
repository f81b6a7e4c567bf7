"""A mask says which keys a query may see. Hidden keys and values never reach the output."""

# %% Make one head, ten tokens, and four masks.
import numpy as np
from pictures import draw_grid, panels, save

import keywise as kw

random = np.random.default_rng(3)
count = 10
query, key, value = random.normal(size=(3, 1, 1, count, 16)).astype(np.float32)
positions = np.arange(count)
earlier = positions <= positions[:, None]  # a key at or before the query
packed = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
masks = {
    "causal: no look ahead": (kw.Mask(causal=True), earlier),
    "right padding: 7 real keys": (kw.Mask(lengths=[7]), (positions < 7) & np.ones_like(earlier)),
    "left padding: 3 keys hidden": (kw.Mask(causal=True, starts=[3]), earlier & (positions >= 3)),
    "three packed documents": (
        kw.Mask(causal=True, documents=packed[None]),
        earlier & (packed == packed[:, None]),
    ),
}

# %% Hidden keys have weight 0. The weights of every query that sees a key sum to 1.
figure, axes = panels(1, 4, width=11, height=3.2)
for axis, (title, (mask, visible)) in zip(axes, masks.items(), strict=True):
    stats = kw.attention_stats(query, key, value, mask=mask, segment_ids=positions)
    weights = stats.segment_mass[0, 0]
    assert (weights[~visible] == 0).all()
    assert np.allclose(weights.sum(axis=1), visible.any(axis=1))
    draw_grid(axis, weights, title, visible=visible)
    axis.set(xticks=[], yticks=[])
    axis.label_outer()

    # NaN in keys and values that no query sees does not change one bit of the output.
    hidden = ~visible.any(axis=0)
    nan_key, nan_value = key.copy(), value.copy()
    nan_key[:, :, hidden] = nan_value[:, :, hidden] = np.nan
    assert np.array_equal(kw.attend(query, nan_key, nan_value, mask=mask), stats.output)

# %% A change of later tokens does not change the outputs before them.
changed_key, changed_value = key.copy(), value.copy()
changed_key[:, :, 6:], changed_value[:, :, 6:] = 99, np.nan
causal = kw.Mask(causal=True)
changed = kw.attend(query, changed_key, changed_value, mask=causal)
original = kw.attend(query, key, value, mask=causal)
assert np.array_equal(changed[:, :, :6], original[:, :, :6])
assert not np.array_equal(changed[:, :, 6:], original[:, :, 6:])

# %% Fewer queries than keys are the last ones (lower-right alignment), as in decoding.
last_output = kw.attend(query[:, :, -2:], key, value, mask=causal)
assert np.allclose(last_output, original[:, :, -2:], atol=1e-6)

# %%
save(figure)
