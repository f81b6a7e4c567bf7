"""Identical keys have equal weights: the output is the mean of the values for every query."""

# %% Make eight different keys, and their mean.
import numpy as np
from pictures import BLUE, GREY, panels, save

import keywise as kw

random = np.random.default_rng(5)
count = 8
key = random.normal(size=(1, 1, count, 32)).astype(np.float32)
value = random.normal(size=(1, 1, count, 32)).astype(np.float32)
query = random.normal(size=(1, 1, 1, 32)).astype(np.float32)
mean_key = key.mean(axis=2, keepdims=True)

# %% Move the keys towards their mean until they are identical.
differences = np.linspace(1, 0, 41, dtype=np.float32)
records = [
    kw.attention_stats(query, mean_key + difference * (key - mean_key), value, segment_ids=np.arange(count))
    for difference in differences
]
weights = np.stack([stats.segment_mass[0, 0, 0] for stats in records])
entropy = np.stack([stats.entropy[0, 0, 0] for stats in records])

# %% Identical keys have the weight 1/n each, the entropy is ln n, and the output is the mean of the values.
assert np.allclose(weights[-1], 1 / count)
assert np.isclose(entropy[-1], np.log(count))
assert np.allclose(records[-1].output[0, 0, 0], value[0, 0].mean(axis=0), atol=1e-6)
assert (np.diff(entropy) > 0).all(), "the entropy rises as the keys become more similar"

# %% The output is the same for every query.
other_queries = 10 * random.normal(size=(1, 1, 100, 32)).astype(np.float32)
outputs = kw.attend(other_queries, np.repeat(mean_key, count, axis=2), value)
assert np.ptp(outputs, axis=2).max() < 1e-5

# %%
figure, axis = panels(width=7.6, height=3.6)
heaviest = int(weights[0].argmax())
for index in range(count):
    axis.plot(
        differences,
        weights[:, index],
        color=BLUE if index == heaviest else GREY,
        linewidth=2.5 if index == heaviest else 1.2,
    )
axis.axhline(1 / count, color="black", linewidth=1, linestyle=":")
axis.annotate("the heaviest key", (0.75, weights[10, heaviest]), (6, 4), textcoords="offset points", color=BLUE)
axis.annotate(
    "1/8 each: the output\nis the mean of the values",
    (0, 1 / count),
    (-150, 70),
    textcoords="offset points",
    arrowprops={"arrowstyle": "-", "color": GREY},
)
axis.set(
    xlim=(1, 0), ylim=(0, None), ylabel="weight", xlabel="how much the keys differ (1 = as they were, 0 = identical)"
)
axis.set_title("Keys that become identical share the weight equally")
save(figure)
