"""Windows of keys: a query sees the keys close to it, and a cache may forget the rest."""

# %% Twelve tokens; each sees itself and the three keys before it.
import numpy as np
from pictures import BLUE, RED, grid, panels, save

import keywise as kw

random = np.random.default_rng(2)
count, left = 12, 3
query, key, value = random.normal(size=(3, 1, 1, count, 16)).astype(np.float32)
distance = np.arange(count)[:, None] - np.arange(count)
near = (distance >= 0) & (distance <= left)

window = kw.Mask(causal=True, window=(left, None))
windowed = kw.attention_stats(query, key, value, mask=window, segment_ids=np.arange(count)).segment_mass[0, 0]
assert ((windowed > 0) == near).all()

# %% The first keys often collect weight that has nowhere else to go. They can stay visible.
kept = near | ((distance >= 0) & (np.arange(count) < 2))
first = kw.Mask(causal=True, window=(left, None), keep_first=2)
with_first = kw.attention_stats(query, key, value, mask=first, segment_ids=np.arange(count)).segment_mass[0, 0]
assert ((with_first > 0) == kept).all()

# %% A cache whose layer has a window drops what no later query sees; the outputs are those of the whole.
steps, window_keys = 120, 32
long_query, long_key, long_value = random.normal(size=(3, 1, 1, steps, 16)).astype(np.float32)
small, full = kw.KVCache(layers=1, windows=[window_keys - 1]), kw.KVCache(layers=1)
held = []
for step in range(steps):
    now = slice(step, step + 1)
    for cache in (small, full):
        cache.append(0, long_key[:, :, now], long_value[:, :, now])
    narrow = kw.Mask(window=(window_keys - 1, None))
    same = small.attend(0, long_query[:, :, now]), full.attend(0, long_query[:, :, now], mask=narrow)
    assert np.allclose(*same, atol=1e-6)
    held.append([cache.tokens(0) - cache.first_key(0) for cache in (full, small)])
held = np.array(held)
assert held[-1, 0] == steps
assert held[-1, 1] <= window_keys

# %%
figure, (a, b, c) = panels(1, 3, width=11, height=3.5, width_ratios=[1, 1, 1.25])
grid(a, windowed, "window=(3, None): itself and 3 before", visible=near)
grid(b, with_first, "… and the first two keys, always", visible=kept)
for axis in (a, b):
    axis.set(xticks=[], yticks=[])
b.set_ylabel("")
for column, colour, label in ((0, BLUE, "no window"), (1, RED, "a window of 32 keys")):
    c.plot(np.arange(1, steps + 1), held[:, column], color=colour, linewidth=2.5)
    c.annotate(label, (steps, held[-1, column]), (0, 7), textcoords="offset points", color=colour, ha="right")
c.set(xlabel="tokens so far", ylabel="keys a cache holds", xlim=(0, steps), ylim=(0, steps * 1.1))
c.set_title("What a cache must keep")
save(figure)
