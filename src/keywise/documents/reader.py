"""Read documents once with a language model, then ask: answers, and the sentences that the question looked at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from keywise.documents.evidence import (
    NULL_QUESTION,
    Evidence,
    Mass,
    above_null,
    mass_of_tokens,
    middle_layers,
    rank_sentences,
)
from keywise.documents.files import CONVERTED_SUFFIXES, Source, has_words, read_file
from keywise.documents.prompt import Prompt
from keywise.documents.store import Found, Shelf, Store
from keywise.errors import DtypeError, FormatError, OptionError
from keywise.hf.models import LoadedModel, Status, load_model

CHUNK_TOKENS: Final = 512
ANSWER_TOKENS: Final = 128
# Kept free when a document is read, so that what could be read can also be asked about.
RESERVED_TOKENS: Final = 256

Progress = Callable[[int, int], None]
Readable = str | os.PathLike[str] | Source


@dataclass(frozen=True)
class Answer:
    """What a model answered, and which sentences the question looked at.

    Attributes
    ----------
    text
        The answer.
    evidence
        All sentences, the heaviest first.
    question
        The question as asked.
    model
        The model's name.
    complete
        Whether the model ended the answer itself; False if `max_tokens` cut it.
    document_tokens, answer_tokens
        Their lengths in tokens.
    reused_tokens
        How many of the document's tokens were not read this time, but taken from disk.
    """

    text: str
    evidence: list[Evidence]
    question: str
    model: str
    complete: bool
    document_tokens: int
    answer_tokens: int
    reused_tokens: int = 0


class Reader:
    """A language model that reads documents and answers questions about them.

    Parameters
    ----------
    model
        A folder with safetensors, a ``.gguf`` file, a hub id, or a model that `keywise.hf.models.load_model` gave.
        None takes the default; see `keywise.hf.models.find_model`. It must have a chat template.
    cache_dir
        Where what was read is kept, and a GGUF model after its conversion; default is ``KEYWISE_CACHE_DIR``, else
        keywise's folder in the user's cache.
    keep
        Whether to keep what is read on disk, and to use what is kept: the same text is not read again, and of a text
        whose end was changed only the end is. False neither writes nor looks at any document there.
    status
        Called with a line of text before every slow step of loading, and when something could not be kept.

    Raises
    ------
    ModelError
        If no model is found, or it cannot be loaded, has no chat template, or keywise cannot be its attention.

    Examples
    --------
    >>> from keywise.documents import Reader
    >>> reader = Reader()  # doctest: +SKIP
    >>> document = reader.read("The lamp was lit in 1862. Its keeper was Ann Low.")  # doctest: +SKIP
    >>> document.evidence("Who was the keeper?")[0].text  # doctest: +SKIP
    'Its keeper was Ann Low.'
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        keep: bool = True,
        status: Status | None = None,
    ) -> None:
        import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

        loaded = model if isinstance(model, LoadedModel) else load_model(model, cache_dir=cache_dir, status=status)
        keywise.hf.use(loaded.model)
        self._loaded = loaded
        self._prompt = Prompt(loaded)
        self._shelf = None
        if keep:
            made = keywise.hf.fingerprint(loaded.model, loaded.tokenizer, folder=loaded.folder, cache_dir=cache_dir)
            self._shelf = Shelf(Store(cache_dir, status), made, loaded.name, status)

    def read(self, source: Readable | Sequence[Readable], *, progress: Progress | None = None) -> Document:
        """Read a text, a file or several of them, once for all questions.

        Parameters
        ----------
        source
            A `pathlib.Path` (or other path object) is a file. A `str` is the text itself, never a file: text from
            strangers must not open one. A `Source` is a file or text read before. A sequence of these is read as one
            document, in order.
        progress
            Called after every chunk with the number of tokens read so far and the number of all.

        Raises
        ------
        FormatError
            If a file cannot be read, a text is empty, or a `str` is the path of a file.
        OptionError
            If the document is longer than the model's context.

        Examples
        --------
        >>> from pathlib import Path
        >>> from keywise.documents import Reader
        >>> document = Reader().read(Path("report.pdf"))  # doctest: +SKIP
        """
        items = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
        if not items:
            raise FormatError("source=[] names nothing to read; give at least one path or text")
        return Document(self._loaded, self._prompt, _sources(items), self._shelf, progress)


