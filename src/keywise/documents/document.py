"""A document that a model has prefilled: ranked sentences, answers and ablations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from keywise.documents.ablation import Ablation, ablate_evidence
from keywise.documents.answer import Answer, AnswerText, is_yes_no_question, quote_answer, write_answer
from keywise.documents.answer_model import word_answer
from keywise.documents.follow_up import put_last
from keywise.documents.generation import Sampling, StopTexts
from keywise.documents.ranking import Ranking, rank_document
from keywise.documents.scoring import forward_question
from keywise.errors import DtypeError, OptionError
from keywise.util.checks import check_int

if TYPE_CHECKING:
    from keywise.documents.evidence import Evidence
    from keywise.documents.files import Source
    from keywise.documents.prompt import QuestionTokens
    from keywise.documents.reader import Reader
    from keywise.documents.text_index import TextIndex
    from keywise.documents.windows import Window
    from keywise.util.progress import Progress

ANSWER_TOKENS: Final = 128


class Document:
    """Texts that a model has prefilled, made by `Reader.read`.

    Parameters
    ----------
    reader
        The reader that made it.
    sources
        The texts.
    windows
        One if the document fits into the model's context; others are prefilled when a question needs them.
    text_index
        The words of the texts.

    Attributes
    ----------
    reader : Reader
        The reader that made it.
    sources : tuple of Source
        The texts, in the order in which they were read.
    windows : tuple of Window
        Its windows.

    Examples
    --------
    >>> from keywise.documents import Reader
    >>> document = Reader().read("The lamp was lit in 1862. Its keeper was Ann Low.")  # doctest: +SKIP
    >>> document.ask("Who was the keeper?").text  # doctest: +SKIP
    'Ann Low'
    """

    def __init__(
        self, reader: Reader, sources: Sequence[Source], windows: Sequence[Window], text_index: TextIndex
    ) -> None:
        self.reader = reader
        self.sources = tuple(sources)
        self.windows = tuple(windows)
        self.text_index = text_index
        self._model = reader.evidence_model

    @property
    def tokens(self) -> int:
        """Length in tokens. Sentences in two windows count twice."""
        return sum(len(window.context.document.token_ids) for window in self.windows)

    @property
    def read_tokens(self) -> int:
        """Number of tokens in the windows that the last question, or reading, needed."""
        return sum(len(window.context.document.token_ids) for window in self._read_windows)

    @property
    def reused_tokens(self) -> int:
        """Number of these tokens that were loaded from the store instead of computed."""
        return sum(window.context.reused_tokens for window in self._read_windows)

    @property
    def _read_windows(self) -> list[Window]:
        return [window for window in self.windows if window.context.is_prefilled]

    def evidence(self, question: str, *, progress: Progress | None = None) -> list[Evidence]:
        """Rank the document's sentences by how likely they answer a question.

        Combines the attention of the question's tokens, BM25 and, if the reader has an encoder, cosine similarity.

        Parameters
        ----------
        question
            A question in natural language.
        progress
            Called with the number of tokens read and of all to read, if windows are read for the question.

        Returns
        -------
        list of Evidence
            One entry per sentence, best first. Their shares and `Answer.no_answer_share` sum to 1.

        Raises
        ------
        DtypeError
            The question is not a str.
        OptionError
            The question is empty, or does not fit into the model's context after the document.

        Examples
        --------
        >>> document.evidence("Who was the keeper?")[0].rank  # doctest: +SKIP
        1
        """
        return self._rank(self._encode_question(question, answer_tokens=0), progress=progress).evidence

    def ask(
        self,
        question: str,
        *,
        max_tokens: int = ANSWER_TOKENS,
        sentences: int | None = None,
        ranked_as: str | None = None,
        told: Collection[Evidence] = (),
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        on_token: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> Answer:
        """Answer a question, with the sentences that support the answer.

        A small model locates sentences better than it phrases answers. With tuned heads it therefore reads the best
        sentences alone, and the answer is the span of them that it would most likely quote. With ``sentences=0`` it
        writes the answer from the whole document. Answers are deterministic without `sampling`.

        Parameters
        ----------
        question
            A question in natural language.
        max_tokens
            Longest answer, in tokens.
        sentences
            Number of best sentences to quote from; 0 writes the answer from the whole document. Default: the number
            that the heads were tuned with, 0 for a model without tuned heads.
        ranked_as
            The question in its context, for a follow-up: sentences are ranked by this text, and the answer is quoted by
            the question itself. Default: the question.
        told
            Sentences that come last, because a conversation has told them.
        sampling
            How the tokens of a written answer are chosen; the answer is written then, not quoted. Default: always the
            most probable token.
        stop
            Texts that end the answer, which does not include them.
        on_token
            Called with each new part of the answer's text.
        progress
            Called with the number of tokens read and of all to read, if windows are read for the question.

        Returns
        -------
        Answer

        Raises
        ------
        DtypeError
            The question is not a str, or a number is not an integer.
        OptionError
            The question is empty, a number is out of range, question and answer do not fit into the model's context
            after the document, or `sentences` is above 0 and the model has no tuned heads or `sampling` is given.

        Examples
        --------
        >>> document.ask("Who was the keeper?").text  # doctest: +SKIP
        'Ann Low'
        """
        model = self._model
        if sampling is not None:
            if sentences:
                remedy = "a quoted answer is not sampled"
                raise OptionError("sentences", "must be 0 with sampling", got=sentences, remedy=remedy)
            sentences = 0
        quoted_sentences = self._count_quoted_sentences(sentences)
        stop_texts = StopTexts(tuple(stop))
        max_tokens = check_int("max_tokens", max_tokens, minimum=1)
        tokens = self._encode_question(question, answer_tokens=max_tokens)

        ranked_question = question if ranked_as is None else ranked_as
        ranked_tokens = tokens
        if ranked_as is not None:
            ranked_tokens = self._encode_question(ranked_as, answer_tokens=max_tokens)
        # Without copying heads an answer follows the scored question directly.
        keep_cache = not model.starts_answer and len(self.windows) == 1
        ranking = self._rank(ranked_tokens, keep_cache=keep_cache, progress=progress)
        if told:
            ranking = put_last(ranking, told)
        window = ranking.window
        self._check_room(window, ranked_tokens, max_tokens)
        text: AnswerText | None = None
        if quoted_sentences:
            ranking, text = self._word_answer(ranking, ranked_question)
            if text is None:
                text = quote_answer(
                    model,
                    window.context,
                    tokens,
                    self.sources,
                    ranking.evidence,
                    sentences=quoted_sentences,
                    max_tokens=max_tokens,
                )
            text = text.cut_at(stop_texts)
            if on_token is not None:
                on_token(text.text)
        else:
            text = write_answer(
                model,
                window.context,
                model.prompt.encode_question(ranked_question, start_answer=False),
                ranking.ranks[window.sentences],
                max_tokens=max_tokens,
                continuation=ranking.continuation,
                sampling=sampling,
                stop=stop_texts,
                on_token=on_token,
            )
        return Answer(
            text=text.text,
            evidence=ranking.evidence,
            question=question,
            model=model.loaded.name,
            answer_model=text.model,
            complete=text.complete,
            document_tokens=self.tokens,
            answer_tokens=text.tokens,
            reused_tokens=self.reused_tokens,
            no_answer_share=ranking.no_answer_share,
            sentences=quoted_sentences,
            words=text.words,
            tuned_on=model.heads.tuned_on,
            windows=len(self.windows),
            read_windows=ranking.read_windows,
            quote=text.quote or ranking.evidence[0].text,
            confidence=text.confidence,
            stopped_by=text.stopped_by,
        )

    def ask_many(self, questions: Iterable[str], *, max_tokens: int = ANSWER_TOKENS) -> list[Answer]:
        """Answer several questions, one after the other.

        All share the document's keys and values.

        Parameters
        ----------
        questions
            Questions in natural language.
        max_tokens
            Longest answer to each, in tokens.

        Returns
        -------
        list of Answer
            One per question, in order.

        Raises
        ------
        DtypeError, OptionError
            `questions` is one text, or `ask` raises for a question; no question is answered then.

        Examples
        --------
        >>> [answer.text for answer in document.ask_many(["Who?", "When?"])]  # doctest: +SKIP
        ['Ann Low', 'in 1862']
        """
        if isinstance(questions, str):
            raise DtypeError("questions", "must be a list of questions", got=questions, remedy="use ask() for one")
        listed = list(questions)
        answer_tokens = check_int("max_tokens", max_tokens, minimum=1)
        for question in listed:
            self._encode_question(question, answer_tokens=answer_tokens)
        return [self.ask(question, max_tokens=answer_tokens) for question in listed]

    def ablate(self, answer: Answer, *, top: int = 3) -> list[Ablation]:
        """Return how much less likely an answer is with each of its best sentences removed.

        The model reads the first `top` sentences and one from the middle of the others, without the rest of the
        document, then again without each of them.

        Parameters
        ----------
        answer
            An answer of this document.
        top
            Number of best sentences to remove, one at a time.

        Returns
        -------
        list of Ablation
            One per removed sentence, best first; the last is the control.

        Raises
        ------
        DtypeError
            `top` is not an integer.
        OptionError
            `top` is below 1, or the answer is empty.

        Examples
        --------
        >>> document.ablate(document.ask("Who was the keeper?"))[0].drop_nats > 0  # doctest: +SKIP
        True
        """
        return ablate_evidence(self._model, self.sources, answer, top=check_int("top", top, minimum=1))

    def forward_question(self, question: str) -> int:
        """Run a question after the document without recording attention.

        The cost of evidence is measured against this.

        Parameters
        ----------
        question
            A question in natural language.

        Returns
        -------
        int
            Number of tokens that were run after the document.

        Raises
        ------
        DtypeError, OptionError
            As for `evidence`.

        Examples
        --------
        >>> document.forward_question("Who was the keeper?")  # doctest: +SKIP
        21
        """
        tokens = self._encode_question(question, answer_tokens=0)
        for window in self.windows:
            forward_question(self._model, window.context, tokens)
        return len(tokens.token_ids)

    def _rank(self, question: QuestionTokens, *, keep_cache: bool = False, progress: Progress | None = None) -> Ranking:
        ranking = rank_document(
            self._model,
            self.sources,
            self.windows,
            self.text_index,
            question,
            max_windows=self.reader.max_windows,
            keep_cache=keep_cache,
            progress=progress,
        )
        if len(self.windows) > 1:
            self.reader.report_missing(self._read_windows)
        return ranking

    def _word_answer(self, ranking: Ranking, question: str) -> tuple[Ranking, AnswerText | None]:
        """Word the answer by the reader's answering model; None without one, or if its answer is not in the text."""
        answer_model = self.reader.answer_model
        if answer_model is None or is_yes_no_question(question):
            return ranking, None
        return word_answer(answer_model, ranking, self.text_index, question)

    def _count_quoted_sentences(self, sentences: int | None) -> int:
        heads = self._model.heads
        if sentences is None:
            sentences = heads.answer_sentences
        quoted_sentences = check_int("sentences", sentences, minimum=0)
        if quoted_sentences and not heads.copying:
            remedy = f"no heads are tuned for model {self._model.loaded.name!r}: tune them with `keywise tune`"
            raise OptionError("sentences", "must be 0 for a model without tuned heads", got=sentences, remedy=remedy)
        return quoted_sentences

    def _encode_question(self, question: str, *, answer_tokens: int) -> QuestionTokens:
        """Return a question's tokens, or raise if it does not fit.

        It is checked that question and answer can fit into the model's context.
        """
        if not isinstance(question, str):
            raise DtypeError("question", "must be a str", got=question)
        if not question.strip():
            raise OptionError("question", "must not be empty", got=question)
        tokens = self._model.prompt.encode_question(question, start_answer=self._model.starts_answer)
        for window in self.windows:
            self._check_room(window, tokens, answer_tokens=0)
        shortest = min(self.windows, key=lambda window: len(window.context.document.token_ids))
        self._check_room(shortest, tokens, answer_tokens)
        return tokens

    def _check_room(self, window: Window, tokens: QuestionTokens, answer_tokens: int) -> None:
        max_document_tokens = self._model.max_document_tokens
        if max_document_tokens is None:
            return
        free_tokens = max_document_tokens - len(window.context.document.token_ids)
        question_tokens = len(tokens.token_ids)
        context_note = f"(the model's context has {self._model.context_tokens:,} tokens)"
        if question_tokens > free_tokens:
            rule = f"must be at most {free_tokens:,} tokens long after this document {context_note}"
            raise OptionError("question", f"{rule}, got {question_tokens:,}", remedy="ask a shorter one")
        if question_tokens + answer_tokens > free_tokens:
            rule = f"must be at most {free_tokens - question_tokens:,} after this document and question {context_note}"
            raise OptionError("max_tokens", rule, got=answer_tokens)
