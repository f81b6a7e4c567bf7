"""Answers to questions of clients: documents are read once and stay in memory, conversations are understood."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from keywise.documents.document import ANSWER_TOKENS
from keywise.documents.files import Source, replace_source
from keywise.documents.follow_up import Turn, find_context, resolve_follow_up, select_told
from keywise.library.answer import choose_passages_for
from keywise.library.passages import locate_evidence
from keywise.server.api_errors import ApiError
from keywise.server.document_store import DocumentStore
from keywise.server.settings import Limits
from keywise.server.unsupported import remove_note

if TYPE_CHECKING:
    from keywise.documents import Answer, Document, Evidence, Reader
    from keywise.documents.generation import Sampling
    from keywise.library import Library
    from keywise.library.passages import Passage
    from keywise.server.model_queue import Job


@dataclass(frozen=True)
class Question:
    """A question of a client.

    Attributes
    ----------
    text
        The question.
    turns
        The conversation so far.
    documents
        Identifiers of the documents to ask; empty for those of the server.
    library
        Whether to ask the server's library.
    max_tokens, sentences, sampling, stop
        As for `keywise.documents.Document.ask`.
    """

    text: str
    turns: tuple[Turn, ...] = ()
    documents: tuple[str, ...] = ()
    library: bool = False
    max_tokens: int = ANSWER_TOKENS
    sentences: int | None = None
    sampling: Sampling | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class AskedDocument:
    """A document that was asked.

    Attributes
    ----------
    id
        Its identifier; None for a document of a library.
    title
        Its name.
    """

    id: str | None
    title: str


@dataclass(frozen=True)
class Reply:
    """An answer and what it was found in.

    Attributes
    ----------
    answer
        The answer. For a library its evidence names documents and the characters in them.
    documents
        The documents that were asked; for a library those of the passages that were read.
    sources
        Their texts; for a library the passages.
    prompt_tokens
        Number of tokens that the model read before the answer.
    cached_tokens
        Number of these that were not computed for this question.
    read_answer
        The answer with evidence that names `sources`.
    passages
        The passages of a library; empty for documents.
    """

    answer: Answer
    documents: Sequence[AskedDocument]
    sources: Sequence[Source]
    prompt_tokens: int
    cached_tokens: int
    read_answer: Answer
    passages: Sequence[Passage] = field(default=())

    def find_document(self, item: Evidence) -> int:
        """Return the number of the document that a sentence stands in."""
        names = [each.title for each in self.documents] if self.passages else [each.name for each in self.sources]
        return names.index(item.source)

    def quote(self, item: Evidence) -> str:
        """Return the characters of a sentence."""
        if self.passages:
            return item.text
        return self.sources[self.find_document(item)].text[item.start : item.end]


class AnsweringService:
    """Answers questions with one model. Its methods run in the model's thread, one at a time.

    Parameters
    ----------
    reader
        The model.
    store
        The documents of clients.
    limits
        Most of what is accepted.
    documents
        Identifiers of the documents that are asked where a question names none.
    library
        The library that is asked where there are no such documents; or None.
    sentences
        Number of best sentences to quote from where a question names none; 0 writes answers, None is as tuned.
    """

    def __init__(
        self,
        reader: Reader,
        store: DocumentStore,
        limits: Limits,
        *,
        documents: Sequence[str] = (),
        library: Library | None = None,
        sentences: int | None = None,
    ) -> None:
        self.reader = reader
        self.store = store
        self.limits = limits
        self.documents = tuple(documents)
        self.library = library
        self.sentences = sentences
        self._prefilled: OrderedDict[tuple[str, ...], Document] = OrderedDict()

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self.reader.evidence_model.loaded.name

    def check_question(self, question: Question) -> None:
        """Raise if a question cannot be asked, before it waits for the model.

        Parameters
        ----------
        question
            The question.

        Raises
        ------
        ApiError
            It is empty or too long, names a document that is not here, or there is nothing to ask.
        """
        if not question.text.strip():
            raise ApiError(400, "The last message must have a question in it.", "messages", "empty_question")
        if len(question.text) > self.limits.question_characters:
            rule = f"A question must have at most {self.limits.question_characters:,} characters"
            message = f"{rule}; send a long text as a document."
            raise ApiError(400, message, "messages", "context_length_exceeded")
        if not 1 <= question.max_tokens <= self.limits.answer_tokens:
            message = f"It must be between 1 and {self.limits.answer_tokens:,}, got {question.max_tokens}."
            raise ApiError(400, message, "max_tokens", "invalid_value")
        if question.library and self.library is None:
            raise ApiError(400, "This server has no library; start it with --library.", "keywise", "no_library")
        for document_id in self.choose_documents(question):
            self.store.get(document_id)

    def choose_documents(self, question: Question) -> tuple[str, ...]:
        """Return the identifiers of the documents that a question is about; none for a library.

        Parameters
        ----------
        question
            The question.

        Raises
        ------
        ApiError
            There is nothing to ask.
        """
        if question.library:
            return ()
        documents = tuple(dict.fromkeys(question.documents or self.store.select_kept(self.documents)))
        if not documents and self.library is None:
            reason = "the server was started without any"
            if self.documents:
                reason = "those that the server was started with were removed"
            message = f"No document is named, and {reason}: send one as a file."
            raise ApiError(400, message, "messages", "no_document")
        return documents

    def read(self, documents: Sequence[str], job: Job) -> Document:
        """Return documents that the model has read.

        Parameters
        ----------
        documents
            Their identifiers.
        job
            Told the progress.

        Raises
        ------
        ApiError
            A document is not here.
        KeywiseError
            A document cannot be read.
        """
        key = tuple(documents)
        self._forget_removed()
        document = self._prefilled.pop(key, None)
        if document is None:
            sources = self.load_sources(documents)
            document = self.reader.read(sources, ahead=False, progress=job.report_progress)
        self._prefilled[key] = document
        return document

    def load_sources(self, documents: Sequence[str]) -> list[Source]:
        """Return the texts of documents, with names that differ.

        Parameters
        ----------
        documents
            Their identifiers.
        """
        sources: list[Source] = []
        names: set[str] = set()
        for document_id in documents:
            source = self.store.read_source(document_id)
            name = make_unique(source.name, names)
            names.add(name)
            sources.append(replace_source(source, name=name))
        return sources

    def answer(self, question: Question, job: Job) -> Reply:
        """Answer a question.

        Parameters
        ----------
        question
            The question, checked by `check_question`.
        job
            Told progress and the answer's text.

        Raises
        ------
        ApiError
            A document is not here any more.
        KeywiseError
            The question cannot be answered.
        """
        documents = self.choose_documents(question)
        turns = [replace(turn, answer=remove_note(turn.answer)) for turn in question.turns]
        context = find_context(question.text, turns)
        resolved = resolve_follow_up(question.text, turns)
        passages: list[Passage] = []
        was_read = documents in self._prefilled
        if documents:
            document = self.read(documents, job)
        else:
            passages = self._choose_passages(resolved)
            document = self.reader.read([each.source for each in passages], ahead=False, progress=job.report_progress)
        cached_before = {id(window): was_read and window.context.is_prefilled for window in document.windows}
        told = select_told(document, question.text, _find_told(document, resolved, context)) if context else ()
        job.check()
        answer = document.ask(
            question.text,
            ranked_as=resolved if context else None,
            told=told,
            max_tokens=self._limit_answer(document, resolved, question.max_tokens),
            sentences=self.sentences if question.sentences is None else question.sentences,
            sampling=question.sampling,
            stop=question.stop,
            on_token=make_text_filter(job.report_text),
            progress=job.report_progress,
        )
        prompt_tokens, cached_tokens = self._count_tokens(document, question.text, cached_before)
        self._release_oldest()
        read_answer = answer
        if passages:
            answer = replace(answer, evidence=locate_evidence(answer.evidence, passages))
            titles = list(dict.fromkeys(passage.document for passage in passages))
            asked = [AskedDocument(None, title) for title in titles]
        else:
            asked = [AskedDocument(each, self.store.get(each).name) for each in documents]
        return Reply(answer, asked, document.sources, prompt_tokens, cached_tokens, read_answer, passages)

    def _forget_removed(self) -> None:
        """Drop documents from memory that are kept no more."""
        for key in [key for key in self._prefilled if self.store.select_kept(key) != key]:
            del self._prefilled[key]

    def _limit_answer(self, document: Document, question: str, max_tokens: int) -> int:
        """Return how long an answer may be: a client's limit is often larger than what fits into the context."""
        model = self.reader.evidence_model
        if model.max_document_tokens is None:
            return max_tokens
        question_tokens = len(model.prompt.encode_question(question, start_answer=True).token_ids)
        document_tokens = max(len(window.context.document.token_ids) for window in document.windows)
        return max(1, min(max_tokens, model.max_document_tokens - document_tokens - question_tokens))

    def _choose_passages(self, question: str) -> list[Passage]:
        library = self.library
        if library is None:
            raise ApiError(400, "This server has no library; start it with --library.", "keywise", "no_library")
        return choose_passages_for(library, question, self.reader.evidence_model.loaded)

    def _count_tokens(self, document: Document, question: str, cached_before: dict[int, bool]) -> tuple[int, int]:
        """Return how many tokens the model read before the answer, and how many of them were not computed for it."""
        prompt = self.reader.evidence_model.prompt
        tokens = len(prompt.encode_question(question, start_answer=False).token_ids) + len(prompt.before_ids)
        cached = 0
        for window in document.windows:
            if window.context.is_prefilled:
                window_tokens = len(window.context.document.token_ids)
                tokens += window_tokens
                cached += (
                    window_tokens if cached_before[id(window)] else min(window.context.reused_tokens, window_tokens)
                )
        return tokens, cached

    def _release_oldest(self) -> None:
        """Drop the longest unused documents while too many are in memory; the last one stays, without its windows."""
        while len(self._prefilled) > 1 and not self._fits():
            self._prefilled.popitem(last=False)
        if not self._fits():
            for document in self._prefilled.values():
                for window in document.windows:
                    window.context.release()

    def _fits(self) -> bool:
        tokens = sum(document.read_tokens for document in self._prefilled.values())
        return len(self._prefilled) <= self.limits.prefilled_documents and tokens <= self.limits.prefilled_tokens


