"""How an answer is written: sampling of tokens, and texts that end it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keywise.errors import OptionError
from keywise.util.checks import check_float, check_int

ChooseToken = Callable[[Any, Sequence[int]], int]
"""Chooses the next token from logits [vocabulary] and the tokens so far."""


@dataclass(frozen=True)
class Sampling:
    """Random choice of an answer's tokens.

    Parameters
    ----------
    temperature
        Divisor of the logits, above 0.
    top_p
        Tokens are chosen from the most probable ones that together have this probability; above 0, at most 1.
    top_k
        Number of most probable tokens to choose from; 0 for all.
    seed
        Seed of the random numbers; None for another answer each time.

    Raises
    ------
    DtypeError
        A value is not a number.
    OptionError
        A value is out of range.

    Examples
    --------
    >>> from keywise.documents.generation import Sampling
    >>> Sampling(0.7, seed=1).top_p
    1.0
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if check_float("temperature", self.temperature) <= 0:
            raise OptionError("temperature", "must be above 0", got=self.temperature)
        if not 0 < check_float("top_p", self.top_p) <= 1:
            raise OptionError("top_p", "must be above 0 and at most 1", got=self.top_p)
        check_int("top_k", self.top_k, minimum=0)
        if self.seed is not None:
            check_int("seed", self.seed, minimum=-(2**63), maximum=2**63 - 1)


def make_token_chooser(sampling: Sampling | None) -> ChooseToken:
    """Return a function that chooses the next token: the most probable one, or a random one.

    Parameters
    ----------
    sampling
        How to choose; None for the most probable token.
    """
    if sampling is None:
        return lambda logits, _token_ids: int(logits.argmax())
    import torch  # noqa: PLC0415 - heavy
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper  # noqa: PLC0415

    warpers: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(float(sampling.top_p)))
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)

    def choose(logits: Any, token_ids: Sequence[int]) -> int:
        scores = logits[None].float()
        for warp in warpers:
            scores = warp(torch.tensor([list(token_ids)]), scores)
        # The largest score plus Gumbel noise is a sample of the softmax.
        noise = torch.empty_like(scores).exponential_(generator=generator).log()
        return int((scores - noise).argmax())

    return choose


@dataclass(frozen=True)
class StopTexts:
    """Texts that end an answer, which does not include them.

    Parameters
    ----------
    texts
        The texts.

    Raises
    ------
    OptionError
        A text is empty.

    Examples
    --------
    >>> from keywise.documents.generation import StopTexts
    >>> stop = StopTexts(("###",))
    >>> stop.find("It rains.### More"), stop.find_safe_end("It rains.#")
    ((9, '###'), 9)
    """

    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(self.texts):
            raise OptionError("stop", "must not have an empty text", got=list(self.texts))

    def find(self, text: str) -> tuple[int, str] | None:
        """Return where the first of the texts begins, and the text; None if there is none."""
        found = [(position, stop) for stop in self.texts if (position := text.find(stop)) >= 0]
        return min(found, default=None)

    def find_safe_end(self, text: str) -> int:
        """Return the end of the part that can be shown: what follows may be the beginning of one of the texts."""
        for stop in self.texts:
            for length in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    text = text[: len(text) - length]
                    break
        return len(text)
