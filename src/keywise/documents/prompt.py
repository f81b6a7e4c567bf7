"""The place of document and question in a model's chat template, and their tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.chat_template import render_chat
from keywise.documents.rendering import render_sentences
from keywise.documents.text_tokenizer import TextTokenizer
from keywise.errors import ModelError

if TYPE_CHECKING:
    from keywise.documents.files import Source
    from keywise.models.loading import LoadedModel

BETWEEN_SOURCES: Final = "\n\n"
BEFORE_QUESTION: Final = "\n\nQuestion: "
QUOTE_MARK: Final = '"'
# An answer that begins so is short and in the document's own words.
ANSWER_START: Final = f"The answer is {QUOTE_MARK}"

# Put into the template to find where it places the two.
_DOCUMENT = "[the document]"
_QUESTION = "[the question]"


@dataclass(frozen=True, eq=False)
class DocumentTokens:
    """The tokens of a document's sources.

    Attributes
    ----------
    token_ids
        The tokens, without those of the template.
    sentence_ids
        int array [tokens], the sentence of each token, -1 for none.
    sentences
        Number of sentences.
    text_sha256
        Digest of the texts, from `Prompt.digest_sources`.
    """

    token_ids: list[int]
    sentence_ids: NDArray[np.intp]
    sentences: int
    text_sha256: bytes

    @cached_property
    def sentence_tokens(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The tokens that belong to a sentence, and the sentence of each."""
        inside = self.sentence_ids >= 0
        return np.array(self.token_ids)[inside], self.sentence_ids[inside]


@dataclass(frozen=True)
class QuestionTokens:
    """The tokens that follow a document: question, template, and the beginning of an answer.

    Attributes
    ----------
    text
        The question.
    token_ids
        All tokens after the document.
    question
        Slice of `token_ids` with the question.
    answer_start
        Slice of `token_ids` with the beginning of an answer; empty without one.
    """

    text: str
    token_ids: list[int]
    question: slice
    answer_start: slice


class Prompt:
    """A model's chat template, split at the places of document and question.

    The document comes first, so that its keys and values serve every question.

    Parameters
    ----------
    loaded
        A language model with a chat template.

    Attributes
    ----------
    before_ids : list of int
        Tokens before the document.
    end_ids : set of int
        Tokens that end an answer.
    answer_start_ids : list of int
        Tokens of the beginning of a quoted answer.

    Raises
    ------
    ModelError
        The model has no chat template, or one that changes a message.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._tokenizer: Any = loaded.tokenizer
        self._text_tokenizer = TextTokenizer(loaded)
        message = f"{_DOCUMENT}{BEFORE_QUESTION}{_QUESTION}"
        rendered = _render_template(loaded, message)
        parts = rendered.split(message)
        if len(parts) != 2 or any(rendered.count(word) != 1 for word in (_DOCUMENT, _QUESTION)):
            rule = "must have a chat template that repeats a message once and unchanged"
            raise ModelError("model", rule, got=loaded.name, remedy="choose another model")
        before, after = parts
        self.before_ids = self._tokenize(before, special=True)
        self._between_ids = self._tokenize(BEFORE_QUESTION, special=False)
        self.after_ids = self._tokenize(after, special=True)
        self.end_ids = _find_end_ids(loaded)
        self.answer_start_ids = self._tokenize(ANSWER_START, special=False)

    @cached_property
    def quote_mark_ids(self) -> list[int]:
        """Tokens that contain a quotation mark.

        A search of the vocabulary takes as long as a question's forward pass, so a stored document sets them.
        """
        # One by one: that is faster than a dict of the tokenizer's whole vocabulary.
        id_to_token = self._tokenizer.backend_tokenizer.id_to_token
        return [number for number in range(len(self._tokenizer)) if QUOTE_MARK in (id_to_token(number) or "")]

    @property
    def quote_end_ids(self) -> list[int]:
        """Tokens that end a quoted answer: those with a quotation mark, and `end_ids`."""
        return sorted({*self.quote_mark_ids, *self.end_ids})

    def encode_document(self, sources: Sequence[Source]) -> DocumentTokens:
        """Return the tokens of texts read as one document."""
        token_ids: list[int] = []
        sentence_ids: list[NDArray[np.intp]] = []
        sentences = 0
        separator_ids = self._tokenize(BETWEEN_SOURCES, special=False)
        for source in sources:
            if token_ids:
                token_ids += separator_ids
                sentence_ids.append(np.full(len(separator_ids), -1))
            text, spans = render_sentences(source)
            source_ids, offsets = self.encode_text(text)
            token_ids += source_ids
            numbers = assign_sentences(offsets, spans)
            sentence_ids.append(np.where(numbers < 0, -1, numbers + sentences))
            sentences += len(spans)
        return DocumentTokens(token_ids, np.concatenate(sentence_ids), sentences, self.digest_sources(sources))

    def digest_sources(self, sources: Sequence[Source]) -> bytes:
        """Return the SHA-256 of all that determines the tokens of a document."""
        texts = [render_sentences(source) for source in sources]
        return hashlib.sha256(json.dumps([self.before_ids, BETWEEN_SOURCES, texts]).encode()).digest()

    def encode_question(self, question: str, *, start_answer: bool) -> QuestionTokens:
        """Return the tokens that follow a document for a question.

        Parameters
        ----------
        question
            The question.
        start_answer
            Whether to append the beginning of a quoted answer, for the copying heads.
        """
        question_ids = self._tokenize(question.strip(), special=False)
        start_ids = self.answer_start_ids if start_answer else []
        first = len(self._between_ids)
        last = first + len(question_ids)
        answer_start = last + len(self.after_ids)
        token_ids = [*self._between_ids, *question_ids, *self.after_ids, *start_ids]
        return QuestionTokens(question, token_ids, slice(first, last), slice(answer_start, len(token_ids)))

    def encode_text(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens of a text, and the span of each in characters."""
        return self._text_tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of an answer's tokens."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        # Only the template may contain tokens with a meaning of their own: "<|im_end|>" in a document is text.
        if not special:
            return self._text_tokenizer.encode(text)[0]
        return self._text_tokenizer.encode_template(text)


