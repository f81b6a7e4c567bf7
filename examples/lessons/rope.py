"""RoPE rotates queries and keys by their position: scores depend on distances only."""

# %% Each pair of dimensions is rotated by the position times the frequency of the pair.
import numpy as np
from pictures import BLUE, GREY, RED, panels, save

import keywise as kw

random = np.random.default_rng(0)
dimensions, count = 64, 65
frequencies = 10_000.0 ** (-np.arange(0, dimensions, 2) / dimensions)


def rotate(x, positions):
    """Rotate the pairs (x[i], x[i + d/2]) of every token by its position."""
    angles = np.asarray(positions, np.float64)[:, None] * frequencies
    first, second = np.split(x, 2, axis=-1)
    pairs = first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)
    return np.concatenate(pairs, axis=-1).astype(np.float32)


# %% All keys have the same content, which matches the query: the weights show the effect of position.
content = np.ones((1, 1, 1, dimensions))
keys, value = np.repeat(content, count, axis=2), np.eye(count, dtype=np.float32)[None, None]


def compute_weights(query_position, first_key):
    """Return the weights of one query over 65 keys: the output for unit vectors as values."""
    query = rotate(content, [query_position])
    return kw.attend(query, rotate(keys, first_key + np.arange(count)), value)[0, 0, 0]


# %% Shift the query and all keys together: the weights stay the same.
unshifted = compute_weights(32, 0)
for shift in (7, 1000, 100_000):
    assert np.allclose(compute_weights(32 + shift, shift), unshifted, atol=1e-5)
assert unshifted.argmax() == 32, "the nearest key has the largest weight although all keys have the same content"
assert np.allclose(unshifted, unshifted[::-1], atol=1e-5), "the weights are symmetric"

# %% Shift the query alone, as a cache with a wrong offset does: the largest weight moves.
shifted_query = compute_weights(32 + 12, 0)
assert shifted_query.argmax() == 32 + 12
assert np.abs(shifted_query - unshifted).max() > 0.05

# %% The same holds for any content: only distances matter.
query, key = random.normal(size=(2, 1, 1, count, dimensions))
outputs = [kw.attend(rotate(query, at), rotate(key, at), value) for at in (np.arange(count), 1000 + np.arange(count))]
assert np.allclose(*outputs, atol=1e-5)

# %% A rotation changes directions, not lengths.
lengths = [np.linalg.norm(x, axis=-1) for x in (key, rotate(key, np.arange(count)))]
assert np.allclose(*lengths, rtol=1e-5)

# %%
figure, (left, right) = panels(1, 2, width=9.6, height=3.6, sharey=True)
offset = np.arange(count) - 32
for shift, colour, width in ((0, "#BBD8EA", 9), (1000, BLUE, 4), (100_000, "black", 1.2)):
    left.plot(offset, compute_weights(32 + shift, shift), color=colour, linewidth=width)
    label = "not shifted" if shift == 0 else f"all shifted by {shift:,}"
    left.plot([], [], color=colour, linewidth=width, label=label)
left.legend(frameon=False, loc="upper left", fontsize=9)
left.set(xlabel="key position relative to the query", ylabel="weight", ylim=(0, None))
left.set_title("All positions shifted: the weights stay the same")
right.plot(offset, unshifted, color=GREY, linewidth=2)
right.plot(offset, shifted_query, color=RED, linewidth=2.5)
right.annotate(
    "query and keys agree", (0, unshifted.max()), (-6, -4), textcoords="offset points", color=GREY, ha="right"
)
right.annotate("query 12 too far", (12, shifted_query.max()), (6, -4), textcoords="offset points", color=RED)
right.set(xlabel="key position relative to the query")
right.set_title("The query alone shifted: the peak moves")
save(figure)
