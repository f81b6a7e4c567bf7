"""The key matrix decides by which property of a token a query can find it."""

# %% Make seven tokens. Each vector holds the word, its part of speech and its position, one-hot.
import numpy as np
from pictures import draw_grid, label_ticks, panels, save

import keywise as kw

words = ["the", "red", "fox", "saw", "the", "old", "dog"]
parts_of_speech = ["article", "adjective", "noun", "verb", "article", "adjective", "noun"]


def encode_one_hot(names):
    """Return one dimension per distinct name."""
    distinct = sorted(set(names))
    return np.eye(len(distinct), dtype=np.float32)[[distinct.index(name) for name in names]]


properties = encode_one_hot(words), encode_one_hot(parts_of_speech), np.eye(7, dtype=np.float32)
tokens = np.concatenate(properties, axis=1)
select_word, select_part, select_position = np.split(np.eye(tokens.shape[1], dtype=np.float32), [6, 10], axis=1)

# %% A head has three matrices. The key matrix selects what tokens are found by, the query matrix what to look for.
noun_to_adjective = np.zeros((4, 4), np.float32)
noun_to_adjective[sorted(set(parts_of_speech)).index("noun"), sorted(set(parts_of_speech)).index("adjective")] = 1
heads = {
    "key = part of speech\nnouns look for adjectives": (select_part @ noun_to_adjective, select_part),
    "key = position\nlook for the position before": (
        select_position @ np.eye(7, k=-1, dtype=np.float32),
        select_position,
    ),
    "key = word\nlook for the same word": (select_word, select_word),
}
causal = kw.Mask(causal=True)


def attend(to_query, to_key, to_value=select_position):
    """Return the statistics of a head, with every weight."""
    query, key, value = (tokens @ matrix for matrix in (9 * to_query, to_key, to_value))
    return kw.attention_stats(
        *(x[None, None] for x in (query, key, value)), mask=causal, scale=1, segment_ids=np.arange(7)
    )


by_part, by_position, by_word = records = [attend(*head) for head in heads.values()]

# %% Three heads find different tokens. Keys without position cannot distinguish the two adjectives: "dog" finds both.
assert by_part.top_keys[0, 0, 2, 0] == words.index("red")
assert np.allclose(by_part.top_weights[0, 0, 6, :2], 0.5, atol=0.01)
assert by_position.top_keys[0, 0, 1:, 0].tolist() == [0, 1, 2, 3, 4, 5]
assert set(by_word.top_keys[0, 0, 4, :2].tolist()) == {0, 4}, "the second 'the' finds the first"

# %% The value matrix does not change which token is found, only what is returned: position or part of speech.
returned = attend(*heads["key = position\nlook for the position before"], to_value=select_part)
assert np.array_equal(returned.top_keys, by_position.top_keys)
assert sorted(set(parts_of_speech))[returned.output[0, 0, 6].argmax()] == "adjective", "the word before 'dog'"

# %% A key matrix of zeros makes all keys identical: the output is the mean of the visible values.
zero_keys = attend(select_part, 0 * select_part)
assert np.allclose(zero_keys.segment_mass[0, 0, 6], 1 / 7)

# %%
figure, axes = panels(1, 3, width=10.5, height=4)
for axis, title, stats in zip(axes, heads, records, strict=True):
    draw_grid(axis, stats.segment_mass[0, 0], title, visible=np.tri(7, dtype=bool))
    label_ticks(axis, words if axis is axes[0] else [], words)
    axis.set(xlabel="", ylabel="query" if axis is axes[0] else "")
save(figure)
