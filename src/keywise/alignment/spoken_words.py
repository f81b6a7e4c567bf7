"""Tokens of a transcript as words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

UNSPACED_LANGUAGES: Final = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Codes of the languages that are written without spaces between words."""
_OPENING: Final = "\"'“¿([{-"
_CLOSING: Final = "\"'.。,，!！?？:：”)]}、"
_REPLACEMENT: Final = "\ufffd"


@dataclass(frozen=True)
class SpokenWord:
    """A word and its tokens.

    Attributes
    ----------
    text
        The word with its punctuation and the space in front of it.
    first, last
        Its first token, and the one after its last token.
    """

    text: str
    first: int
    last: int


def group_tokens(tokenizer: Any, tokens: Sequence[int], language: str | None) -> list[SpokenWord]:
    """Return the words of a transcript's tokens, punctuation joined to them.

    Parameters
    ----------
    tokenizer : transformers.WhisperTokenizer
        The model's tokenizer.
    tokens : sequence of int
        Tokens of text, without special ones.
    language : str or None
        Code of the language; those without spaces have a word for each character.
    """
    words: list[SpokenWord] = []
    for part in _split_characters(tokenizer, tokens):
        begins = not words or part.text.startswith(" ") or language in UNSPACED_LANGUAGES
        is_closing = bool(part.text) and all(character in _CLOSING for character in part.text)
        # An opening mark waits for its word.
        waits = bool(words) and _is_opening(words[-1].text)
        if words and (not begins or is_closing or (waits and not part.text.startswith(" "))):
            words[-1] = SpokenWord(words[-1].text + part.text, words[-1].first, part.last)
        else:
            words.append(part)
    return words


def _is_opening(text: str) -> bool:
    return bool(text.strip()) and all(character in _OPENING for character in text.strip())


def _split_characters(tokenizer: Any, tokens: Sequence[int]) -> list[SpokenWord]:
    """Return the shortest runs of tokens that hold whole characters."""
    parts = []
    first = 0
    for last in range(1, len(tokens) + 1):
        text = tokenizer.decode(list(tokens[first:last]), clean_up_tokenization_spaces=False)
        if _REPLACEMENT not in text or last == len(tokens):
            parts.append(SpokenWord(text, first, last))
            first = last
    return parts
