"""Scores are divided by the square root of the head size to keep the softmax from saturating."""

# %% Use random queries and 64 random keys in 4 to 1024 dimensions.
import numpy as np
from pictures import BLUE, GREEN, GREY, RED, panels, save

import keywise as kw

random = np.random.default_rng(0)
dimensions = [4, 8, 16, 32, 64, 128, 256, 512, 1024]
count = 64
scales = {"no scale": lambda d: 1.0, "1/√d": lambda d: d**-0.5, "1/d": lambda d: 1 / d}

# %% A score is a sum of d products. Without a scale its standard deviation grows like √d.
heaviest = {name: [] for name in scales}
for d in dimensions:
    query, key = random.normal(size=(2, 1, 1, 256, d)).astype(np.float32)
    key = key[:, :, :count]
    for name, scale in scales.items():
        stats = kw.attention_stats(query, key, key, scale=scale(d), top_k=1)
        heaviest[name].append(float(stats.top_weights.mean()))
    assert np.isclose((query @ key.swapaxes(2, 3)).std() / np.sqrt(d), 1, atol=0.1)

# %% With 1/√d, the default of keywise, the weights are similar in every size.
assert max(heaviest["1/√d"]) - min(heaviest["1/√d"]) < 0.05
assert np.array_equal(kw.attend(query, key, key), kw.attend(query, key, key, scale=1024**-0.5))

# %% Without a scale one key takes almost all the weight (saturation: changes of the other keys have no effect).
assert heaviest["no scale"][-1] > 0.9
# With 1/d all keys have nearly the same weight.
assert heaviest["1/d"][-1] < 1.2 / count

# %%
figure, axis = panels(width=7.6, height=3.8)
styles = {"no scale": (RED, "no scale: one key takes all"), "1/√d": (BLUE, "1/√d: the same in every size")}
styles["1/d"] = (GREEN, "1/d: all keys alike")
for name, (colour, label) in styles.items():
    axis.plot(dimensions, heaviest[name], marker="o", markersize=4, linewidth=2.2, color=colour)
    label_offset = -26 if name == "no scale" else 8
    axis.annotate(
        label,
        (1024, heaviest[name][-1]),
        (0, label_offset),
        textcoords="offset points",
        color=colour,
        ha="right",
    )
axis.axhline(1 / count, color=GREY, linewidth=1, linestyle=":")
axis.annotate("1/64: no choice at all", (4, 1 / count), (0, -13), textcoords="offset points", color=GREY)
axis.set_xscale("log", base=2)
axis.set_xticks(dimensions, [str(d) for d in dimensions])
axis.set(xlabel="dimensions of a head, d", ylabel="weight of the heaviest of 64 keys", ylim=(-0.06, 1.02))
axis.set_title("The scale keeps attention between “all the same” and “one takes all”")
save(figure)
