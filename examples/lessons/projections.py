"""Projections: the same tokens, seen through different key matrices, are found by different things."""

# %% Seven tokens. Each is its word, its kind and its place, written side by side in one vector.
import numpy as np
from pictures import grid, name_ticks, panels, save

import keywise as kw

words = ["the", "red", "fox", "saw", "the", "old", "dog"]
kinds = ["article", "adjective", "noun", "verb", "article", "adjective", "noun"]


def one_hot(names):
    """Give each different name a dimension of its own."""
    different = sorted(set(names))
    return np.eye(len(different), dtype=np.float32)[[different.index(name) for name in names]]


word, kind, place = one_hot(words), one_hot(kinds), np.eye(7, dtype=np.float32)
tokens = np.concatenate([word, kind, place], axis=1)
in_word, in_kind, in_place = np.split(np.eye(tokens.shape[1], dtype=np.float32), [6, 10], axis=1)

# %% A head is three matrices. The key matrix keeps what tokens can be found by, the query matrix says what to look for.
asks = np.zeros((4, 4), np.float32)
asks[sorted(set(kinds)).index("noun"), sorted(set(kinds)).index("adjective")] = 1
heads = {
    "key = kind\na noun asks for an adjective": (in_kind @ asks, in_kind),
    "key = place\nask for the place before": (in_place @ np.eye(7, k=-1, dtype=np.float32), in_place),
    "key = word\nask for the same word": (in_word, in_word),
}
causal = kw.Mask(causal=True)


def look(to_query, to_key, to_value=in_place):
    """Attend with these three matrices, read out every weight."""
    query, key, value = (tokens @ matrix for matrix in (9 * to_query, to_key, to_value))
    return kw.attention_stats(
        *(x[None, None] for x in (query, key, value)), mask=causal, scale=1, segment_ids=np.arange(7)
    )


by_kind, by_place, by_word = records = [look(*head) for head in heads.values()]

# %% Same tokens, three heads, three answers. What the keys leave out cannot be told apart: "dog" finds both adjectives.
assert by_kind.top_keys[0, 0, 2, 0] == words.index("red")
assert np.allclose(by_kind.top_weights[0, 0, 6, :2], 0.5, atol=0.01)
assert by_place.top_keys[0, 0, 1:, 0].tolist() == [0, 1, 2, 3, 4, 5]
assert set(by_word.top_keys[0, 0, 4, :2].tolist()) == {0, 4}, "the second 'the' finds the first"

# %% The value matrix does not change what is found, it decides what is brought back: the place, or the kind.
brought = look(*heads["key = place\nask for the place before"], to_value=in_kind)
assert np.array_equal(brought.top_keys, by_place.top_keys)
assert sorted(set(kinds))[brought.output[0, 0, 6].argmax()] == "adjective", "what stands before 'dog'"

# %% A key matrix that keeps nothing makes all keys identical, and attention a plain mean of what is visible.
nothing = look(in_kind, 0 * in_kind)
assert np.allclose(nothing.segment_mass[0, 0, 6], 1 / 7)

# %%
figure, axes = panels(1, 3, width=10.5, height=4)
for axis, title, stats in zip(axes, heads, records, strict=True):
    grid(axis, stats.segment_mass[0, 0], title, visible=np.tri(7, dtype=bool))
    name_ticks(axis, words if axis is axes[0] else [], words)
    axis.set(xlabel="", ylabel="query" if axis is axes[0] else "")
save(figure)
