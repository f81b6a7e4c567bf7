"""A sliding window limits a query to near keys, and a cache needs only those."""

# %% Make twelve tokens; each sees itself and the three keys before it.
import numpy as np
from pictures import BLUE, RED, draw_grid, panels, save

import keywise as kw

random = np.random.default_rng(2)
count, left = 12, 3
query, key, value = random.normal(size=(3, 1, 1, count, 16)).astype(np.float32)
distance = np.arange(count)[:, None] - np.arange(count)
in_window = (distance >= 0) & (distance <= left)

window = kw.Mask(causal=True, window=(left, None))
windowed = kw.attention_stats(query, key, value, mask=window, segment_ids=np.arange(count)).segment_mass[0, 0]
assert ((windowed > 0) == in_window).all()

# %% The first keys are often attention sinks. `keep_first` keeps them visible.
visible = in_window | ((distance >= 0) & (np.arange(count) < 2))
keep_first = kw.Mask(causal=True, window=(left, None), keep_first=2)
with_first = kw.attention_stats(query, key, value, mask=keep_first, segment_ids=np.arange(count)).segment_mass[0, 0]
assert ((with_first > 0) == visible).all()

# %% A cache with a window drops keys that no later query sees. Its outputs are those of the full cache.
steps, window_keys = 120, 32
long_query, long_key, long_value = random.normal(size=(3, 1, 1, steps, 16)).astype(np.float32)
windowed_cache, full_cache = kw.KVCache(layers=1, windows=[window_keys - 1]), kw.KVCache(layers=1)
cached_keys = []
for step in range(steps):
    token = slice(step, step + 1)
    for cache in (windowed_cache, full_cache):
        cache.append(0, long_key[:, :, token], long_value[:, :, token])
    window_mask = kw.Mask(window=(window_keys - 1, None))
    outputs = (
        windowed_cache.attend(0, long_query[:, :, token]),
        full_cache.attend(0, long_query[:, :, token], mask=window_mask),
    )
    assert np.allclose(*outputs, atol=1e-6)
    cached_keys.append([cache.tokens(0) - cache.first_key(0) for cache in (full_cache, windowed_cache)])
cached_keys = np.array(cached_keys)
assert cached_keys[-1, 0] == steps
assert cached_keys[-1, 1] <= window_keys

# %%
figure, (window_axis, first_axis, cache_axis) = panels(1, 3, width=11, height=3.5, width_ratios=[1, 1, 1.25])
draw_grid(window_axis, windowed, "window=(3, None): itself and 3 before", visible=in_window)
draw_grid(first_axis, with_first, "… and the first two keys, always", visible=visible)
for axis in (window_axis, first_axis):
    axis.set(xticks=[], yticks=[])
first_axis.set_ylabel("")
for column, colour, label in ((0, BLUE, "no window"), (1, RED, "a window of 32 keys")):
    cache_axis.plot(np.arange(1, steps + 1), cached_keys[:, column], color=colour, linewidth=2.5)
    cache_axis.annotate(
        label, (steps, cached_keys[-1, column]), (0, 7), textcoords="offset points", color=colour, ha="right"
    )
cache_axis.set(xlabel="tokens so far", ylabel="keys in the cache", xlim=(0, steps), ylim=(0, steps * 1.1))
cache_axis.set_title("Keys in the cache")
save(figure)
