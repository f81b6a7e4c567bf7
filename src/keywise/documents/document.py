"""A document that a model has read: its sentences ranked for a question, answers, and their proof."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.ablation import Ablation, ablate
from keywise.documents.answer import Answer, AnswerWord, heaviest_sentences, in_order, joined, words_of
from keywise.documents.evidence import Evidence, Look, Mass, no_answer_share, rank_sentences
from keywise.documents.files import Source
from keywise.documents.heads import Heads
from keywise.documents.meaning import Encode, Meaning
from keywise.documents.passage import likeliest_span
from keywise.documents.prefilled_context import PrefilledContext, Progress
from keywise.documents.prompt import Encoded, Prompt
from keywise.documents.store import PrefillStore
from keywise.documents.words import Words, rarity
from keywise.errors import DtypeError, OptionError
from keywise.models.loading import LoadedModel

if TYPE_CHECKING:
    from keywise.hf import LayerStats

ANSWER_TOKENS: Final = 128
# Kept free when a document is read, so that what could be read can also be asked about.
RESERVED_TOKENS: Final = 256

# How much more the rare words of a question tell than its common ones.
RARITY_POWER: Final = 2.0


class Document:
    """Texts that a model has read. Made by `Reader.read`.

    Attributes
    ----------
    sources
        The texts, in the order in which they were read.
    tokens
        Length of the document in tokens.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: Prompt,
        heads: Heads,
        sources: Sequence[Source],
        encoded: Encoded,
        *,
        encode: Encode | None,
        shelf: PrefillStore | None,
        progress: Progress | None,
    ) -> None:
        self._loaded, self._prompt, self._heads, self._encode = loaded, prompt, heads, encode
        config = loaded.model.config.get_text_config()
        self._context_tokens: int | None = getattr(config, "max_position_embeddings", None)
        self.sources = tuple(sources)
        self.tokens = len(encoded.ids)
        self._check_length()
        self._sentences = sum(len(source.sentences) for source in sources)
        said = encoded.sentence_of >= 0
        self._said, self._said_in = np.array(encoded.ids)[said], encoded.sentence_of[said]
        self._words = Words(sources)
        self._past = PrefilledContext(
            loaded,
            prompt,
            heads,
            encoded,
            sentences=self._sentences,
            names=[source.name for source in sources],
            shelf=shelf,
            progress=progress,
        )

    @property
    def reused_tokens(self) -> int:
        """How many of the document's tokens were taken from disk instead of being read."""
        return self._past.reused_tokens

    def evidence(self, question: str) -> list[Evidence]:
        """Rank all sentences by how likely they answer a question, without answering it.

        What speaks for a sentence is the attention that the question gives to it and the words that they share, and
        the meaning of both if the reader was given an encoder.

        Raises
        ------
        OptionError
            If the question is empty, or too long for what the document leaves of the model's context.

        Examples
        --------
        >>> document.evidence("Who was the keeper?")[0].rank  # doctest: +SKIP
        1
        """
        return rank_sentences(self.sources, self.look(question), self.clues(question), self._heads)

    def clues(self, question: str) -> dict[str, Mass]:
        """Give what the document's text says about a question without any attention.

        Returns
        -------
        dict of float64 arrays [sentences]
            ``words`` and ``paragraph_words``, and if the reader was given an encoder ``meaning`` and
            ``paragraph_meaning``; see `Evidence`.

        Examples
        --------
        >>> sorted(document.clues("Who was the keeper?"))  # doctest: +SKIP
        ['paragraph_words', 'words']
        """
        found = {"words": self._words.sentences(question), "paragraph_words": self._words.paragraphs(question)}
        if self._meaning is not None:
            found["meaning"] = self._meaning.sentences(question)
            found["paragraph_meaning"] = self._meaning.paragraphs(question)
        return found

    def look(self, question: str) -> Look:
        """Give the mass that each head read puts on each sentence for a question, a null question's subtracted.

        Raises
        ------
        OptionError
            As `evidence` does.

        Examples
        --------
        >>> document.look("Who was the keeper?").matching.shape  # doctest: +SKIP
        (4, 2)
        """
        return self._look(self._question_ids(question, answer_tokens=0))

    def ask(
        self,
        question: str,
        *,
        max_tokens: int = ANSWER_TOKENS,
        sentences: int | None = None,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a question about the document, and tell which sentences it looked at.

        A small model answers better from the sentence that its attention finds than from the whole document: it reads
        the first `sentences` of the evidence alone, and the answer is the words of them that it would most likely
        quote. From the whole document it writes freely, always its likeliest next token. Both ways the same question
        gets the same answer.

        Parameters
        ----------
        question
            The question.
        max_tokens
            Longest answer, in tokens.
        sentences
            How many sentences to answer from, 0 for the whole document; default is what was measured to be best when
            the model's heads were tuned, and the whole document for a model without tuned heads.
        on_token
            Called with each new piece of the answer's text.

        Raises
        ------
        OptionError
            If the question is empty, `max_tokens` is no positive integer, both together do not fit into what the
            document leaves of the model's context, or `sentences` is negative, or not 0 without tuned heads.

        Examples
        --------
        >>> document.ask("Who was the keeper?").text  # doctest: +SKIP
        'Ann Low'
        """
        wanted = self._heads.answer_sentences if sentences is None else _count("sentences", sentences, least=0)
        if wanted and not self._past.started:
            raise OptionError(
                f"sentences={sentences}: no heads are tuned for model {self._loaded.name!r}; tune them with `keywise "
                "tune`, or let it answer from the whole document (sentences=0)"
            )
        answer_tokens = _count("max_tokens", max_tokens, least=1)
        turn = self._question_ids(question, answer_tokens=answer_tokens)
        if self._past.started:
            look = self._look(turn)
        else:
            cache, token, records = self._go_on(turn)
            look = self._look_of(records, turn)
        evidence = rank_sentences(self.sources, look, self.clues(question), self._heads)
        if wanted:
            text, words, answer_ids, complete = self._past.after(
                lambda cache: self._quote(cache, question, evidence[:wanted], max_tokens)
            )
            if on_token:
                on_token(text)
        else:
            if self._past.started:
                cache, token, _ = self._go_on(self._prompt.question_ids(question.strip()))
            text, words, answer_ids, complete = self._write(cache, token, evidence, max_tokens, on_token)
        return Answer(
            text=text,
            evidence=evidence,
            question=question,
            model=self._loaded.name,
            complete=complete,
            document_tokens=self.tokens,
            answer_tokens=answer_ids,
            reused_tokens=self.reused_tokens,
            no_answer_share=no_answer_share(look, self._heads),
            sentences=wanted,
            words=words,
            tuned_on=self._heads.tuned_on,
        )

    def ablate(self, answer: Answer, *, top: int = 3, sources: Sequence[Source] | None = None) -> list[Ablation]:
        """Tell how much less likely an answer becomes without each of its first sentences, and without another one.

        The model reads the first `top` sentences and one that stands far behind them, in the text's order and without
        the rest of the document, then again without each of them: nothing of a removed sentence is left.

        Parameters
        ----------
        answer
            What `ask` gave for this document.
        top
            How many of the first sentences to remove, one at a time.
        sources
            The texts in their order; default those of this document.

        Raises
        ------
        OptionError
            If `top` is no positive integer, or the answer is empty.

        Examples
        --------
        >>> document.prove(document.ask("Who was the keeper?"))[0].drop > 0  # doctest: +SKIP
        True
        """
        return ablate(self._loaded, self._prompt, sources or self.sources, answer, top=_count("top", top, least=1))

    def pass_over(self, question: str) -> int:
        """Run a question's turn after the document without reading attention, and give the number of its tokens.

        It is what the cost of evidence is compared with.

        Raises
        ------
        OptionError
            As `evidence` does.

        Examples
        --------
        >>> document.pass_over("Who was the keeper?")  # doctest: +SKIP
        21
        """
        ids = self._question_ids(question, answer_tokens=0)
        self._past.after(lambda cache: self._past.forward(cache, ids))
        return len(ids)

    def _quote(
        self, begun: Any, question: str, evidence: Sequence[Evidence], max_tokens: int
    ) -> tuple[str, list[AnswerWord], int, bool]:
        """Give the likeliest words of some sentences: text, words, tokens, and whether there was room for more."""
        passage, ends = joined(in_order(self.sources, evidence))
        begun.truncate(len(self._prompt.before_ids))
        span = likeliest_span(
            self._loaded,
            self._prompt,
            self._heads.copying,
            passage,
            question.strip(),
            most_tokens=max_tokens,
            begun=begun,
        )
        if span is None:
            return "", [], 0, True
        text = passage[span.start : span.end]
        words = words_of(text, lambda start, _: [next(item.rank for end, item in ends if span.start + start < end)])
        return text, words, span.tokens, span.tokens < max_tokens

    def _write(
        self,
        cache: Any,
        token: int,
        evidence: Sequence[Evidence],
        max_tokens: int,
        on_token: Callable[[str], None] | None,
    ) -> tuple[str, list[AnswerWord], int, bool]:
        """Write an answer token by token: text, words, tokens, and whether the model ended it itself."""
        heads, null = (
            (self._heads.copying, self._past.null.copying)
            if self._past.started
            else (self._heads.matching, self._past.null.matching)
        )
        ids: list[int] = []
        ends: list[int] = []
        masses: list[Mass] = []
        said = 0
        while token not in self._prompt.end_ids and len(ids) < max_tokens:
            ids.append(token)
            text = self._prompt.text(ids)
            ends.append(len(text))
            # A character can take several tokens; until it is whole it decodes to the replacement character.
            if on_token and not text.endswith("\ufffd"):
                on_token(text[said:])
                said = len(text)
            token, records = self._past.step(cache, [token])
            masses.append((self._past.mass(records, heads, slice(None)) - null).sum(axis=0))
        text = self._prompt.text(ids)
        margin = len(text) - len(text.lstrip())
        ranks = [item.rank for item in in_order(self.sources, evidence)]

        def sources_of(start: int, end: int) -> list[int]:
            first = int(np.searchsorted(ends, start + margin, side="right"))
            last = int(np.searchsorted(ends, end + margin, side="left"))
            return [ranks[number] for number in heaviest_sentences(np.sum(masses[first : last + 1], axis=0))]

        text = text.strip()
        return text, words_of(text, sources_of), len(ids), token in self._prompt.end_ids

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
            self._question_ids(question, answer_tokens=_count("max_tokens", max_tokens, least=1))
        return [self.ask(question, max_tokens=max_tokens) for question in asked]

    def _go_on(self, ids: list[int]) -> tuple[Any, int, Sequence[LayerStats]]:
        """Run a question's turn after the document; give the cache with it, the likeliest next token, and readings."""
        return self._past.after(lambda cache: (cache, *self._past.step(cache, ids)))

    def _look(self, ids: list[int]) -> Look:
        """Run a question's turn only as far as needed, and give where it looked, less where a null question does."""
        return self._look_of(self._past.glance(ids), ids)

    def _look_of(self, records: Iterable[LayerStats], ids: list[int]) -> Look:
        """Give where a question looked, less where a null question does; its rare words tell more."""
        asked = self._prompt.asked_rows(ids, started=self._past.started)
        return self._past.look(records, ids, asked, self._rarities(ids[asked])) - self._past.null

    def _rarities(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Give how much each token of a question tells: little if it stands in many sentences."""
        holding = [np.unique(self._said_in[self._said == token]).size for token in ids]
        return np.array([rarity(sentences, self._sentences) ** RARITY_POWER for sentences in holding])

    @cached_property
    def _meaning(self) -> Meaning | None:
        """The meanings of the sentences, made at the first question."""
        return self._encode and Meaning(self._encode, self.sources, self._words.paragraph_of)

    def _question_ids(self, question: str, *, answer_tokens: int) -> list[int]:
        """Give the tokens of a question's turn, after asking whether it and its answer fit."""
        if not isinstance(question, str):
            raise DtypeError(f"question={question!r} is no text; ask in words")
        if not question.strip():
            raise OptionError(f"question={question!r} is empty; ask in words")
        ids = self._prompt.question_ids(question.strip(), started=self._past.started)
        if self._context_tokens is not None:
            left = self._context_tokens - len(self._prompt.before_ids) - self.tokens
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
                "characters of it at once, in whole sentences); give a shorter one or a model with a longer context"
            )


def _count(name: str, number: int, *, least: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        kind = "a positive integer" if least else "a whole number, 0 or more"
        raise OptionError(f"{name}={number!r}: give {kind}")
    return number