def _render_template(loaded: LoadedModel, content: str) -> str:
    """Return a user's message as the model's chat template writes it, before the beginning of an answer."""
    tokenizer = loaded.tokenizer
    if not tokenizer.chat_template:
        remedy = "choose one that is trained to answer (instruct, chat)"
        raise ModelError("model", "must have a chat template", got=loaded.name, remedy=remedy)
    variables = {
        **{name: _to_text(token) for name, token in tokenizer.special_tokens_map.items()},
        "messages": [{"role": "user", "content": content}],
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
    }
    try:
        template = tokenizer.get_chat_template()
        if not isinstance(template, str):
            raise TypeError("it is no text")
        return render_chat(template, variables)
    except (ValueError, TypeError, KeyError) as error:
        rule = f"must have a chat template that renders a message; that of {loaded.name!r} fails: {error}"
        raise ModelError("model", rule, remedy="choose another model") from error


def _to_text(token: Any) -> Any:
    """Return a special token, or several, as strings."""
    return [str(each) for each in token] if isinstance(token, list | tuple) else str(token)


def _find_end_ids(loaded: LoadedModel) -> set[int]:
    """Return the tokens that end an answer."""
    eos_ids = getattr(loaded.model.generation_config, "eos_token_id", None)
    ids = [*(eos_ids if isinstance(eos_ids, list) else [eos_ids]), loaded.tokenizer.eos_token_id]
    for number in ids:
        if number is not None and type(number) is not int:
            raise ModelError("model", "must have an eos_token_id of integers", got=eos_ids)
    return set(ids) - {None}


def assign_sentences(offsets: Sequence[tuple[int, int]], sentences: Sequence[tuple[int, int]]) -> NDArray[np.intp]:
    """Return the sentence of each token by its character span, -1 for none.

    A token belongs to the first sentence that it overlaps, even if it begins with the space before the sentence.

    Parameters
    ----------
    offsets
        Character span of each token.
    sentences
        Character span of each sentence, in order.

    Returns
    -------
    int array [tokens]

    Examples
    --------
    >>> assign_sentences([(0, 2), (2, 5), (5, 6), (6, 9)], [(0, 5), (6, 9)]).tolist()
    [0, 0, -1, 1]
    """
    sentence_spans = np.asarray(sentences, dtype=np.intp).reshape(-1, 2)
    token_spans = np.asarray(offsets, dtype=np.intp).reshape(-1, 2)
    numbers = np.searchsorted(sentence_spans[:, 1], token_spans[:, 0], side="right")
    starts = np.append(sentence_spans[:, 0], np.iinfo(np.intp).max)
    return np.where(token_spans[:, 1] > starts[numbers], numbers, -1)
