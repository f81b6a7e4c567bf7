"""A KV cache stores keys and values, which later tokens never change under a causal mask."""

# %% A small layer: three matrices compute query, key and value of each token. It counts the keys that it computes.
import numpy as np
from pictures import BLUE, GREY, RED, draw_grid, panels, save

import keywise as kw

random = np.random.default_rng(4)
count, width = 12, 32
tokens = random.normal(size=(1, 1, count, width)).astype(np.float32)
to_query, to_key, to_value = random.normal(size=(3, width, width)).astype(np.float32) / width**0.5
computed = {"cache": 0, "no cache": 0}


def project(some_tokens, run):
    """Compute the key and the value of each token."""
    computed[run] += some_tokens.shape[2]
    return some_tokens @ to_key, some_tokens @ to_value


# %% Prefill: all tokens at once; each sees itself and the tokens before it.
prefill = kw.attend(tokens @ to_query, tokens @ to_key, tokens @ to_value, mask=kw.Mask(causal=True))

# %% Decoding: one token at a time, with and without a cache. Each step equals its row of the prefill.
cache = kw.KVCache(layers=1)
rows, counts = [], [[0, 0]]
for step in range(count):
    new_token, tokens_so_far = tokens[:, :, step : step + 1], tokens[:, :, : step + 1]
    cache.append(0, *project(new_token, "cache"))
    stats = cache.attention_stats(0, new_token @ to_query, segment_ids=np.arange(len(cache)))
    without_cache = kw.attend(new_token @ to_query, *project(tokens_so_far, "no cache"))
    for output in (stats.output, without_cache):
        assert np.allclose(output, prefill[:, :, step : step + 1], atol=1e-5)
    rows.append(np.pad(stats.segment_mass[0, 0, 0], (0, count - len(cache))))
    counts.append([computed["cache"], computed["no cache"]])
assert computed == {"cache": count, "no cache": count * (count + 1) // 2}

# %% A fork shares the tokens so far and continues on its own.
fork = cache.fork()
fork.truncate(8)
other = random.normal(size=(1, 1, 1, width)).astype(np.float32)
fork.append(0, *project(other, "cache"))
assert (len(cache), len(fork)) == (count, 9)
assert np.allclose(cache.attend(0, tokens[:, :, -1:] @ to_query), prefill[:, :, -1:], atol=1e-5), (
    "the fork does not change the cache"
)

# %% The cache stores keys and values. Queries are used once: no later token needs them.
stored_bytes = [array.data.nbytes for chunk in cache.chunks(0) for array in chunk]
assert sum(stored_bytes) == 2 * tokens.nbytes

# %%
figure, (left, right) = panels(1, 2, width=9.2, height=3.9, width_ratios=[1, 1.15])
draw_grid(left, rows, "Each step adds one key and reads them all", visible=np.tri(count, dtype=bool), max_weight=0.6)
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
