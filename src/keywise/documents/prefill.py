"""Documents prefilled by a model: their keys and values, computed or loaded from the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from keywise.documents.model import forward_tokens, record_sentence_mass
from keywise.documents.scoring import NULL_QUESTION, EvidenceStats, evidence_from_stats
from keywise.documents.store import QUOTE_MARK_IDS, SENTENCE_IDS
from keywise.errors import FormatError
from keywise.util.progress import InterruptedReading

if TYPE_CHECKING:
    from keywise.documents.model import EvidenceModel
    from keywise.documents.prompt import DocumentTokens
    from keywise.documents.store import PrefillStore, StoredPrefill
    from keywise.util.progress import Progress

CHUNK_TOKENS: Final = 512

NULL_MATCHING: Final = "null_matching"
NULL_COPYING: Final = "null_copying"
"""Stored with a complete document: the attention mass of the null question."""

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Prefill:
    """The keys and values of a document, and the null question's attention on it.

    Attributes
    ----------
    cache
        Keys and values of the template's beginning and the document.
    null_stats
        Attention mass of the null question.
    reused_tokens
        Number of the document's tokens that were loaded instead of computed.
    stored
        The file that they were loaded from; None if there was none.
    """

    cache: Any
    null_stats: EvidenceStats
    reused_tokens: int
    stored: StoredPrefill | None


class PrefilledContext:
    """A document that is prefilled when it is first needed, and that questions follow.

    A stored file is verified layer by layer when it is first used. If it proves damaged, the document is prefilled
    again.

    Parameters
    ----------
    model
        The model.
    document
        The document's tokens.
    names
        Names of its sources, for the list of stored documents.
    store
        Where documents are stored; None to compute always.
    stored
        The stored document, if `PrefillStore.find_text` returned one.

    Attributes
    ----------
    document : DocumentTokens
        The document's tokens.
    segment_ids : int array [tokens]
        The sentence of each token in the cache, -1 for none.
    reused_tokens : int
        Number of the document's tokens that were loaded instead of computed; 0 before `prefill`.
    """

    def __init__(
        self,
        model: EvidenceModel,
        document: DocumentTokens,
        *,
        names: Sequence[str],
        store: PrefillStore | None = None,
        stored: StoredPrefill | None = None,
    ) -> None:
        self._model = model
        self._names = names
        self._store = store
        self._stored = stored
        self._prefill: Prefill | None = None
        self.document = document
        self.segment_ids = np.concatenate([np.full(len(model.prompt.before_ids), -1), document.sentence_ids, [-1]])
        self.reused_tokens = 0

    @property
    def null_stats(self) -> EvidenceStats:
        """The attention mass of the null question."""
        return self.prefill().null_stats

    @property
    def is_stored(self) -> bool:
        """Whether the next process need not compute it; True where nothing is stored at all."""
        return self._store is None or self._store.find_text(self.document.text_sha256) is not None

    @property
    def is_prefilled(self) -> bool:
        """Whether the keys and values are in memory."""
        return self._prefill is not None

    def prefill(self, progress: Progress | None = None) -> Prefill:
        """Load or compute the keys and values, and return them; only the first call takes time.

        Parameters
        ----------
        progress
            Called after every chunk with the number of tokens done and of all.
        """
        if self._prefill is None:
            # Assigned only when complete: an interrupt leaves the document as it was.
            self._prefill = self._make_prefill(self._stored, progress)
            self.reused_tokens = self._prefill.reused_tokens
        return self._prefill

    def release(self) -> None:
        """Drop the keys and values from memory; `prefill` loads or computes them again."""
        self._prefill = None
        self._stored = None

    def run(self, function: Callable[[Any], Result]) -> Result:
        """Call a function with a fork of the document's cache and return its result.

        Parameters
        ----------
        function
            Takes the fork and may append to it. It is called again if the stored file proves damaged.

        Raises
        ------
        FormatError
            The cache is damaged and was not loaded from the store.
        """
        while True:
            prefill = self.prefill()
            try:
                return function(prefill.cache.fork())
            except FormatError as error:
                discard_damaged(self._store, prefill.stored, error)
                self.release()

    def _make_prefill(self, stored: StoredPrefill | None = None, progress: Progress | None = None) -> Prefill:
        return prefill_document(
            self._model,
            self.document,
            self.segment_ids,
            names=self._names,
            store=self._store,
            stored=stored,
            progress=progress,
        )


def prefill_document(
    model: EvidenceModel,
    document: DocumentTokens,
    segment_ids: NDArray[np.intp],
    *,
    names: Sequence[str],
    store: PrefillStore | None,
    stored: StoredPrefill | None,
    progress: Progress | None,
) -> Prefill:
    """Load the stored part of a document, compute the rest, and store all of it.

    Parameters
    ----------
    model, document, names, store, stored, progress
        As for `PrefilledContext`.
    segment_ids
        The sentence of each token in the cache, -1 for none.
    """
    token_ids = [*model.prompt.before_ids, *document.token_ids]
    null_question = model.prompt.encode_question(NULL_QUESTION, start_answer=model.starts_answer)
    calibration = {
        "null_question": np.array(null_question.token_ids),
        "null_heads": np.array([*model.heads.matching, *model.heads.copying]),
        SENTENCE_IDS: document.sentence_ids,
    }
    null_shapes = {
        NULL_MATCHING: (len(model.heads.matching), document.sentences),
        NULL_COPYING: (len(model.heads.copying), document.sentences),
    }
    while True:
        if stored is None and store is not None:
            stored = store.find(token_ids, document.text_sha256)
        cache = _open_cache(model, stored)
        reused_tokens = max(cache.reused_tokens - len(model.prompt.before_ids), 0)
        if stored is not None and _is_complete(stored, token_ids, calibration, null_shapes):
            if QUOTE_MARK_IDS in stored.extra:
                model.prompt.quote_mark_ids = stored.extra[QUOTE_MARK_IDS].tolist()
            null_stats = EvidenceStats(stored.extra[NULL_MATCHING], stored.extra[NULL_COPYING])
            return Prefill(cache, null_stats, reused_tokens, stored)
        done_tokens = cache.reused_tokens
        try:
            for done_tokens in _forward_chunks(model, cache, token_ids):
                if progress is not None:
                    progress(done_tokens, len(token_ids))
            _, records = record_sentence_mass(model, cache.fork(), null_question.token_ids, segment_ids, stop=True)
        except FormatError as error:
            discard_damaged(store, stored, error)
            stored = None
            continue
        except (KeyboardInterrupt, InterruptedReading):
            if store is not None and done_tokens > cache.reused_tokens:
                cache.truncate(done_tokens)  # the chunk that was interrupted is in some layers
                store.save(
                    cache.kv,
                    token_ids[:done_tokens],
                    document.text_sha256,
                    sources=names,
                    extra={},
                    replacing=stored,
                )
            raise
        null_stats = evidence_from_stats(
            records,
            model.heads,
            document.sentences,
            matching_queries=slice(0, null_question.answer_start.start),
            copying_queries=null_question.answer_start,
        )
        if store is not None:
            extra = {**calibration, NULL_MATCHING: null_stats.matching, NULL_COPYING: null_stats.copying}
            extra[QUOTE_MARK_IDS] = np.array(model.prompt.quote_mark_ids)
            store.save(cache.kv, token_ids, document.text_sha256, sources=names, extra=extra, replacing=stored)
        return Prefill(cache, null_stats, reused_tokens, stored)


def discard_damaged(store: PrefillStore | None, stored: StoredPrefill | None, error: FormatError) -> None:
    """Remove the stored file that caused an error; raise the error if there is none."""
    if store is None or stored is None:
        raise error
    store.discard(stored.path, error)


def _open_cache(model: EvidenceModel, stored: StoredPrefill | None) -> Any:
    """Return a cache with the stored keys and values of the tokens in common."""
    import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

    cache = keywise.hf.Cache(model.loaded.model.config, None if stored is None else stored.cache)
    cache.activate_past_recording()  # so that every text with the same beginning can reuse it
    cache.truncate(0 if stored is None else stored.common_tokens)
    return cache


def _forward_chunks(model: EvidenceModel, cache: Any, token_ids: list[int]) -> Iterator[int]:
    """Run the missing tokens of a cache, and yield its length after every chunk."""
    for first in range(cache.reused_tokens, len(token_ids), CHUNK_TOKENS):
        forward_tokens(model.loaded, cache, token_ids[first : first + CHUNK_TOKENS])
        yield min(first + CHUNK_TOKENS, len(token_ids))


def _is_complete(
    stored: StoredPrefill,
    token_ids: Sequence[int],
    calibration: Mapping[str, NDArray[Any]],
    null_shapes: Mapping[str, tuple[int, int]],
) -> bool:
    """Return whether a stored document has exactly these tokens, this calibration and fitting null statistics."""
    if not stored.common_tokens == len(token_ids) == stored.token_ids.size:
        return False
    if any(name not in stored.extra or stored.extra[name].shape != shape for name, shape in null_shapes.items()):
        return False
    return all(
        name in stored.extra and np.array_equal(stored.extra[name], value) for name, value in calibration.items()
    )
