"""Where the document and the question stand in a model's chat template, and their tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.evidence import sentence_of_token
from keywise.errors import ModelError

if TYPE_CHECKING:
    from keywise.documents.files import Source
    from keywise.documents.store import Found
    from keywise.models.loading import LoadedModel

BETWEEN_SOURCES: Final = "\n\n"
BEFORE_QUESTION: Final = "\n\nQuestion: "
QUOTE: Final = '"'
# Begun for the model, an answer is short and in the text's own words.
ANSWER_START: Final = f"The answer is {QUOTE}"

_DOCUMENT, _QUESTION = "[the document stands here]", "[the question stands here]"


@dataclass(frozen=True, eq=False)
class Encoded:
    """The tokens of a document.

    Attributes
    ----------
    ids
        Their ids.
    sentence_of
        int array [tokens], for each the number of its sentence, -1 for none.
    text_sha256
        Digest of the texts that they are, as `Prompt.text_sha256` gives it.
    found
        The reading on disk that they are taken from; None if they are new.
    """

    ids: list[int]
    sentence_of: NDArray[np.intp]
    text_sha256: bytes
    found: Found | None = None


class Prompt:
    """A model's chat template cut in three: before the document, between document and question, after the question.

    The document comes first, so that what the model has read of it serves every question.

    Attributes
    ----------
    before_ids
        Tokens before the document.
    end_ids
        Tokens that end an answer.
    start_ids
        Tokens of the beginning of a quoted answer.

    Raises
    ------
    ModelError
        If the model has no chat template, or one that does not keep a message as it is.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._tokenizer: Any = loaded.tokenizer
        if not loaded.tokenizer.chat_template:
            raise ModelError(
                f"model {loaded.name!r} has no chat template; choose one that is trained to answer (instruct, chat)"
            )
        message = {"role": "user", "content": _DOCUMENT + BEFORE_QUESTION + _QUESTION}
        rendered: str = loaded.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        before, found_document, rest = rendered.partition(_DOCUMENT)
        between, found_question, after = rest.partition(_QUESTION)
        if not found_document or not found_question:
            raise ModelError(f"the chat template of model {loaded.name!r} changes messages; choose another model")
        self.before_ids = self._ids(before, special=True)
        self._between_ids = self._ids(between, special=False)
        self._after_ids = self._ids(after, special=True)
        ends = loaded.model.generation_config.eos_token_id
        self.end_ids = {*(ends if isinstance(ends, list) else [ends]), loaded.tokenizer.eos_token_id} - {None}
        self.start_ids = self._ids(ANSWER_START, special=False)

    @cached_property
    def quotes(self) -> list[int]:
        """Tokens with a quotation mark in them. A kept document brings them: finding them takes as long as a pass."""
        # One by one, which takes less time than the tokenizer's whole vocabulary as a dict.
        token_of = self._tokenizer.backend_tokenizer.id_to_token
        return [number for number in range(len(self._tokenizer)) if QUOTE in (token_of(number) or "")]

    @property
    def quote_ids(self) -> list[int]:
        """Tokens that end a quoted answer: those with a quotation mark in them, and `end_ids`."""
        return sorted({*self.quotes, *self.end_ids})

    def document(self, sources: Sequence[Source]) -> Encoded:
        """Give the tokens of texts read as one document."""
        ids: list[int] = []
        sentence_of: list[NDArray[np.intp]] = []
        sentences = 0
        joint = self._ids(BETWEEN_SOURCES, special=False)
        for source in sources:
            if ids:
                ids += joint
                sentence_of.append(np.full(len(joint), -1))
            encoded = self._encode(source.text, special=False, return_offsets_mapping=True)
            ids += encoded["input_ids"]
            number = sentence_of_token(encoded["offset_mapping"], source.sentences)
            sentence_of.append(np.where(number < 0, -1, number + sentences))
            sentences += len(source.sentences)
        return Encoded(ids, np.concatenate(sentence_of), self.text_sha256(sources))

    def text_sha256(self, sources: Sequence[Source]) -> bytes:
        """Digest all that the tokens before and of a document, and the numbers of their sentences, depend on."""
        texts = [(source.text, source.sentences) for source in sources]
        return hashlib.sha256(json.dumps([self.before_ids, BETWEEN_SOURCES, texts]).encode()).digest()

    def question_ids(self, question: str, *, started: bool = False) -> list[int]:
        """Give the tokens of a question's turn: all that follows the document, with a quoted answer begun or not."""
        asked = [*self._between_ids, *self._ids(question, special=False), *self._after_ids]
        return [*asked, *self.start_ids] if started else asked

    def asked_rows(self, ids: Sequence[int], *, started: bool = False) -> slice:
        """Give where in the tokens of a question's turn the question itself stands."""
        behind = len(self._after_ids) + (len(self.start_ids) if started else 0)
        return slice(len(self._between_ids), len(ids) - behind)

    def text_ids(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Give the tokens of a text, and for each its span in characters."""
        encoded = self._encode(text, special=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def text(self, ids: Sequence[int]) -> str:
        """Give the text of an answer's tokens."""
        decoded: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return decoded

    def _ids(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._encode(text, special=special)["input_ids"]
        return ids

    def _encode(self, text: str, *, special: bool, **options: bool) -> Any:
        # Only the template may speak in special tokens: "<|im_end|>" in a document is eight characters of text.
        return self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=not special, verbose=False, **options
        )