class Document:
    """Texts that a model has read. Made by `Reader.read`.

    Attributes
    ----------
    sources
        The texts, in the order in which they were read.
    tokens
        Length of the document in tokens.
    reused_tokens
        How many of them were taken from disk instead of being read.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: Prompt,
        sources: Sequence[Source],
        shelf: Shelf | None,
        progress: Progress | None,
    ) -> None:
        self._loaded, self._prompt = loaded, prompt
        config = loaded.model.config.get_text_config()
        self._context_tokens: int | None = getattr(config, "max_position_embeddings", None)
        self._layers = middle_layers(config.num_hidden_layers)
        self.sources = tuple(sources)
        ids, self._sentence_of = prompt.document(sources)
        self.tokens = len(ids)
        self._check_length()
        self._positions = range(len(prompt.before_ids), len(prompt.before_ids) + self.tokens)
        self._ids, self._shelf = [*prompt.before_ids, *ids], shelf
        self._read(progress)

    def evidence(self, question: str) -> list[Evidence]:
        """Rank all sentences by the attention that a question gives to them, without answering it.

        Raises
        ------
        OptionError
            If the question is empty, or too long for what the document leaves of the model's context.

        Examples
        --------
        >>> document.evidence("Who was the keeper?")[0].rank  # doctest: +SKIP
        1
        """
        _, _, mass = self._go_on(self._question_ids(question, answer_tokens=0))
        return rank_sentences(self.sources, self._sentence_of, above_null(mass, self._null), None)

    def ask(
        self, question: str, *, max_tokens: int = ANSWER_TOKENS, on_token: Callable[[str], None] | None = None
    ) -> Answer:
        """Answer a question about the document, and tell which sentences it looked at.

        The model always takes its likeliest next token, so that the same question gets the same answer.

        Parameters
        ----------
        question
            The question.
        max_tokens
            Longest answer, in tokens.
        on_token
            Called with each new piece of the answer's text.

        Raises
        ------
        OptionError
            If the question is empty, `max_tokens` is no positive integer, or both together do not fit into what the
            document leaves of the model's context.

        Examples
        --------
        >>> document.ask("Who was the keeper?").text  # doctest: +SKIP
        'The keeper was Ann Low.'
        """
        question_ids = self._question_ids(question, answer_tokens=_positive(max_tokens))
        cache, token, question_mass = self._go_on(question_ids)
        answer_ids: list[int] = []
        answer_mass = np.zeros(self.tokens)
        said = 0
        while token not in self._prompt.end_ids and len(answer_ids) < max_tokens:
            answer_ids.append(token)
            text = self._prompt.text(answer_ids)
            # A character can take several tokens; until it is whole it decodes to the replacement character.
            if on_token and not text.endswith("\ufffd"):
                on_token(text[said:])
                said = len(text)
            token, token_mass = self._step(cache, [token])
            answer_mass += token_mass
        return Answer(
            text=self._prompt.text(answer_ids).strip(),
            evidence=rank_sentences(
                self.sources,
                self._sentence_of,
                above_null(question_mass, self._null),
                above_null(answer_mass / len(answer_ids), self._null) if answer_ids else None,
            ),
            question=question,
            model=self._loaded.name,
            complete=token in self._prompt.end_ids,
            document_tokens=self.tokens,
            answer_tokens=len(answer_ids),
            reused_tokens=self.reused_tokens,
        )

    def ask_many(self, questions: Iterable[str], *, max_tokens: int = ANSWER_TOKENS) -> list[Answer]:
        """Answer several questions, one after the other, each as `ask` does.

        They share the document's keys and values, which none of them reads again or copies; what each adds is its own.

        Parameters
        ----------
        questions
            The questions.
        max_tokens
            Longest answer to each, in tokens.

        Raises
        ------
        DtypeError
            If `questions` is one text.
        OptionError
            As `ask` does, before any question is answered.

        Examples
        --------
        >>> [answer.text for answer in document.ask_many(["Who?", "When?"])]  # doctest: +SKIP
        ['Ann Low.', 'In 1862.']
        """
        if isinstance(questions, str):
            raise DtypeError(f"questions={questions!r} is one text; give a list of questions, or use ask()")
        asked = list(questions)
        for question in asked:
            self._question_ids(question, answer_tokens=_positive(max_tokens))
        return [self.ask(question, max_tokens=max_tokens) for question in asked]

    def _go_on(self, ids: list[int]) -> tuple[Any, int, Mass]:
        """Run tokens after the document; give the cache with them, and what `_step` gives.

        This is where a file is used first, so where damage in it shows: then the document is read again.
        """
        cache = self._cache.fork()
        try:
            return cache, *self._step(cache, ids)
        except FormatError as error:
            self._refuse(self._found, error)
        self._read(None)
        return self._go_on(ids)

    def _refuse(self, found: Found | None, error: FormatError) -> None:
        if self._shelf is None or found is None:
            raise error
        self._shelf.refuse(found.path, error)

    def _read(self, progress: Progress | None) -> None:
        """Read tokens, but for those that the shelf has, and what a null question looks at; keep what is new."""
        import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

        ids, shelf = self._ids, self._shelf
        found = shelf.find(ids) if shelf else None
        cache = keywise.hf.Cache(self._loaded.model.config, found and found.cache)
        cache.activate_past_recording()  # so that any text with the same beginning can go on from here
        cache.truncate(found.common_tokens if found else 0)
        done = cache.reused_tokens
        names = [source.name for source in self.sources]
        question = self._prompt.question_ids(NULL_QUESTION)
        calibration = {"null_question": np.array(question), "null_layers": np.array(self._layers)}
        kept = found is not None and found.tokens == len(ids) and _same(calibration, found.extra)
        if found and kept:
            null = found.extra["null_mass"]
        else:
            try:
                while done < len(ids):
                    self._forward(cache, ids[done : done + CHUNK_TOKENS])
                    done = min(done + CHUNK_TOKENS, len(ids))
                    if progress:
                        progress(done, len(ids))
                _, null = self._step(cache.fork(), question)
            except FormatError as error:
                self._refuse(found, error)
                return self._read(progress)
            except KeyboardInterrupt:
                if shelf and done > cache.reused_tokens:
                    cache.truncate(done)  # some layers may have taken more
                    shelf.keep(cache.kv, ids[:done], sources=names, extra={}, replacing=found)
                raise
        # Only now: an interrupted second reading leaves the document as it was.
        self._cache, self._null, self._found = cache, null, found
        self.reused_tokens = max(cache.reused_tokens - self._positions.start, 0)
        if shelf and not kept:
            extra = {**calibration, "null_mass": null}
            shelf.keep(cache.kv, ids, sources=names, extra=extra, replacing=found)

    def _step(self, cache: Any, ids: list[int]) -> tuple[int, Mass]:
        """Run tokens after those in the cache; give the likeliest next one and the mass on the document's tokens."""
        import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

        with keywise.hf.reading(self._loaded.model, layers=self._layers, kind="self") as readings:
            logits = self._forward(cache, ids)
        return int(logits.argmax()), mass_of_tokens(readings, self._positions)

    def _forward(self, cache: Any, ids: list[int]) -> Any:
        import torch  # noqa: PLC0415 - heavy

        with torch.no_grad():
            output = self._loaded.model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1]

    def _question_ids(self, question: str, *, answer_tokens: int) -> list[int]:
        if not isinstance(question, str):
            raise DtypeError(f"question={question!r} is no text; ask in words")
        if not question.strip():
            raise OptionError(f"question={question!r} is empty; ask in words")
        ids = self._prompt.question_ids(question.strip())
        if self._context_tokens is not None:
            left = self._context_tokens - self._positions.stop
            if len(ids) + answer_tokens > left:
                raise OptionError(
                    f"the question takes {len(ids)} tokens and its answer up to max_tokens={answer_tokens}, but the "
                    f"document leaves {left} of the model's {self._context_tokens}; ask shorter, or "
                    "allow a shorter answer"
                )
        return ids

    def _check_length(self) -> None:
        if self._context_tokens is None:
            return
        possible = self._context_tokens - len(self._prompt.before_ids) - RESERVED_TOKENS
        if self.tokens > possible:
            characters = sum(len(source.text) for source in self.sources)
            raise OptionError(
                f"the document is {self.tokens:,} tokens ({characters:,} characters) long, but model "
                f"{self._loaded.name!r} can read {possible:,} (about {characters * possible // self.tokens:,} "
                "characters of it); give a shorter document or a model with a longer context"
            )


