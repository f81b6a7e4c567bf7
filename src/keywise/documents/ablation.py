"""Ablation: the answer's probability with one sentence of its evidence removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keywise.documents.answer import Answer, join_sentences, sort_by_place
from keywise.documents.evidence import Evidence
from keywise.documents.spans import compute_quote_log_probability
from keywise.errors import OptionError

if TYPE_CHECKING:
    from keywise.documents.files import Source
    from keywise.documents.model import EvidenceModel


@dataclass(frozen=True)
class Ablation:
    """The effect of removing a sentence on an answer.

    Attributes
    ----------
    evidence
        The sentence.
    drop_nats
        Fall of the natural logarithm of the answer's probability; below 0 if it rises.
    control
        Whether this is the low-ranked sentence that the others are compared with.

    Examples
    --------
    >>> document.ablate(document.ask("Who was the keeper?"))[0].drop_nats > 1  # doctest: +SKIP
    True
    """

    evidence: Evidence
    drop_nats: float
    control: bool


def ablate_evidence(model: EvidenceModel, sources: Sequence[Source], answer: Answer, *, top: int) -> list[Ablation]:
    """Remove each of an answer's best sentences, and one from the middle of the others.

    The model reads these sentences alone, in the order of the text: in the prefilled document, the keys and values of
    later sentences depend on a removed one.

    Parameters
    ----------
    model
        The model that answered.
    sources
        The texts.
    answer
        The answer.
    top
        Number of best sentences to remove, one at a time.

    Raises
    ------
    OptionError
        The answer is empty.
    """
    if not answer.text:
        raise OptionError("answer", "must have a text", got=answer.text)
    tested = list(answer.evidence[:top])
    others = answer.evidence[top:]
    if others:
        tested.append(others[len(others) // 2])
    ordered = sort_by_place(sources, tested)

    def compute_log_probability(evidence: Sequence[Evidence]) -> float:
        text, _ = join_sentences(evidence)
        return compute_quote_log_probability(model, text, answer.question, answer.text)

    complete = compute_log_probability(ordered)
    ablations: list[Ablation] = []
    for number, removed in enumerate(tested):
        ablated = compute_log_probability([item for item in ordered if item is not removed])
        ablations.append(Ablation(removed, complete - ablated, control=number >= top))
    return ablations
