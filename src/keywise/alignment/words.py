"""Words of a text, and the tokens that belong to each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from keywise.errors import DtypeError, OptionError

SPACE: Final = "space"
UNICODE: Final = "unicode"
WORD_RULES: Final = (SPACE, UNICODE)


@dataclass(frozen=True)
class Words:
    """The words of a text.

    Attributes
    ----------
    text
        The text.
    spans
        Start and end of each word in it, in characters.

    Examples
    --------
    >>> from keywise.alignment.words import split_words
    >>> split_words("source", "It rained.").words
    ('It', 'rained.')
    """

    text: str
    spans: tuple[tuple[int, int], ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The words."""
        return tuple(self.text[start:end] for start, end in self.spans)

    @property
    def pieces(self) -> tuple[str, ...]:
        """Each word with the characters between it and the word before; a word without any begins with a space."""
        ends = [0, *(end for _, end in self.spans)]
        pieces = [self.text[before:end] for before, (_, end) in zip(ends, self.spans, strict=False)]
        return tuple(f" {piece}" if number == 0 else piece for number, piece in enumerate(pieces))


def split_words(argument: str, text: str | Sequence[str], rule: str = SPACE) -> Words:
    """Return the words of a text.

    Parameters
    ----------
    argument : str
        Name of the argument, for errors.
    text : str or sequence of str
        A text, or its words.
    rule : str
        How a text is split: ``"space"`` at white space, or ``"unicode"`` at the word boundaries of Unicode's annex 29,
        punctuation being words of its own.

    Raises
    ------
    DtypeError
        `text` is neither a string nor a sequence of strings.
    OptionError
        There are no words, a word is empty, or there is no such rule.

    Examples
    --------
    >>> split_words("source", "It rained.", "unicode").words
    ('It', 'rained', '.')
    """
    if rule not in WORD_RULES:
        raise OptionError("words", f"must be one of {', '.join(WORD_RULES)}", got=rule)
    if isinstance(text, str):
        spans = _find_spans(text, rule)
        words = Words(text, tuple(spans))
    elif isinstance(text, Sequence) and all(isinstance(word, str) for word in text):
        if not all(word.strip() for word in text):
            raise OptionError(argument, "must have no empty words", got=list(text))
        words = _join_words(text)
    else:
        raise DtypeError(argument, "must be a string or a list of words", got=text)
    if not words.spans:
        raise OptionError(argument, "must have at least one word", got=text)
    return words


def _find_spans(text: str, rule: str) -> list[tuple[int, int]]:
    if rule == SPACE:
        return [match.span() for match in re.finditer(r"\S+", text)]
    import regex

    # A zero-width match between two words ends one and begins the next.
    cuts = [match.start() for match in regex.finditer(r"(?w)\b", text)]
    spans = zip([0, *cuts], [*cuts, len(text)], strict=True)
    return [(start, end) for start, end in spans if text[start:end].strip()]


def _join_words(words: Sequence[str]) -> Words:
    spans, position = [], 0
    for word in words:
        spans.append((position, position + len(word)))
        position += len(word) + 1
    return Words(" ".join(words), tuple(spans))


@dataclass(frozen=True)
class WordTokens:
    """The tokens of a text's words.

    Attributes
    ----------
    ids
        All tokens.
    owners
        The number of each token's word.
    """

    ids: tuple[int, ...]
    owners: tuple[int, ...]


def encode_words(tokenizer: Any, words: Words, *, is_target: bool = False) -> WordTokens:
    """Return the tokens of words, each word encoded by itself with the space in front of it.

    No token then belongs to two words. Tokenizers that split at white space first encode a text in the same way.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        The model's.
    words : Words
        The words.
    is_target : bool
        Whether they are in the language that a translation model writes.
    """
    ids: list[int] = []
    owners: list[int] = []
    for number, piece in enumerate(words.pieces):
        encoded = encode_text(tokenizer, piece, is_target=is_target)
        ids += encoded
        owners += [number] * len(encoded)
    return WordTokens(tuple(ids), tuple(owners))


def encode_text(tokenizer: Any, text: str, *, is_target: bool = False, special: bool = False) -> list[int]:
    """Return the tokens of a text.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        The model's.
    text : str
        The text.
    is_target : bool
        Whether it is in the language that a translation model writes.
    special : bool
        Whether special tokens are added.
    """
    texts = {"text_target": text} if is_target else {"text": text}
    return [int(number) for number in tokenizer(**texts, add_special_tokens=special)["input_ids"]]


def find_special_tokens(tokenizer: Any, *, is_target: bool = False) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts in front of a text and behind it.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        The model's.
    is_target : bool
        Whether the text is in the language that a translation model writes.
    """
    text = "a"
    plain = encode_text(tokenizer, text, is_target=is_target)
    full = encode_text(tokenizer, text, is_target=is_target, special=True)
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return full, []
