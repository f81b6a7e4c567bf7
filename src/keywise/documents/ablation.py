"""Does an answer depend on its evidence? Each sentence is removed, and the answer's probability looked at again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keywise.documents.answer import Answer, in_order, joined
from keywise.documents.evidence import Evidence
from keywise.documents.passage import log_probability
from keywise.errors import OptionError

if TYPE_CHECKING:
    from keywise.documents.files import Source
    from keywise.documents.prompt import Prompt
    from keywise.models.loading import LoadedModel


@dataclass(frozen=True)
class Ablation:
    """What removing a sentence does to an answer.

    Attributes
    ----------
    evidence
        The sentence.
    drop
        How much the natural logarithm of the answer's probability falls without it; below 0 if it rises.
    compared
        Whether this is the sentence from far behind that the others are compared with.
    """

    evidence: Evidence
    drop: float
    compared: bool


def ablate(
    loaded: LoadedModel, prompt: Prompt, sources: Sequence[Source], answer: Answer, *, top: int
) -> list[Ablation]:
    """Remove each of the first `top` sentences of an answer's evidence, and one from the middle of the rest."""
    if not answer.text:
        raise OptionError(f"answer to {answer.question!r} is empty; there is nothing to prove")
    tested = list(answer.evidence[:top])
    behind = answer.evidence[top:]
    if behind:
        tested.append(behind[len(behind) // 2])
    ordered = in_order(sources, tested)

    def said(evidence: Sequence[Evidence]) -> float:
        return log_probability(loaded, prompt, joined(evidence)[0], answer.question.strip(), answer.text)

    whole = said(ordered)
    return [
        Ablation(item, whole - said([other for other in ordered if other is not item]), compared=number >= top)
        for number, item in enumerate(tested)
    ]
