"""A loaded model with documents or a library, to which questions are put."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console

from keywise.cli.replies import Reply
from keywise.cli.terminal import show_progress
from keywise.documents import Ablation, Document, Reader, Source
from keywise.documents.follow_up import Turn, find_context, resolve_follow_up, select_told
from keywise.documents.reader import MAX_WINDOWS
from keywise.errors import ModelError, OptionError
from keywise.library.answer import choose_passages_for
from keywise.models import SentenceEncoder, find_model
from keywise.models.loading import LoadedModel, load_model
from keywise.util.terminal_text import replace_controls

if TYPE_CHECKING:
    from keywise.library import Library
    from keywise.util.progress import Progress

ABLATED_SENTENCES = 3


@dataclass(frozen=True)
class AskOptions:
    """Options of `keywise ask` that hold for every question.

    Attributes
    ----------
    model
        Name of the model; None for the default.
    answer_model
        Name of the model that words answers; None for that of the environment, or none.
    dtype
        Data type of the model.
    windows
        Most windows of a long document to read for one question; 0 for all.
    keep
        Whether to store prefilled documents and to reuse stored ones.
    semantic
        Whether to rank by a sentence encoder too; None if its package is installed.
    top
        Number of sentences to show.
    max_tokens
        Longest answer.
    sentences
        Number of sentences to quote from.
    ablate
        Whether to measure how much each answer depends on its sentences.
    tells_model
        Whether to say which model is the default.
    """

    model: str | None = None
    answer_model: str | None = None
    dtype: str | None = None
    windows: int = MAX_WINDOWS
    keep: bool = True
    semantic: bool | None = None
    top: int = 5
    max_tokens: int = 128
    sentences: int | None = None
    ablate: bool = False
    tells_model: bool = True


class Session:
    """A model that answers questions about documents, or about a library.

    Parameters
    ----------
    options
        Options of the command.
    sources
        The documents; read by the model once, at the first question.
    library
        The library to ask instead, or None.

    Attributes
    ----------
    options : AskOptions
        Options of the command.
    console, notices : rich.console.Console
        Standard output, and standard error for notices.
    """

    def __init__(self, options: AskOptions, sources: Sequence[Source], library: Library | None) -> None:
        self.options = options
        self.console = Console()
        self.notices = Console(stderr=True)
        self._sources = sources
        self._library = library
        self._conversions: tempfile.TemporaryDirectory[str] | None = None
        self._document: Document | None = None
        self._loaded, self._reader = self._load(options.model)
        is_default = options.model is None and find_model().origin != "KEYWISE_MODEL"
        if options.tells_model and is_default and not self._reader.has_answer_model:
            self.notify(f"Model: {self._loaded.name}, the default; a larger one answers better: see --answer-model")

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._loaded.name

    def notify(self, line: str) -> None:
        """Print a line on standard error."""
        self.notices.print(replace_controls(line), style="dim", markup=False, highlight=False, soft_wrap=True)

    def load(self, model: str) -> None:
        """Answer with another model from now on.

        Raises
        ------
        KeywiseError
            It cannot be loaded; the model stays as it is.
        """
        self._loaded, self._reader = self._load(model)
        self._document = None

    def read(self) -> Document:
        """Return the documents, read by the model."""
        if self._document is None:
            self._document = self._read(self._sources)
        return self._document

    def ask(
        self, question: str, *, replies: Sequence[Reply] = (), on_token: Callable[[str], None] | None = None
    ) -> Reply:
        """Answer a question.

        Parameters
        ----------
        question
            The question.
        replies
            The conversation so far, in which a follow-up is understood.
        on_token
            Called with each new part of the answer.

        Raises
        ------
        KeywiseError
            The question cannot be answered.
        """
        turns = [Turn(reply.answer.question, reply.answer.text) for reply in replies]
        context = find_context(question, turns)
        resolved = resolve_follow_up(question, turns)
        passages = [] if self._library is None else choose_passages_for(self._library, resolved, self._loaded)
        document = self._read([passage.source for passage in passages]) if passages else self.read()
        quoted = [reply.quoted for reply in replies[len(replies) - len(context) :] if reply.quoted is not None]
        told = select_told(document, question, quoted)
        options = self.options
        with self._show_reading(document) as progress:
            answer = document.ask(
                question,
                ranked_as=resolved if context else None,
                told=told,
                max_tokens=options.max_tokens,
                sentences=options.sentences,
                on_token=on_token,
                progress=progress,
            )
        if answer.windows > 1:
            self._tell_reading(document)
            if answer.read_windows < answer.windows:
                self.notify(f"The answer is from {answer.read_windows} of {answer.windows} windows: see --windows")
        reply = Reply(answer, document, passages)
        return replace(reply, ablations=self.ablate(reply)) if options.ablate and answer.text else reply

    def ablate(self, reply: Reply) -> list[Ablation]:
        """Return how much less likely an answer is without each of its best sentences."""
        if not reply.answer.text:
            raise OptionError("answer", "must not be empty", got=reply.answer.text)
        return reply.document.ablate(reply.answer, top=ABLATED_SENTENCES)

    def _load(self, model: str | None) -> tuple[LoadedModel, Reader]:
        options = self.options
        try:
            loaded = load_model(model, dtype=options.dtype, pack_linear=True, status=self.notify)
        except ModelError as error:
            if options.keep or error.argument != "cache_dir":
                raise
            # Lives as long as the session: the model's files are read again for its fingerprint.
            self._conversions = tempfile.TemporaryDirectory(prefix="keywise-")
            self.notify("The cache folder cannot be written, so the model's tokenizer is not kept")
            loaded = load_model(
                model, dtype=options.dtype, pack_linear=True, cache_dir=self._conversions.name, status=self.notify
            )
        encode = SentenceEncoder().encode if options.semantic else options.semantic is None
        reader = Reader(
            loaded,
            keep=options.keep,
            encode=encode,
            answer_model=options.answer_model,
            max_windows=options.windows,
            status=self.notify,
        )
        return loaded, reader

    def _read(self, sources: Sequence[Source]) -> Document:
        with show_progress(self.notices, "Reading", "tokens") as progress:
            document = self._reader.read(sources, ahead=False, progress=progress)
        self._tell_reading(document)
        return document

    def _show_reading(self, document: Document) -> AbstractContextManager[Progress | None]:
        """Return what shows the progress of a question, which reads windows of a long document."""
        windows = len(document.windows)
        if windows == 1:
            return nullcontext()
        self.notify(f"Reading {min(windows, self.options.windows or windows)} of {windows} windows for the question")
        return show_progress(self.notices, "Reading", "tokens")

    def _tell_reading(self, document: Document) -> None:
        """Tell how much was read; of a document of several windows nothing is read before a question."""
        if document.read_tokens:
            computed_tokens = document.read_tokens - document.reused_tokens
            self.notify(f"Computed {computed_tokens:,} tokens, reused {document.reused_tokens:,}")
