"""Identical keys: every weight is 1/n, the output is the mean of the values, and the query no longer matters."""

# %% Eight keys that differ, and what they have in common.
import numpy as np
from pictures import BLUE, GREY, panels, save

import keywise as kw

random = np.random.default_rng(5)
count = 8
key = random.normal(size=(1, 1, count, 32)).astype(np.float32)
value = random.normal(size=(1, 1, count, 32)).astype(np.float32)
query = random.normal(size=(1, 1, 1, 32)).astype(np.float32)
common = key.mean(axis=2, keepdims=True)

# %% The keys are drawn together until all of them are the same.
differences = np.linspace(1, 0, 41, dtype=np.float32)
records = [
    kw.attention_stats(query, common + left * (key - common), value, segment_ids=np.arange(count))
    for left in differences
]
weights = np.stack([stats.segment_mass[0, 0, 0] for stats in records])
entropy = np.stack([stats.entropy[0, 0, 0] for stats in records])

# %% Identical keys cannot be told apart: each gets 1/n, the entropy is ln n, the output is the mean.
assert np.allclose(weights[-1], 1 / count)
assert np.isclose(entropy[-1], np.log(count))
assert np.allclose(records[-1].output[0, 0, 0], value[0, 0].mean(axis=0), atol=1e-6)
assert (np.diff(entropy) > 0).all(), "the closer the keys, the flatter the weights"

# %% Whatever is asked, the answer is the same.
others = 10 * random.normal(size=(1, 1, 100, 32)).astype(np.float32)
answers = kw.attend(others, np.repeat(common, count, axis=2), value)
assert np.ptp(answers, axis=2).max() < 1e-5

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
