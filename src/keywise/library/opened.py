"""A library that is open: its version, its encoder, and the keys that are kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from keywise.errors import MissingFileError, OptionError
from keywise.library import transactions
from keywise.library.arrow_arrays import Array
from keywise.library.dataset import open_dataset, verify_files
from keywise.library.ingest import IngestTarget, check_encoded
from keywise.library.key_pages import KeyPages
from keywise.library.partials import LibraryPartial, merge_partials
from keywise.library.query import Query, check_text
from keywise.library.scan import attend_fragments
from keywise.library.schema import (
    SENTENCE_COLUMNS,
    EncoderId,
    KeyFormat,
    check_encoder,
    check_vectors,
    make_schema,
    read_encoder_id,
    read_key_format,
)
from keywise.library.unfinished_keys import sweep_unfinished_keys
from keywise.library.word_index import create_word_index
from keywise.models.sentence_encoder import Encoder, SentenceEncoder
from keywise.util.optional_imports import require_modules
from keywise.util.progress import Progress

Mode = Literal["r", "a"]
Engine = Literal["local", "ray"]


class OpenedLibrary:
    """A version of a library, with its encoder and the keys that are kept in memory.

    Parameters
    ----------
    path, mode, encoder, version, dtype
        See `Library.open`, which checks them.

    Attributes
    ----------
    path, mode, dtype
        As given.
    dataset
        The Lance dataset; None before anything was added.
    """

    def __init__(self, path: str, mode: Mode, encoder: Encoder | None, version: int | None, dtype: str) -> None:
        self.path = path
        self.mode = mode
        self.dtype = dtype
        self._encoder = encoder
        self._version = version
        self._key_pages: KeyPages | None = None
        self.dataset: Any = open_dataset(path, version)
        if self.dataset is None and mode == "r":
            raise MissingFileError(
                "path",
                "must be an existing library",
                got=path,
                remedy="create one with `keywise library add`, in Python with mode='a'",
            )
        if self.dataset is not None and encoder is not None:
            check_encoder(encoder, self.dataset.schema, path)

    def attend_all(self, dataset: Any, query: Query, engine: Engine, progress: Progress | None) -> LibraryPartial:
        """Return attention over all rows."""
        if engine == "ray":
            from keywise.library.cluster import attend_on_cluster  # noqa: PLC0415 - optional

            return merge_partials(attend_on_cluster(self.path, dataset, query), query)
        if self._key_pages is None:
            self._key_pages = KeyPages(self.path, read_key_format(dataset.schema))
        fragments = dataset.get_fragments()
        return merge_partials(attend_fragments(dataset, fragments, query, self._key_pages, progress), query)

    def make_query_vectors(self, queries: Any) -> Array:
        """Return queries [Q, D] in the dtype of the keys; texts are encoded."""
        if isinstance(queries, str):
            queries = [queries]
        if isinstance(queries, Sequence) and queries and all(isinstance(text, str) for text in queries):
            encoder = self.load_encoder()
            texts = [check_text("queries", text) for text in queries]
            different = list(dict.fromkeys(texts))
            queries = np.asarray(encoder.encode(different))
            if len(different) < len(texts):
                queries = queries[[different.index(text) for text in texts]]
        vectors = np.asarray(queries)
        if vectors.ndim == 1:
            vectors = vectors[None]
        key_format = read_key_format(self.dataset.schema)
        return check_vectors("queries", vectors, key_format.dimension, key_format.dtype)

    @property
    def has_encoder(self) -> bool:
        """Whether the keys were made by an encoder, from documents."""
        return read_encoder_id(self.require_dataset().schema) is not None

    def check_holds_documents(self) -> None:
        """Raise an error if the library holds keys of the user's own.

        Raises
        ------
        OptionError
            It does, or it is empty.
        """
        if not self.has_encoder:
            raise OptionError(
                "library",
                "must not hold keys of your own",
                got=self.path,
                remedy="add documents to another library",
            )

    def load_encoder(self) -> Encoder:
        """Return the library's encoder.

        It is checked at every call, because an object of the user's may have changed.
        """
        if self._encoder is None:
            name = None
            if self.dataset is not None:
                stored = read_encoder_id(self.dataset.schema)
                if stored is None:
                    raise OptionError(
                        "library",
                        "must have an encoder to attend to texts",
                        got=self.path,
                        remedy="its keys are your own: pass queries as numbers",
                    )
                name = stored.name
            self._encoder = SentenceEncoder(name)
        if self.dataset is not None:
            check_encoder(self._encoder, self.dataset.schema, self.path)
        return self._encoder

    def _create_for_sentences(self, encoder: Encoder) -> None:
        """Create the dataset, for keys of the encoder's dimension."""
        dimension = check_encoded(encoder, encoder.encode(["."]), None, self.dtype).shape[1]
        key_format = KeyFormat(dimension, self.dtype)
        encoder_id = EncoderId(encoder.name, encoder.fingerprint)
        transactions.create_dataset(self.path, make_schema(key_format, SENTENCE_COLUMNS, encoder_id))
        self.reopen()
        check_encoder(encoder, self.require_dataset().schema, self.path)  # another process may have created it

    def prepare_for_sentences(self) -> IngestTarget:
        """Return the library to add sentences to; create it if it does not exist, and remove what killed writers left.

        Raises
        ------
        OptionError
            The library holds keys of the user's own.
        ModelError
            The encoder is not the one that made the keys.
        FormatError
            The library is damaged, or cannot be written.
        """
        if self.dataset is not None:
            self.check_holds_documents()
        encoder = self.load_encoder()
        if self.dataset is None:
            self._create_for_sentences(encoder)
        transactions.sweep_abandoned(self.path)
        sweep_unfinished_keys(self.path)
        create_word_index(self.path)
        return IngestTarget(self.path, self.require_dataset().schema, encoder)

    def require_dataset(self) -> Any:
        """Return the dataset.

        Raises
        ------
        OptionError
            Nothing was added yet.
        """
        if self.dataset is None:
            raise self.make_empty_error()
        return self.dataset

    def require_verified(self) -> Any:
        """Return the dataset after its files were verified; those that did not change are not verified again."""
        dataset = self.require_dataset()
        verify_files(self.path, dataset)
        return dataset

    def make_empty_error(self) -> OptionError:
        """Return the error of a library without rows."""
        return OptionError("library", "must not be empty", got=self.path, remedy="add documents or keys first")

    def check_writable(self) -> None:
        """Open the latest version.

        Raises
        ------
        OptionError
            The library is open for reading.
        """
        if self.mode != "a":
            raise OptionError("mode", "must be 'a' to change a library", got=self.mode, remedy="open it with mode='a'")
        self.reopen()  # another process may have written since

    def reopen(self) -> None:
        """Open the version again, or the latest."""
        self.dataset = open_dataset(self.path, self._version)


def check_engine(engine: str) -> None:
    """Raise an error unless an engine is known and installed.

    Raises
    ------
    OptionError
        It is unknown.
    """
    if engine not in {"local", "ray"}:
        raise OptionError("engine", "must be 'local' or 'ray'", got=engine)
    if engine == "ray":
        require_modules("cluster", "ray")
