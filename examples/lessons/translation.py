"""Looking up a translation: in a real language model, a French word finds the English word that it stands for."""

# %% The default model of keywise (SmolLM2-135M-Instruct). It learned to continue text, not to pair words.
from itertools import chain

import numpy as np
import torch
from pictures import ORANGE, grid, name_ticks, panels, save

import keywise.hf
from keywise.models.loading import load_model

loaded = load_model(dtype="float32")
model = keywise.hf.use(loaded.model)

# %% English, French, and which English word each French word stands for. Adjectives change places.
pairs = [
    ("the white house is old", "la maison blanche est vieille", [0, 2, 1, 3, 4]),
    ("my sister wears a red dress", "ma sœur porte une robe rouge", [0, 1, 2, 3, 5, 4]),
    ("the black cat sleeps on the table", "le chat noir dort sur la table", [0, 2, 1, 3, 4, 5, 6]),
    ("she reads a long letter", "elle lit une longue lettre", [0, 1, 2, 3, 4]),
    ("a small boat crosses the deep river", "un petit bateau traverse la rivière profonde", [0, 1, 2, 3, 4, 6, 5]),
]
unseen = (
    "the old woman sells her green car in the white village",
    "la vieille femme vend sa voiture verte dans le village blanc",
    [0, 1, 2, 3, 4, 6, 5, 7, 8, 10, 9],
)


def lookups(english, french):
    """Give each French word's shares of the English words, per layer and head [L, H, French, English]."""
    words = ["English:", *(f" {word}" for word in english.split()), "\nFrench:"]
    words += [f" {word}" for word in french.split()]
    tokens = [loaded.tokenizer(word)["input_ids"] for word in words]
    owner = np.repeat(np.arange(len(words)), [len(ids) for ids in tokens])
    count = len(english.split())
    segments = np.where((owner >= 1) & (owner <= count), owner - 1, -1)  # a segment per English word
    rows = np.cumsum([len(ids) for ids in tokens])[count + 2 :] - 1  # the last token of each French word
    with torch.no_grad(), keywise.hf.record_stats(model, top_k=0, segment_ids=segments) as records:
        model(torch.tensor([[*chain.from_iterable(tokens)]]))
    mass = np.stack([record.stats.segment_mass[0, :, rows].numpy() for record in records])
    return mass / mass.sum(axis=-1, keepdims=True)


def found(shares, meant):
    """Tell, per layer and head, which French words look most at the English word that is meant."""
    return shares.argmax(axis=-1) == meant


# %% Choose the head that finds most words in five pairs, and watch it at a sixth that took no part in the choice.
hits = np.concatenate([found(lookups(english, french), meant) for english, french, meant in pairs], axis=-1)
layer, head = np.unravel_index(hits.sum(axis=-1).argmax(), hits.shape[:2])
english, french, meant = unseen
shares = lookups(english, french)[layer, head]
right = found(shares, meant)
print(f"layer {layer}, head {head}: {hits[layer, head].sum()} of {hits.shape[-1]} words when chosen")
print(f"and {right.sum()} of {right.size} in the pair that is new to it")
assert hits[layer, head].mean() > 0.7
assert right.mean() > 0.7, "chance would be 1 in 11"

# %%
figure, axis = panels(width=6.4, height=5.6)
grid(
    axis,
    shares,
    f"Layer {layer}, head {head} of SmolLM2-135M: {right.sum()} of {right.size} words found",
    most=shares.max(),
)
name_ticks(axis, french.split(), english.split(), rotation=45)
axis.scatter(
    np.array(meant) + 0.5, np.arange(right.size) + 0.5, s=300, facecolors="none", edgecolors=ORANGE, linewidth=2
)
axis.set(xlabel="English word looked at (orange: the one that is meant)", ylabel="French word that looks")
save(figure)
