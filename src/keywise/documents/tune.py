"""Choose the heads of a model that find evidence, from questions whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.document import Document
from keywise.documents.evidence import LEAST_SHARE, Look, Mass, clue_odds
from keywise.documents.heads import RANKINGS, Head, Heads
from keywise.documents.labelled import Labelled, Question
from keywise.documents.reader import Reader
from keywise.errors import OptionError

# Few heads find evidence: more of them bring their noise along.
MATCHING_HEADS: Final = 4
COPYING_HEADS: Final = 3
CANDIDATES: Final = 20
# How much heads count while they are chosen; powers are fitted later.
USUAL_POWER: Final = 2.0
FEWEST_QUESTIONS: Final = 10
_TINY: Final = 1e-9


@dataclass(frozen=True, eq=False)
class Observed:
    """Where every head of a model looked for one question.

    Attributes
    ----------
    document
        The number of the document that it was asked about.
    question
        The question.
    look
        The mass of all heads on its sentences, a null question's subtracted.
    text
        Clues of the document's text: see `Document.clues`.
    gold
        Numbers of the sentences that hold an answer; none if the question is another document's.
    """

    document: int
    question: Question
    look: Look
    text: Mapping[str, Mass]
    gold: tuple[int, ...]


def every_head(layers: int, heads: int) -> Heads:
    """Read all heads of all layers, both ways."""
    every = tuple((layer, head) for layer in range(layers) for head in range(heads))
    powers = {ranking: dict.fromkeys(clues, 1.0) for ranking, clues in RANKINGS.items()}
    return Heads(every, every, powers, 0.0, 0.0, answer_sentences=0, tuned_on=None)


def observe(
    reader: Reader, documents: Sequence[Labelled], *, strangers: int, progress: Callable[[int, int], None] | None = None
) -> Iterator[Observed]:
    """Ask each document its own questions, and `strangers` of other articles, which it does not answer.

    Parameters
    ----------
    reader
        A reader whose heads are those of `every_head`.
    documents
        The documents.
    strangers
        How many questions of other articles to ask each.
    progress
        Called after every document with the number of those done and of all.
    """
    for number, labelled in enumerate(documents):
        document = reader.read_whole(labelled.text)
        asked = [(question, gold_sentences(document, question)) for question in labelled.questions]
        asked += [(question, ()) for question in _strangers(documents, number, strangers)]
        for question, gold in asked:
            yield Observed(number, question, document.look(question.text), document.clues(question.text), gold)
        if progress:
            progress(number + 1, len(documents))


def gold_sentences(document: Document, question: Question) -> tuple[int, ...]:
    """Give the numbers of the sentences in which a question's answers begin."""
    spans = document.sources[0].sentences
    found = {n for n, (start, end) in enumerate(spans) for place in question.positions if start <= place < end}
    return tuple(sorted(found))


def choose(observed: Sequence[Observed], every: Sequence[Head], *, answer_sentences: int, tuned_on: str) -> Heads:
    """Choose heads that together find gold sentences best, and fit how all clues are weighed.

    Parameters
    ----------
    observed
        What `observe` gave.
    every
        All heads, in the order of the looks.
    answer_sentences, tuned_on
        As in `Heads`.

    Raises
    ------
    OptionError
        If fewer than 10 questions have an answer.
    """
    answered = [one for one in observed if one.gold]
    if len(answered) < FEWEST_QUESTIONS:
        raise OptionError(f"data holds {len(answered)} answered questions; give at least {FEWEST_QUESTIONS}")
    matching = _best([(one.look.matching, one.gold) for one in answered], MATCHING_HEADS)
    copying = _best([(one.look.copying, one.gold) for one in answered], COPYING_HEADS)
    heads = Heads(
        matching=tuple(every[number] for number in matching),
        copying=tuple(every[number] for number in copying),
        powers={},
        none_mass=0.0,
        none_power=0.0,
        answer_sentences=answer_sentences,
        tuned_on=tuned_on,
    )
    looks = [Look(one.look.matching[matching], one.look.copying[copying]) for one in answered]
    odds = [clue_odds(look, one.text, heads) for look, one in zip(looks, answered, strict=True)]
    gold = [one.gold for one in answered]
    powers = {}
    for ranking, clues in RANKINGS.items():
        if odds[0].keys() >= set(clues):
            fitted = fit_powers([np.log(np.stack([found[clue] for clue in clues])) for found in odds], gold)
            powers[ranking] = dict(zip(clues, fitted, strict=True))
    heads = replace(heads, powers=powers)
    strange = [one for one in observed if not one.gold]
    if strange:
        largest = [_largest(one.look.matching[matching]) for one in (*answered, *strange)]
        offset, slope = _logistic(np.log(largest), np.arange(len(largest)) >= len(answered))
        if slope < 0:  # a question that is answered must stand out more
            heads = replace(heads, none_mass=float(np.power(np.e, -offset / slope)), none_power=-slope)
    return heads


