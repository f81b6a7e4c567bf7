"""What a model has read of a document, from disk where it is kept: every question goes on from here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from keywise.documents.evidence import NULL_QUESTION, Look, Mass, mass_of_heads
from keywise.documents.store import SENTENCE_OF
from keywise.errors import FormatError

if TYPE_CHECKING:
    from keywise.documents.heads import Head, Heads
    from keywise.documents.prompt import Encoded, Prompt
    from keywise.documents.store import Found, PrefillStore
    from keywise.hf import LayerStats
    from keywise.models.loading import LoadedModel

CHUNK_TOKENS: Final = 512

Progress = Callable[[int, int], None]
Turn = TypeVar("Turn")


class PrefilledContext:
    """The keys and values of the prompt's beginning and a document; making it reads what is not on disk.

    Parameters
    ----------
    loaded, prompt, heads
        The model, its prompt, and the heads to read evidence from.
    encoded
        Tokens of the document.
    sentences
        Number of sentences.
    names
        Names of the texts, for the list of what is kept.
    shelf
        Where what is read is kept, and taken from; None for nowhere.
    progress
        Called after every chunk with the number of tokens read so far and the number of all.

    Attributes
    ----------
    null
        Where a question that asks nothing looks.
    reused_tokens
        How many of the document's tokens were taken from disk instead of being read.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: Prompt,
        heads: Heads,
        encoded: Encoded,
        *,
        sentences: int,
        names: Sequence[str],
        shelf: PrefillStore | None,
        progress: Progress | None,
    ) -> None:
        self._loaded, self._prompt, self._heads = loaded, prompt, heads
        self._sentences, self._names, self._shelf = sentences, names, shelf
        self._ids = [*prompt.before_ids, *encoded.ids]
        self._sentence_of, self._text_sha256 = encoded.sentence_of, encoded.text_sha256
        # The -1 behind it says that these are ids of sentences, even if each were one token long.
        self._segments = np.concatenate([np.full(len(prompt.before_ids), -1), self._sentence_of, [-1]])
        self._read(progress, encoded.found)

    @property
    def started(self) -> bool:
        """Whether an answer is begun for the model, for the copying heads to look for its first word."""
        return bool(self._heads.copying)

    def after(self, turn: Callable[[Any], Turn]) -> Turn:
        """Give a fork of the cache to what goes on from it.

        This is where a file is used first, so where damage in it shows: then the document is read again.
        """
        try:
            return turn(self._cache.fork())
        except FormatError as error:
            self._refuse(self._found, error)
            self._read(None)
            return self.after(turn)

    def glance(self, ids: list[int]) -> Sequence[LayerStats]:
        """Run a question's turn only as far as the last head read."""
        return self.after(lambda cache: self._glimpse(cache, ids))

    def step(self, cache: Any, ids: list[int]) -> tuple[int, Sequence[LayerStats]]:
        """Run tokens after those in a cache; give the likeliest next one and the mass on the document's sentences."""
        with self._reading(stop=False) as stats_record:
            logits = self.forward(cache, ids)
        return int(logits.argmax()), stats_record

    def forward(self, cache: Any, ids: list[int]) -> Any:
        """Run tokens after those in a cache, and give the logits of the next one."""
        import torch  # noqa: PLC0415 - heavy

        with torch.inference_mode():
            output = self._loaded.model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1]

    def look(
        self,
        records: Iterable[LayerStats],
        ids: Sequence[int],
        asked: slice | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> Look:
        """Give where the readings of a question's turn looked.

        Parameters
        ----------
        records
            The readings.
        ids
            The turn's tokens.
        asked
            Which of them are the question; default all before the beginning of an answer.
        weights
            How much each of these counts; default all the same.
        """
        turn = len(ids) - len(self._prompt.start_ids) if self.started else len(ids)
        return Look(
            self.mass(records, self._heads.matching, asked or slice(0, turn), weights),
            self.mass(records, self._heads.copying, slice(turn, len(ids))),
        )

    def mass(
        self,
        records: Iterable[LayerStats],
        heads: Sequence[Head],
        rows: slice,
        weights: NDArray[np.float64] | None = None,
    ) -> Mass:
        """Give the mass of heads on the document's sentences; see `mass_of_heads`."""
        return mass_of_heads(records, heads, self._sentences, rows, weights)

    def _glimpse(self, cache: Any, ids: list[int]) -> Sequence[LayerStats]:
        """Run tokens after those in a cache for the mass on the document's sentences alone; the cache is spent."""
        with self._reading(stop=True) as stats_record:
            self.forward(cache, ids)
        return stats_record

    def _reading(self, *, stop: bool) -> AbstractContextManager[Sequence[LayerStats]]:
        import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

        return keywise.hf.record_stats(
            self._loaded.model,
            segment_ids=self._segments,
            top_k=0,
            layers=self._heads.layers,
            key_mass=False,
            kind="self",
            stop=stop,
        )

    def _refuse(self, found: Found | None, error: FormatError) -> None:
        if self._shelf is None or found is None:
            raise error
        self._shelf.refuse(found.path, error)

    def _read(self, progress: Progress | None, found: Found | None = None) -> None:
        """Read tokens, but for those that the shelf has, and what a null question looks at; keep what is new."""
        import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

        ids, text, shelf = self._ids, self._text_sha256, self._shelf
        if found is None and shelf:
            found = shelf.find(ids, text)
        cache = keywise.hf.Cache(self._loaded.model.config, found and found.cache)
        cache.activate_past_recording()  # so that any text with the same beginning can go on from here
        cache.truncate(found.common_tokens if found else 0)
        done = cache.reused_tokens
        question = self._prompt.question_ids(NULL_QUESTION, started=self.started)
        calibration = {
            "null_question": np.array(question),
            "null_heads": np.array([*self._heads.matching, *self._heads.copying]),
            SENTENCE_OF: self._sentence_of,
        }
        whole = found is not None and found.common_tokens == len(ids) == found.token_ids.size
        kept = found is not None and whole and _same(calibration, found.extra)
        if found and kept:
            null = Look(found.extra["null_matching"], found.extra["null_copying"])
            if "quotes" in found.extra:
                self._prompt.quotes = found.extra["quotes"].tolist()
        else:
            try:
                while done < len(ids):
                    self.forward(cache, ids[done : done + CHUNK_TOKENS])
                    done = min(done + CHUNK_TOKENS, len(ids))
                    if progress:
                        progress(done, len(ids))
                null = self.look(self._glimpse(cache.fork(), question), question)
            except FormatError as error:
                self._refuse(found, error)
                return self._read(progress)
            except KeyboardInterrupt:
                if shelf and done > cache.reused_tokens:
                    cache.truncate(done)  # some layers may have taken more
                    shelf.keep(cache.kv, ids[:done], text, sources=self._names, extra={}, replacing=found)
                raise
        # Only now: an interrupted second reading leaves the document as it was.
        self._cache, self.null, self._found = cache, null, found
        self.reused_tokens: int = max(cache.reused_tokens - len(self._prompt.before_ids), 0)
        if shelf and not kept:
            extra = {**calibration, "null_matching": null.matching, "null_copying": null.copying}
            extra["quotes"] = np.array(self._prompt.quotes)
            shelf.keep(cache.kv, ids, text, sources=self._names, extra=extra, replacing=found)


def _same(wanted: Mapping[str, Any], kept: Mapping[str, Any]) -> bool:
    return all(name in kept and np.array_equal(kept[name], value) for name, value in wanted.items())
