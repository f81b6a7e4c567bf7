"""Training of the translator, with and without a loss that guides its attention, and its errors on held-out pairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from language import SOURCE_WORDS, TARGET_WORDS, Pair
from model import BEGIN, END, PAD, SPECIAL_TOKENS, Translator
from torch import Tensor
from torch.nn import functional

SOURCE_NUMBERS = {word: number + SPECIAL_TOKENS for number, word in enumerate(SOURCE_WORDS)}
TARGET_NUMBERS = {word: number + SPECIAL_TOKENS for number, word in enumerate(TARGET_WORDS)}
UNKNOWN = -1
"""The source word of a target word without a known alignment."""
BATCH_PAIRS = 64
LEARNING_RATE = 2e-3
GUIDED_SHARE = 0.1
"""The share of the pairs whose alignment the guided training sees."""


@dataclass(frozen=True)
class Batch:
    """Sentence pairs as tensors.

    Attributes
    ----------
    source : int tensor [B, S]
        Padded word numbers.
    target : int tensor [B, T]
        Padded word numbers, from the mark of the beginning to that of the end.
    alignment : int tensor [B, T - 1]
        The source word of each target word after the first mark, or UNKNOWN.
    """

    source: Tensor
    target: Tensor
    alignment: Tensor


def encode_sources(sources: Sequence[Sequence[str]]) -> Tensor:
    """Return source sentences as padded word numbers."""
    rows = [torch.tensor([SOURCE_NUMBERS[word] for word in source]) for source in sources]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def make_batch(pairs: Sequence[Pair], is_guided: Sequence[bool]) -> Batch:
    """Return pairs as tensors; alignments are those of the guided pairs alone."""
    targets = [torch.tensor([BEGIN, *(TARGET_NUMBERS[word] for word in pair.target), END]) for pair in pairs]
    alignments = [
        torch.tensor([*(pair.alignment if guided else [UNKNOWN] * len(pair.alignment)), UNKNOWN])
        for pair, guided in zip(pairs, is_guided, strict=True)
    ]
    return Batch(
        encode_sources([pair.source for pair in pairs]),
        torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=PAD),
        torch.nn.utils.rnn.pad_sequence(alignments, batch_first=True, padding_value=UNKNOWN),
    )


def compute_alignment_loss(mass: Tensor, alignment: Tensor) -> Tensor:
    """Return the mean of -log of the weight on the true source word, of the first head, over the known words.

    Parameters
    ----------
    mass : tensor [B, heads, T, S]
        Weights of target words on source words, with gradients.
    alignment : int tensor [B, T]
        True source words, or UNKNOWN.
    """
    known = alignment != UNKNOWN
    weight = mass[:, 0].gather(-1, alignment.clamp(min=0)[..., None])[..., 0]
    return -torch.log(weight[known] + 1e-6).sum() / known.sum().clamp(min=1)


def train(
    pairs: Sequence[Pair], *, steps: int, guided: bool, seed: int = 0, report: Callable[[str], None]
) -> Translator:
    """Train a translator.

    Parameters
    ----------
    pairs : sequence of Pair
        The training pairs; the first tenth has known alignments.
    steps : int
        Number of steps of `BATCH_PAIRS` pairs.
    guided : bool
        Whether the loss has a term for the alignment.
    seed : int
        Seed of the weights and of the order of the pairs.
    report : callable
        Called with a line now and then.
    """
    torch.manual_seed(seed)
    model = Translator(len(SOURCE_WORDS), len(TARGET_WORDS))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    known = int(len(pairs) * GUIDED_SHARE)
    start = time.perf_counter()
    for step in range(steps):
        chosen = torch.randint(len(pairs), (BATCH_PAIRS,)).tolist()
        batch = make_batch([pairs[number] for number in chosen], [number < known for number in chosen])
        encoded, padding = model.encode(batch.source)
        logits, mass = model.decode(batch.target[:, :-1], encoded, padding, needs_mass=guided)
        loss = functional.cross_entropy(logits.flatten(0, 1), batch.target[:, 1:].flatten(), ignore_index=PAD)
        total = loss if mass is None else loss + compute_alignment_loss(mass, batch.alignment)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % max(steps // 5, 1) == 0:
            report(f"step {step + 1}: loss {loss.item():.4f}, {time.perf_counter() - start:.0f} s")
    return model.eval()


@dataclass(frozen=True)
class Errors:
    """Errors on held-out pairs.

    Attributes
    ----------
    exact_match : float
        Share of the sentences whose translation is the expected one, word for word.
    alignment_error : float
        Share of the words of these translations whose heaviest source word is not the true one.
    """

    exact_match: float
    alignment_error: float


@torch.no_grad()
def choose_head(model: Translator, pairs: Sequence[Pair]) -> int:
    """Return the head of the last layer whose heaviest source words are true ones most often.

    Parameters
    ----------
    model : Translator
        A trained model.
    pairs : sequence of Pair
        Pairs with known alignments, which the model was trained on.
    """
    batch = make_batch(pairs, [True] * len(pairs))
    encoded, padding = model.encode(batch.source)
    _, mass = model.decode(batch.target[:, :-1], encoded, padding, needs_mass=True)
    is_true = mass.argmax(dim=-1) == batch.alignment[:, None]
    return int(is_true.sum(dim=(0, 2)).argmax())


def measure_errors(model: Translator, pairs: Sequence[Pair], head: int) -> Errors:
    """Translate held-out pairs and compare translations and alignments with the true ones."""
    exact = wrong = words = 0
    for start in range(0, len(pairs), BATCH_PAIRS):
        chunk = pairs[start : start + BATCH_PAIRS]
        numbers, mass = model.translate(encode_sources([pair.source for pair in chunk]))
        for row, pair in enumerate(chunk):
            if decode_words(numbers[row]) != pair.target:
                continue
            exact += 1
            found = mass[row, head, : len(pair.target)].argmax(dim=-1).tolist()
            wrong += sum(first != second for first, second in zip(found, pair.alignment, strict=True))
            words += len(pair.target)
    return Errors(exact / len(pairs), wrong / max(words, 1))


def decode_words(numbers: Tensor) -> tuple[str, ...]:
    """Return the words of a translation up to the mark of its end."""
    words = []
    for number in numbers.tolist():
        if number < SPECIAL_TOKENS:
            break
        words.append(TARGET_WORDS[number - SPECIAL_TOKENS])
    return tuple(words)
