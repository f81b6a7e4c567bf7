"""The tokens of text that is data: none of its words becomes a token with a meaning of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from keywise.errors import ModelError
from keywise.util.foreign_errors import translate_errors

if TYPE_CHECKING:
    from keywise.models.loading import LoadedModel

Tokens = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and the span of each in characters."""


class TextTokenizer:
    """A model's tokenizer without its added tokens, special or not.

    A chat template speaks in added tokens such as ``<|im_end|>`` and ``<tool_call>``. In a text they are encoded as
    other words are. Added tokens of spaces alone stay: they mean what the text says.

    Parameters
    ----------
    loaded
        A language model with a fast tokenizer.

    Raises
    ------
    ModelError
        The tokenizer is not a fast one.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._name = loaded.name
        self._tokenizer: Any = loaded.tokenizer
        self._backend: Any = getattr(loaded.tokenizer, "backend_tokenizer", None)
        if self._backend is None:
            rule = "must have a fast tokenizer (tokenizer.json), which character offsets need"
            raise ModelError("model", rule, got=loaded.name, remedy="choose another model")
        self._reserved = frozenset(
            number
            for number, token in self._backend.get_added_tokens_decoder().items()
            if token.special or token.content.replace("▁", " ").strip()
        )
        self._embeddings = _count_embeddings(loaded.model)

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a text.

        Parameters
        ----------
        text
            Any text.

        Raises
        ------
        ModelError
            The tokenizer's vocabulary writes a part of the text as one of the template's tokens, or the model has no
            embedding of a token.
        """
        tokens = self._encode(text, split_special_tokens=True)
        if not self._reserved.isdisjoint(tokens[0]):
            tokens = self._encode_without_added(text)
        self._check_embeddings(tokens[0])
        return tokens

    def encode_template(self, text: str) -> list[int]:
        """Return the tokens of a part of a chat template, which may be added tokens.

        Parameters
        ----------
        text
            What the template writes.

        Raises
        ------
        ModelError
            The model has no embedding of a token.
        """
        token_ids, _ = self._encode(text, split_special_tokens=False)
        self._check_embeddings(token_ids)
        return token_ids

    def _encode(self, text: str, *, split_special_tokens: bool) -> Tokens:
        with translate_errors(self._make_error):
            encoded = self._tokenizer(
                text,
                add_special_tokens=False,
                split_special_tokens=split_special_tokens,
                return_offsets_mapping=True,
                verbose=False,
            )
        return encoded["input_ids"], encoded["offset_mapping"]

    def _make_error(self, message: str) -> ModelError:
        return ModelError(
            "model", f"{self._name!r} has a tokenizer that fails: {message}", remedy="choose another model"
        )

    def _check_embeddings(self, token_ids: Sequence[int]) -> None:
        """Raise an error unless the model has an embedding of every token."""
        highest = max(token_ids, default=0)
        if self._embeddings is not None and highest >= self._embeddings:
            rule = f"must have an embedding of every token of its tokenizer, got token {highest:,}"
            raise ModelError("model", rule, remedy=f"{self._name!r} has {self._embeddings:,} embeddings")

    def _encode_without_added(self, text: str) -> Tokens:
        with translate_errors(self._make_error):
            encoding = self._plain.encode(text, add_special_tokens=False)
        unwanted = self._reserved.intersection(encoding.ids)
        if unwanted:  # the vocabulary itself has the words of these tokens
            words = sorted(self._backend.id_to_token(number) for number in unwanted)
            encoding = self._make_splitting(words).encode(text, add_special_tokens=False)
            if not self._reserved.isdisjoint(encoding.ids):
                rule = f"must have a tokenizer that writes {words[0]!r} in a text as text"
                raise ModelError("model", rule, got=self._name, remedy="choose another model")
        return encoding.ids, encoding.offsets

    @cached_property
    def _plain(self) -> Any:
        """The same model, normaliser and rules of splitting, without added tokens; they share memory."""
        return self._make_plain()

    def _make_plain(self) -> Any:
        from tokenizers import Tokenizer  # noqa: PLC0415 - heavy

        plain = Tokenizer(self._backend.model)
        for part in ("normalizer", "pre_tokenizer", "post_processor"):
            if getattr(self._backend, part) is not None:
                setattr(plain, part, getattr(self._backend, part))
        return plain

    def _make_splitting(self, words: list[str]) -> Any:
        """Return a tokenizer that splits some words of the vocabulary behind their first character."""
        from tokenizers import Regex, pre_tokenizers  # noqa: PLC0415 - heavy

        splitting = self._make_plain()
        pattern = "|".join(f"{re.escape(word[0])}(?={re.escape(word[1:])})" for word in words)
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        first = splitting.pre_tokenizer
        splitting.pre_tokenizer = split if first is None else pre_tokenizers.Sequence([first, split])
        return splitting


def _count_embeddings(model: Any) -> int | None:
    """Return the number of tokens that a model has an embedding of; None if it is unknown."""
    weight = getattr(model.get_input_embeddings(), "weight", None)
    return None if weight is None else int(weight.shape[0])
