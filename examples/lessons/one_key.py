"""A key is compared with the query; the result is the weight of its value."""

# %% Make five values, each with a key: a random direction in 64 dimensions.
import numpy as np
from pictures import BLUE, GREY, RED, panels, save

import keywise as kw

random = np.random.default_rng(1)
names = ["apple", "river", "lamp", "horse", "cloud"]
angles = np.pi / 2 + 2 * np.pi * np.arange(5) / 5
value = np.stack([np.cos(angles), np.sin(angles)], axis=1)[None, None].astype(np.float32)
key = random.normal(size=(1, 1, 5, 64)).astype(np.float32)

# %% Scale a query in the direction of one key. The longer it is, the more weight that key has.
matching = names.index("lamp")
lengths = np.linspace(0, 1.2, 49, dtype=np.float32)
query = lengths[:, None] * key[:, :, matching]
stats = kw.attention_stats(query[:, None], key, value, segment_ids=np.arange(5))  # one segment per key: every weight
weights = stats.segment_mass[0, 0]
output = stats.output[0, 0]

# %% A query of length 0 returns the mean of all values; a long one returns the value of the matching key.
assert np.allclose(weights[0], 1 / 5)
assert np.allclose(output[0], value[0, 0].mean(axis=0), atol=1e-6)
assert weights[-1, matching] > 0.99
assert np.allclose(output[-1], value[0, 0, matching], atol=0.02)
assert (stats.top_keys[0, 0, 1:, 0] == matching).all()

# %% The order of the keys and values does not change the output.
order = random.permutation(5)
assert np.allclose(kw.attend(query[:, None], key[:, :, order], value[:, :, order])[0, 0], output, atol=1e-6)

# %%
figure, (left, right) = panels(1, 2, width=8.4, height=3.6, width_ratios=[1.25, 1])
for index in range(5):
    colour = RED if index == matching else GREY
    left.plot(lengths, weights[:, index], color=colour, linewidth=2.5 if index == matching else 1.2)
left.annotate("lamp: the key that matches", (0.5, weights[20, matching]), (0.53, 0.72), color=RED, weight="bold")
left.annotate("the four other keys", (0.5, 0.05), (0.53, 0.09), color=GREY)
left.set(xlabel="length of the query (1 = the key itself)", ylabel="weight", ylim=(0, 1.02), xlim=(0, 1.2))
left.set_title("One matching key takes the weight …")

right.plot(*output.T, color=BLUE, linewidth=2.5, zorder=2)
right.plot(*output[0], marker="o", color=BLUE)
right.annotate("length 0: the mean", output[0], (0, 10), textcoords="offset points", color=BLUE, ha="center")
for index, (name, place) in enumerate(zip(names, value[0, 0], strict=True)):
    colour = RED if index == matching else GREY
    right.plot(*place, marker="s", markersize=9, color=colour)
    right.annotate(name, place, (0, -18), textcoords="offset points", ha="center", color=colour)
right.set(xlim=(-1.4, 1.4), ylim=(-1.25, 1.2), aspect="equal")
right.axis("off")
right.set_title("… and its value comes out")
save(figure)