def _positive(max_tokens: int) -> int:
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise OptionError(f"max_tokens={max_tokens!r} is no positive integer; give the longest answer in tokens")
    return max_tokens


def _same(wanted: Mapping[str, Any], kept: Mapping[str, Any]) -> bool:
    return all(name in kept and np.array_equal(kept[name], value) for name, value in wanted.items())


def _sources(items: Sequence[Readable]) -> list[Source]:
    sources = [
        _source(item, "text" if len(items) == 1 else f"text {number}") for number, item in enumerate(items, start=1)
    ]
    names = [source.name for source in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise FormatError(f"source names {twice[0]!r} twice; evidence could not tell which one it means: name it once")
    return sources


def _source(item: Readable, name: str) -> Source:
    if isinstance(item, os.PathLike):
        return read_file(item)
    if not isinstance(item, str | Source):
        raise DtypeError(f"source={item!r} is neither a path nor a text; give a pathlib.Path, a str or a Source")
    if not has_words(item if isinstance(item, str) else item.text):
        raise FormatError(f"source={item!r} has no text in it; give a text, or a pathlib.Path for a file")
    if isinstance(item, Source):
        return item
    if _looks_like_path(item):
        raise FormatError(f"source={item!r} looks like a path, but a str is read as text; give pathlib.Path({item!r})")
    return Source(name, item)


def _looks_like_path(text: str) -> bool:
    if "\n" in text:
        return False
    suffix = os.path.splitext(text)[1].lower()
    named = os.sep in text or suffix in {*CONVERTED_SUFFIXES, ".txt", ".md", ".markdown"}
    return (named and len(text.split()) == 1) or os.path.exists(text)
