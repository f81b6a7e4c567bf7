"""The KV cache: old tokens' keys and values never change under a causal mask, so they are kept."""

# %% A toy layer: three matrices make query, key and value of each token. It counts the keys it makes.
import numpy as np
from pictures import BLUE, GREY, RED, grid, panels, save

import keywise as kw

random = np.random.default_rng(4)
count, width = 12, 32
tokens = random.normal(size=(1, 1, count, width)).astype(np.float32)
to_query, to_key, to_value = random.normal(size=(3, width, width)).astype(np.float32) / width**0.5
made = {"cache": 0, "no cache": 0}


def key_and_value(of_tokens, way):
    """Make the key and the value of each token."""
    made[way] += of_tokens.shape[2]
    return of_tokens @ to_key, of_tokens @ to_value


# %% Prefill: all tokens at once, each seeing itself and what came before.
prefill = kw.attend(tokens @ to_query, tokens @ to_key, tokens @ to_value, mask=kw.Mask(causal=True))

# %% Decoding: one token at a time, with a cache and without one. Each step equals its row of the prefill.
cache = kw.KVCache(layers=1)
rows, counts = [], [[0, 0]]
for step in range(count):
    new, so_far = tokens[:, :, step : step + 1], tokens[:, :, : step + 1]
    cache.append(0, *key_and_value(new, "cache"))
    stats = cache.attention_stats(0, new @ to_query, segment_ids=np.arange(len(cache)))
    again = kw.attend(new @ to_query, *key_and_value(so_far, "no cache"))
    for output in (stats.output, again):
        assert np.allclose(output, prefill[:, :, step : step + 1], atol=1e-5)
    rows.append(np.pad(stats.segment_mass[0, 0, 0], (0, count - len(cache))))
    counts.append([made["cache"], made["no cache"]])
assert made == {"cache": count, "no cache": count * (count + 1) // 2}

# %% A fork shares what is there and goes its own way: two continuations of one beginning.
fork = cache.fork()
fork.truncate(8)
other = random.normal(size=(1, 1, 1, width)).astype(np.float32)
fork.append(0, *key_and_value(other, "cache"))
assert (len(cache), len(fork)) == (count, 9)
assert np.allclose(cache.attend(0, tokens[:, :, -1:] @ to_query), prefill[:, :, -1:], atol=1e-5), "unmoved by its fork"

# %% What stays are keys and values. Queries are used once: no later token asks for them.
kept = [array.data.nbytes for piece in cache.chunks(0) for array in piece]
assert sum(kept) == 2 * tokens.nbytes

# %%
figure, (left, right) = panels(1, 2, width=9.2, height=3.9, width_ratios=[1, 1.15])
grid(left, rows, "Each step adds one key and reads them all", visible=np.tri(count, dtype=bool), most=0.6)
left.scatter(np.arange(count) + 0.5, np.arange(count) + 0.5, marker="s", s=60, facecolors="none", edgecolors=RED)
left.set(xlabel="key", ylabel="decoding step", xticks=[], yticks=[])
left.annotate("red: appended in this step", (count, 1.2), color=RED, ha="right")
left.annotate("blue: kept from before", (count, 2.4), color=BLUE, ha="right")
for line, colour in zip(np.transpose(counts), (RED, GREY), strict=True):
    right.plot(line, color=colour, linewidth=2.5)
right.annotate("without a cache: n(n+1)/2", (count - 0.5, 76), color=GREY, ha="right")
right.annotate("with a cache: n", (count, counts[-1][0] + 2), color=RED, ha="right")
right.set(xlabel="tokens so far, n", ylabel="keys computed in all", xlim=(0, count), ylim=(0, None))
right.set_title("Nothing is computed twice")
save(figure)
