"""RoPE: keys and queries are turned by their position, so that only their distance counts."""

# %% Each pair of dimensions is a hand of a clock, turned by position times the speed of that hand.
import numpy as np
from pictures import BLUE, GREY, RED, panels, save

import keywise as kw

random = np.random.default_rng(0)
dimensions, count = 64, 65
speeds = 10_000.0 ** (-np.arange(0, dimensions, 2) / dimensions)


def turned(x, positions):
    """Turn the pairs (x[i], x[i + d/2]) of every token by its position."""
    angles = np.asarray(positions, np.float64)[:, None] * speeds
    first, second = np.split(x, 2, axis=-1)
    pairs = first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)
    return np.concatenate(pairs, axis=-1).astype(np.float32)


# %% Every key holds the same content here, and the query matches it: the weights show what position does.
content = np.ones((1, 1, 1, dimensions))
keys, value = np.repeat(content, count, axis=2), np.eye(count, dtype=np.float32)[None, None]


def weights(query_position, first_key):
    """Read the weights of one query over 65 keys; values that are unit vectors bring the weights out."""
    query = turned(content, [query_position])
    return kw.attend(query, turned(keys, first_key + np.arange(count)), value)[0, 0, 0]


# %% Shift the query and all keys together, as far as you like: the weights stay.
here = weights(32, 0)
for shift in (7, 1000, 100_000):
    assert np.allclose(weights(32 + shift, shift), here, atol=1e-5)
assert here.argmax() == 32, "the nearest key wins, though all keys hold the same"
assert np.allclose(here, here[::-1], atol=1e-5), "and it is the same to both sides"

# %% Shift one of the two alone, as a cache that forgets its offset does, and the query looks elsewhere.
lost = weights(32 + 12, 0)
assert lost.argmax() == 32 + 12
assert np.abs(lost - here).max() > 0.05

# %% It is the same with any content: only the distances count.
query, key = random.normal(size=(2, 1, 1, count, dimensions))
outputs = [kw.attend(turned(query, at), turned(key, at), value) for at in (np.arange(count), 1000 + np.arange(count))]
assert np.allclose(*outputs, atol=1e-5)

# %% Turning changes no length: what a key holds is kept, only its direction tells the place.
lengths = [np.linalg.norm(x, axis=-1) for x in (key, turned(key, np.arange(count)))]
assert np.allclose(*lengths, rtol=1e-5)

# %%
figure, (left, right) = panels(1, 2, width=9.6, height=3.6, sharey=True)
offset = np.arange(count) - 32
for shift, colour, width in ((0, "#BBD8EA", 9), (1000, BLUE, 4), (100_000, "black", 1.2)):
    left.plot(offset, weights(32 + shift, shift), color=colour, linewidth=width)
    label = "as it was" if shift == 0 else f"all shifted by {shift:,}"
    left.plot([], [], color=colour, linewidth=width, label=label)
left.legend(frameon=False, loc="upper left", fontsize=9)
left.set(xlabel="key's place, counted from the query's", ylabel="weight", ylim=(0, None))
left.set_title("All positions shifted: the weights stay")
right.plot(offset, here, color=GREY, linewidth=2)
right.plot(offset, lost, color=RED, linewidth=2.5)
right.annotate("query and keys agree", (0, here.max()), (-6, -4), textcoords="offset points", color=GREY, ha="right")
right.annotate("query 12 too far", (12, lost.max()), (6, -4), textcoords="offset points", color=RED)
right.set(xlabel="key's place, counted from the query's")
right.set_title("The query alone shifted: it looks elsewhere")
save(figure)
