"""One head of a language model aligns French words with the English words that they translate."""

# %% Load the default model of keywise (SmolLM2-135M-Instruct). It was trained to continue text, not to align words.
from itertools import chain

import numpy as np
import torch
from pictures import ORANGE, draw_grid, label_ticks, panels, save

import keywise.hf
from keywise.models.loading import load_model

loaded = load_model(dtype="float32")
model = keywise.hf.use(loaded.model)

# %% Each pair has the index of the English word for each French word. Adjectives and nouns exchange their places.
pairs = [
    ("the white house is old", "la maison blanche est vieille", [0, 2, 1, 3, 4]),
    ("my sister wears a red dress", "ma sœur porte une robe rouge", [0, 1, 2, 3, 5, 4]),
    ("the black cat sleeps on the table", "le chat noir dort sur la table", [0, 2, 1, 3, 4, 5, 6]),
    ("she reads a long letter", "elle lit une longue lettre", [0, 1, 2, 3, 4]),
    ("a small boat crosses the deep river", "un petit bateau traverse la rivière profonde", [0, 1, 2, 3, 4, 6, 5]),
]
test_pair = (
    "the old woman sells her green car in the white village",
    "la vieille femme vend sa voiture verte dans le village blanc",
    [0, 1, 2, 3, 4, 6, 5, 7, 8, 10, 9],
)


def compute_shares(english, french):
    """Return each French word's weight on each English word [layers, heads, French, English], summing to 1."""
    words = ["English:", *(f" {word}" for word in english.split()), "\nFrench:"]
    words += [f" {word}" for word in french.split()]
    tokens = [loaded.tokenizer(word)["input_ids"] for word in words]
    word_of_token = np.repeat(np.arange(len(words)), [len(ids) for ids in tokens])
    count = len(english.split())
    segment_ids = np.where(
        (word_of_token >= 1) & (word_of_token <= count), word_of_token - 1, -1
    )  # one segment per English word
    queries = np.cumsum([len(ids) for ids in tokens])[count + 2 :] - 1  # the last token of each French word
    with torch.no_grad(), keywise.hf.record_stats(model, top_k=0, segment_ids=segment_ids) as records:
        model(torch.tensor([[*chain.from_iterable(tokens)]]))
    mass = np.stack([record.stats.segment_mass[0, :, queries].numpy() for record in records])
    return mass / mass.sum(axis=-1, keepdims=True)


def find_matches(shares, expected):
    """Return, per layer and head, which French words have the largest weight on the expected English word."""
    return shares.argmax(axis=-1) == expected


# %% Choose the head that matches most words of five pairs, and test it on a sixth.
matches = [find_matches(compute_shares(english, french), expected) for english, french, expected in pairs]
hits = np.concatenate(matches, axis=-1)
layer, head = np.unravel_index(hits.sum(axis=-1).argmax(), hits.shape[:2])
english, french, expected = test_pair
shares = compute_shares(english, french)[layer, head]
correct = find_matches(shares, expected)
print(f"layer {layer}, head {head}: {hits[layer, head].sum()} of {hits.shape[-1]} words of the five pairs")
print(f"and {correct.sum()} of {correct.size} of the test pair")
assert hits[layer, head].mean() > 0.7
assert correct.mean() > 0.7, "chance would be 1 in 11"

# %%
figure, axis = panels(width=6.4, height=5.6)
draw_grid(
    axis,
    shares,
    f"Layer {layer}, head {head} of SmolLM2-135M: {correct.sum()} of {correct.size} words aligned",
    max_weight=shares.max(),
)
label_ticks(axis, french.split(), english.split(), rotation=45)
axis.scatter(
    np.array(expected) + 0.5, np.arange(correct.size) + 0.5, s=300, facecolors="none", edgecolors=ORANGE, linewidth=2
)
axis.set(xlabel="English word (orange: the translation)", ylabel="French word")
save(figure)