def make_unique(name: str, names: set[str]) -> str:
    """Return a name that none of some others equals: evidence tells documents apart by their names.

    Parameters
    ----------
    name
        The name.
    names
        The others.

    Examples
    --------
    >>> make_unique("a.pdf", {"a.pdf", "a (2).pdf"})
    'a (3).pdf'
    """
    stem, dot, suffix = name.rpartition(".")
    number = 1
    unique = name
    while unique in names:
        number += 1
        unique = f"{stem} ({number}).{suffix}" if dot else f"{name} ({number})"
    return unique


def make_text_filter(report: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that passes on parts of a text without the blanks at its beginning and end.

    The parts together are then the text of the answer, in whose characters citations count.

    Parameters
    ----------
    report
        Called with the parts.

    Examples
    --------
    >>> parts = []
    >>> show = make_text_filter(parts.append)
    >>> for part in (" ", "It ", "rains. "):
    ...     show(part)
    >>> "".join(parts)
    'It rains.'
    """
    pending = ""
    has_begun = False

    def pass_on(part: str) -> None:
        nonlocal pending, has_begun
        text = pending + part
        if not has_begun:
            text = text.lstrip()
        shown = text.rstrip()
        pending = text[len(shown) :]
        has_begun = has_begun or bool(shown)
        report(shown)

    return pass_on


def _find_told(document: Document, resolved: str, context: Sequence[Turn]) -> list[Evidence]:
    """Return the sentences that earlier answers were quoted from: the best ones that contain their words."""
    wanted = [" ".join(turn.answer.split()) for turn in context]
    found: list[Evidence] = []
    if not any(wanted):
        return found
    evidence = document.evidence(resolved)
    for answer in filter(None, wanted):
        matching = (item for item in evidence if answer in " ".join(item.text.split()))
        found += [item for item in [next(matching, None)] if item is not None and item not in found]
    return found