def fit_powers(logs: Sequence[NDArray[np.float64]], gold: Sequence[tuple[int, ...]]) -> list[float]:
    """Fit powers of 0 or more under which gold sentences get the largest shares (maximum likelihood).

    Parameters
    ----------
    logs
        For each question the logarithms that the powers multiply: [powers, sentences].
    gold
        For each question the numbers of the sentences that hold an answer.
    """
    import torch  # noqa: PLC0415 - heavy

    widest = max(found.shape[1] for found in logs)
    padded = torch.zeros(len(logs), widest, len(logs[0]), dtype=torch.float64)
    outside = torch.ones(len(logs), widest, dtype=torch.bool)
    for row, found in enumerate(logs):
        padded[row, : found.shape[1]] = torch.from_numpy(found.T)
        outside[row, : found.shape[1]] = False
    right = torch.tensor([sentences[0] for sentences in gold])
    powers = torch.ones(len(logs[0]), dtype=torch.float64, requires_grad=True)

    def loss() -> torch.Tensor:
        fit = torch.nn.functional.cross_entropy((padded @ powers).masked_fill(outside, -1e9), right)
        # A little of the powers' squares: what few questions decide would else go far.
        return fit + 1e-4 * (powers**2).sum()

    _minimise(loss, powers)
    return [round(max(float(power), 0.0), 3) for power in powers.detach()]


def restricted(look: Look, every: Sequence[Head], heads: Heads) -> Look:
    """Take out of a look of all heads that of chosen ones."""
    place = {head: number for number, head in enumerate(every)}
    return Look(
        look.matching[[place[head] for head in heads.matching]], look.copying[[place[head] for head in heads.copying]]
    )


def _strangers(documents: Sequence[Labelled], number: int, count: int) -> list[Question]:
    own = {question.article for question in documents[number].questions}
    others = [q for document in documents for q in document.questions if q.article not in own]
    step = max(len(others) // count, 1) if count else 1
    return others[number % step :: step][:count]


def _best(looks: Sequence[tuple[Mass, tuple[int, ...]]], count: int) -> list[int]:
    """Choose heads one by one: the next is the one that, with those before, makes gold sentences likeliest.

    Considered are those with the largest part of their mass on gold sentences.
    """
    parts = [positive / np.maximum(positive.sum(axis=1, keepdims=True), _TINY) for positive in _positive(looks)]
    alone = np.sum([part[:, list(gold)].sum(axis=1) for part, (_, gold) in zip(parts, looks, strict=True)], axis=0)
    candidates = np.argsort(-alone, kind="stable")[:CANDIDATES]
    chosen: list[int] = []
    for _ in range(min(count, candidates.size)):
        likelihood = np.zeros(candidates.size)
        for part, (_, gold) in zip(parts, looks, strict=True):
            together = (np.sqrt(part[candidates]) + np.sqrt(part[chosen]).sum(axis=0)) ** 2
            together /= np.maximum(together.sum(axis=1, keepdims=True), _TINY)
            odds = (together + LEAST_SHARE) ** USUAL_POWER
            likelihood += np.log(odds[:, list(gold)].sum(axis=1) / odds.sum(axis=1))
        likelihood[np.isin(candidates, chosen)] = -np.inf
        chosen.append(int(candidates[likelihood.argmax()]))
    return chosen


def _positive(looks: Sequence[tuple[Mass, tuple[int, ...]]]) -> Iterator[Mass]:
    yield from (np.maximum(mass, 0.0) for mass, _ in looks)


def _largest(mass: NDArray[np.float64]) -> float:
    return max(float(mass.sum(axis=0).max()), _TINY)


def _logistic(feature: NDArray[np.float64], outcome: NDArray[np.bool_]) -> tuple[float, float]:
    """Fit the log-odds of an outcome as offset + slope * feature, both outcomes counting equally."""
    import torch  # noqa: PLC0415 - heavy

    x, y = torch.from_numpy(feature), torch.from_numpy(outcome.astype(np.float64))
    weight = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def loss() -> torch.Tensor:
        odds = line[0] + line[1] * x
        # A little of the slope's square: what separates perfectly would else have no end.
        fit = torch.nn.functional.binary_cross_entropy_with_logits(odds, y, weight)
        return fit + 1e-3 * line[1] ** 2

    _minimise(loss, line)
    offset, slope = line.detach().tolist()
    return offset, slope


def _minimise(loss: Callable[[], Any], parameter: Any) -> None:
    import torch  # noqa: PLC0415 - heavy

    optimiser = torch.optim.LBFGS([parameter], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
