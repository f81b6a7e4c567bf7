"""`Library`: keys in a Lance dataset, and attention to all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from keywise.errors import DtypeError, OptionError
from keywise.library import ingest, transactions
from keywise.library.approximate import attend_candidates
from keywise.library.dataset import resolve_path, verify_files
from keywise.library.file_changes import find_files
from keywise.library.lance_errors import convert_lance_errors
from keywise.library.opened import Engine, Mode, OpenedLibrary, check_engine
from keywise.library.query import check_text, make_query
from keywise.library.results import AddResult, LibraryAttention, LibraryInfo, SentenceHit, make_attention
from keywise.library.schema import (
    KEY,
    check_dtype,
    list_columns,
    read_encoder_id,
    read_key_format,
)
from keywise.library.sentence_search import make_hits
from keywise.library.stored_documents import match_documents, read_digests
from keywise.library.temperature import load_temperature, update_temperature
from keywise.library.user_keys import add_rows
from keywise.library.word_index import update_word_index
from keywise.models.sentence_encoder import Encoder, SentenceEncoder
from keywise.util.checks import check_int
from keywise.util.progress import Progress, Status, ignore_status


class Library:
    """Keys of sentences from many documents, or of the user's own, on disk.

    Open one with `Library.open`.

    Parameters
    ----------
    path, mode, encoder, version, dtype
        See `Library.open`, which checks them.

    Examples
    --------
    >>> import tempfile, numpy as np, keywise as kw
    >>> folder = tempfile.TemporaryDirectory()
    >>> library = kw.Library.open(folder.name + "/numbers", "a")
    >>> library.add_keys(np.eye(3) * 9, number=[1.0, 2.0, 3.0])
    2
    >>> attention = library.attend([[0, 9, 0]], temperature=1.0, values="number", top=1)
    >>> attention.value.round(2).tolist(), attention.matches[0][0]["number"]
    ([[2.0]], 2.0)
    """

    def __init__(self, path: str, mode: Mode, encoder: Encoder | None, version: int | None, dtype: str) -> None:
        self._opened = OpenedLibrary(path, mode, encoder, version, dtype)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        mode: Mode = "r",
        *,
        encoder: Encoder | str | os.PathLike[str] | None = None,
        version: int | None = None,
        dtype: str = "float16",
    ) -> Library:
        """Open a library.

        It is a Lance dataset in a folder or an object store.

        Parameters
        ----------
        path
            A folder, or an address that Lance accepts, such as ``s3://bucket/library``.
        mode
            ``"r"`` to read; ``"a"`` to add and remove too, and to create a library that does not exist.
        encoder
            Makes the keys of texts: a hub id or folder of a model of sentence-transformers, or an `Encoder`. None
            loads the library's own, and all-MiniLM-L6-v2 for a new library.
        version
            The version to open, for reading only; None for the latest.
        dtype
            Dtype of the keys of a new library: ``"float16"`` or ``"float32"``.

        Returns
        -------
        Library
            The open library. A new one is created on disk by the first `add` or `add_keys`.

        Raises
        ------
        MissingFileError
            There is no library at `path` and `mode` is ``"r"``.
        FormatError
            `path` is something else, a library of another build, is damaged, or has no such version.
        ModelError
            `encoder` is not the one that made the keys, or cannot be found.
        OptionError, DtypeError
            `mode`, `version`, `encoder` or `dtype` cannot be used.

        Examples
        --------
        >>> import tempfile, keywise as kw
        >>> folder = tempfile.TemporaryDirectory()
        >>> library = kw.Library.open(folder.name + "/numbers", "a", dtype="float32")
        >>> library.version
        0
        """
        if mode not in {"r", "a"}:
            raise OptionError("mode", "must be 'r' (read) or 'a' (add and remove)", got=mode)
        if version is not None:
            check_int("version", version, minimum=1)
            if mode != "r":
                raise OptionError("version", "must be None with mode='a'", got=version, remedy="open it with mode='r'")
        if isinstance(encoder, str | os.PathLike):
            encoder = SentenceEncoder(encoder)
        if encoder is not None and not isinstance(encoder, Encoder):
            raise DtypeError("encoder", "must be a hub id, a folder or a keywise.library.Encoder", got=encoder)
        return cls(resolve_path(path), mode, encoder, version, check_dtype(dtype))

    def add(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        prune: bool = False,
        progress: Progress | None = None,
        status: Status | None = None,
        engine: Engine = "local",
    ) -> AddResult:
        """Add documents from files and folders.

        A document whose content is stored already is left unchanged; the sentences of a changed one are replaced in
        one commit. A document whose file was moved takes its new name and keeps its keys. Files that cannot be read are
        skipped and reported. What is encoded is committed every few seconds, always whole documents; a call after an
        interrupted one continues.

        Parameters
        ----------
        paths
            Files, and folders whose files are all added, except hidden ones. A document's name is its absolute path.
        prune
            Whether to remove documents at or below `paths` whose files do not exist any more.
        progress
            Called in each step with what is done and the total: files compared, then bytes encoded.
        status
            Called with a line of text before each step.
        engine
            ``"local"``, or ``"ray"`` to read and encode on a Ray cluster.

        Returns
        -------
        AddResult
            Names of the documents that were added, updated, moved, unchanged, gone, removed or skipped.

        Raises
        ------
        OptionError
            The library is open for reading, holds keys of the user's own, or `engine` is unknown.
        ModelError
            The encoder is not the one that made the keys.
        FormatError
            The library is damaged, or cannot be written, for example because the disk is full.

        Examples
        --------
        >>> import pathlib, tempfile, keywise as kw
        >>> class LetterEncoder:
        ...     name, fingerprint = "letters", "1"
        ...     def encode(self, texts):
        ...         return [[text.count(letter) for letter in "abcdefgh"] for text in texts]
        >>> folder = tempfile.TemporaryDirectory()
        >>> note = pathlib.Path(folder.name, "note.txt")
        >>> _ = note.write_text("The lamp is lit. Ann is the keeper.")
        >>> library = kw.Library.open(folder.name + "/notes", "a", encoder=LetterEncoder())
        >>> result = library.add([note])
        >>> len(result.added), result.sentences
        (1, 2)
        >>> len(library.add([note]).unchanged)
        1
        """
        opened = self._opened
        opened.check_writable()
        check_engine(engine)
        files = find_files(paths)
        target = opened.prepare_for_sentences()
        write: ingest.GroupWriter = ingest.write_groups
        if engine == "ray":
            from keywise.library.cluster import write_groups_on_cluster  # noqa: PLC0415 - optional

            write = write_groups_on_cluster
        try:
            result = ingest.add_documents(
                target, files, self.documents(), write, prune=prune, progress=progress, status=status
            )
            if status:
                status("Indexing words")
            update_temperature(self.path)
            update_word_index(self.path)
        finally:
            opened.reopen()
        return replace(result, version=self.version)

    def add_keys(self, keys: Any, **columns: Any) -> int:
        """Add keys and columns of your own.

        Any numeric column can be the values of `attend`, and any column can be named in `where`.

        Parameters
        ----------
        keys : [N, D]
            Finite numbers.
        **columns
            Per column N numbers, N texts or N rows of numbers; the same columns at every call.

        Returns
        -------
        int
            The library's version afterwards.

        Raises
        ------
        ShapeError
            `keys` has another dimension, or a column another length.
        DtypeError
            Keys or a column are of a type that cannot be stored.
        OptionError
            Keys are not finite, the columns are others, or the library holds documents or is open for reading.

        Examples
        --------
        >>> import tempfile, numpy as np, keywise as kw
        >>> folder = tempfile.TemporaryDirectory()
        >>> library = kw.Library.open(folder.name + "/tokens", "a")
        >>> library.add_keys(np.eye(2), token=[17, 4], group=["a", "b"])
        2
        """
        self._opened.check_writable()
        if self._opened.dataset is not None and self._opened.has_encoder:
            raise OptionError(
                "library",
                "must not hold documents",
                got=self.path,
                remedy="add keys of your own to another library",
            )
        add_rows(self.path, self._opened.dataset, keys, columns, self._opened.dtype)
        self._opened.reopen()
        return self.version

    def remove(self, documents: Sequence[str | os.PathLike[str]]) -> list[str]:
        """Remove documents; their files and older versions of the library stay.

        Parameters
        ----------
        documents
            Paths of documents, or of folders whose documents are all removed.

        Returns
        -------
        list of str
            Names of the documents that were removed.

        Raises
        ------
        FormatError
            One of them is not in the library; then none is removed.
        OptionError
            The library holds keys of the user's own, or is open for reading.

        Examples
        --------
        >>> import pathlib, tempfile, keywise as kw
        >>> class LetterEncoder:
        ...     name, fingerprint = "letters", "1"
        ...     def encode(self, texts):
        ...         return [[text.count(letter) for letter in "abcdefgh"] for text in texts]
        >>> folder = tempfile.TemporaryDirectory()
        >>> note = pathlib.Path(folder.name, "note.txt")
        >>> _ = note.write_text("The lamp is lit. Ann is the keeper.")
        >>> library = kw.Library.open(folder.name + "/notes", "a", encoder=LetterEncoder())
        >>> _ = library.add([note])
        >>> library.remove([note]) == [str(note)]
        True
        """
        self._opened.check_writable()
        self._opened.check_holds_documents()
        names = match_documents(self.documents(), documents, self.path)
        transactions.commit_fragments(self.path, [], names)
        self._opened.reopen()
        return names

    def attend(
        self,
        queries: Any,
        *,
        temperature: float | None = None,
        where: str | None = None,
        top: int = 10,
        values: str | None = KEY,
        words: str | Sequence[str | None] | None = None,
        engine: Engine = "local",
        approximate: bool = False,
        candidates: int = 1000,
        progress: Progress | None = None,
        status: Status | None = None,
    ) -> LibraryAttention:
        """Compute attention over every row.

        Weights are exp(query . key / temperature), divided by their sum over all rows. With `words`, 0.4 times the BM25
        score of a row is added to query . key / temperature.

        Parameters
        ----------
        queries : [Q, D] or [D] array, text or list of texts
            Rounded to the dtype of the keys; texts are encoded.
        temperature
            Scores are divided by it; None for the library's own.
        where
            Lance's SQL over the columns, one expression; rows for which it does not hold are hidden, as by a mask.
        top
            Number of heaviest rows to report per query.
        values
            The numeric column whose weighted mean is computed: ``"key"`` for the keys, None for none.
        words
            Per query a text whose words count, or None; for a library of documents. The 1,000 rows with the highest
            BM25 scores are raised.
        engine
            ``"local"``, or ``"ray"`` to attend on a Ray cluster; the result has the same bits.
        approximate
            Whether to attend only to candidates from Lance's vector index (see `index`); `top_mass` is then a lower
            bound.
        candidates
            Number of candidates per query.
        progress
            Called in each step with what is done and the total: bytes verified, then rows attended to.
        status
            Called with a line of text before each step.

        Returns
        -------
        LibraryAttention
            Heaviest rows with their weights, weighted values, entropy and LSE.

        Raises
        ------
        OptionError
            The library is empty, or an argument cannot be used; SQL that does not parse or fails on a row included.
        FormatError
            The library is damaged.
        ShapeError
            `queries` have another dimension.
        DtypeError
            `queries` or `values` are not numbers.

        Examples
        --------
        >>> import tempfile, numpy as np, keywise as kw
        >>> folder = tempfile.TemporaryDirectory()
        >>> library = kw.Library.open(folder.name + "/tokens", "a")
        >>> _ = library.add_keys(np.eye(4) * 9, token=[17, 4, 8, 23], group=["a", "a", "b", "b"])
        >>> attention = library.attend([0, 9, 0, 0], temperature=1.0, values="token", where="group = 'a'", top=1)
        >>> attention.value.round(1).tolist(), attention.top_mass.round(3).tolist()
        ([[4.0]], [1.0])
        """
        opened = self._opened
        dataset = opened.require_dataset()
        if not dataset.count_rows():
            raise opened.make_empty_error()
        check_engine(engine)
        announce = status or ignore_status
        if engine == "local":  # on a cluster each worker verifies its fragments
            announce("Verifying files")
            verify_files(self.path, dataset, progress=progress)
        vectors = opened.make_query_vectors(queries)
        if words is not None and (approximate or not opened.has_encoder):
            raise OptionError("words", "must be None for candidates and for keys of your own", got=words)
        query = make_query(
            dataset,
            vectors,
            temperature=self.temperature if temperature is None else temperature,
            where=where,
            top=top,
            values=values,
            words=[words] if isinstance(words, str) else words,
            path=self.path,
        )
        announce("Searching")
        if approximate:
            if engine != "local":
                raise OptionError("engine", "must be 'local' with approximate=True", got=engine)
            count = check_int("candidates", candidates, minimum=1)
            return make_attention(dataset, query, *attend_candidates(dataset, query, count), exact=False)
        result = opened.attend_all(dataset, query, engine, progress)
        return make_attention(dataset, query, result, np.ones(len(query.queries), np.float32), exact=True)

    def search(
        self,
        text: str,
        *,
        top: int = 10,
        where: str | None = None,
        temperature: float | None = None,
        keys_only: bool = False,
        progress: Progress | None = None,
        status: Status | None = None,
    ) -> list[SentenceHit]:
        """Return the sentences that a text attends to most, by their keys and by common words.

        Parameters
        ----------
        text
            A question, or other text.
        top
            Number of sentences.
        where
            Lance's SQL; sentences for which it does not hold are hidden.
        temperature
            Scores are divided by it; None for the library's own.
        keys_only
            Whether to rank by keys alone.
        progress, status
            See `attend`.

        Returns
        -------
        list of SentenceHit
            Heaviest first, with weights among all sentences and their shares by keys and by words.

        Raises
        ------
        OptionError
            The text or the library is empty, `where` cannot be used, or the library holds keys of the user's own.
        FormatError
            The library is damaged.
        ModelError
            The encoder is not the one that made the keys.

        Examples
        --------
        >>> import pathlib, tempfile, keywise as kw
        >>> class LetterEncoder:
        ...     name, fingerprint = "letters", "1"
        ...     def encode(self, texts):
        ...         return [[text.count(letter) for letter in "abcdefgh"] for text in texts]
        >>> folder = tempfile.TemporaryDirectory()
        >>> note = pathlib.Path(folder.name, "note.txt")
        >>> _ = note.write_text("Rain fell. The keeper feeds geese.")
        >>> library = kw.Library.open(folder.name + "/notes", "a", encoder=LetterEncoder())
        >>> _ = library.add([note])
        >>> library.search("geese?", top=1)[0].text
        'The keeper feeds geese.'
        """
        question = check_text("text", text)
        attention = self.attend(
            [question] if keys_only else [question, question],
            top=top,
            where=where,
            temperature=temperature,
            values=None,
            words=None if keys_only else [None, question],
            progress=progress,
            status=status,
        )
        return make_hits(attention)

    @property
    def dataset(self) -> Any:
        """The Lance dataset; None before anything was added."""
        return self._opened.dataset

    @property
    def path(self) -> str:
        """The absolute path of the folder, or the address."""
        return self._opened.path

    @property
    def version(self) -> int:
        """The open version, which grows with every commit; 0 before anything was added."""
        return 0 if self._opened.dataset is None else int(self._opened.dataset.version)

    @property
    def temperature(self) -> float:
        """The default temperature; docs/library.md describes its calibration."""
        dataset = self._opened.require_dataset()
        with convert_lance_errors(self.path, "cannot be read"):
            return load_temperature(self.path, dataset)

    def versions(self) -> list[dict[str, Any]]:
        """Return the versions that can be opened.

        Returns
        -------
        list of dict
            ``version`` and ``timestamp`` (ISO 8601) of each, oldest first.

        Raises
        ------
        OptionError
            The library is empty.

        Examples
        --------
        >>> import tempfile, numpy as np, keywise as kw
        >>> folder = tempfile.TemporaryDirectory()
        >>> library = kw.Library.open(folder.name + "/tokens", "a")
        >>> _ = library.add_keys(np.eye(2))
        >>> [version["version"] for version in library.versions()]
        [1, 2]
        """
        dataset = self._opened.require_dataset()
        with convert_lance_errors(self.path, "cannot be read"):
            versions = dataset.versions()
        return [{"version": version["version"], "timestamp": version["timestamp"].isoformat()} for version in versions]

    def documents(self) -> dict[str, str]:
        """Return the documents of the library.

        Returns
        -------
        dict of str to str
            The SHA-256 of each document's file, by its name; empty if the keys are the user's own.

        Examples
        --------
        >>> import hashlib, pathlib, tempfile, keywise as kw
        >>> class LetterEncoder:
        ...     name, fingerprint = "letters", "1"
        ...     def encode(self, texts):
        ...         return [[text.count(letter) for letter in "abcdefgh"] for text in texts]
        >>> folder = tempfile.TemporaryDirectory()
        >>> note = pathlib.Path(folder.name, "note.txt")
        >>> _ = note.write_text("The lamp is lit. Ann is the keeper.")
        >>> library = kw.Library.open(folder.name + "/notes", "a", encoder=LetterEncoder())
        >>> _ = library.add([note])
        >>> library.documents() == {str(note): hashlib.sha256(note.read_bytes()).hexdigest()}
        True
        """
        return {} if self._opened.dataset is None else read_digests(self.path, self._opened.require_verified())

    def info(self) -> LibraryInfo:
        """Return a description of the library.

        Returns
        -------
        LibraryInfo
            Numbers of rows and documents, dimension and dtype of the keys, columns, encoder and temperature.

        Raises
        ------
        OptionError
            The library is empty.

        Examples
        --------
        >>> import tempfile, numpy as np, keywise as kw
        >>> folder = tempfile.TemporaryDirectory()
        >>> library = kw.Library.open(folder.name + "/tokens", "a")
        >>> _ = library.add_keys(np.eye(4), token=[17, 4, 8, 23])
        >>> info = library.info()
        >>> info.rows, info.dimension, info.columns, info.temperature
        (4, 4, ['token'], 2.0)
        """
        dataset = self._opened.require_dataset()
        key_format = read_key_format(dataset.schema)
        encoder = read_encoder_id(dataset.schema)
        rows = dataset.count_rows()
        return LibraryInfo(
            path=self.path,
            version=self.version,
            rows=rows,
            documents=None if encoder is None else len(self.documents()),
            dimension=key_format.dimension,
            dtype=key_format.dtype,
            columns=list_columns(dataset.schema),
            encoder=None if encoder is None else encoder.name,
            fingerprint=None if encoder is None else encoder.fingerprint,
            temperature=self.temperature if rows else None,
        )

    def index(self, **options: Any) -> None:
        """Create Lance's vector index over the keys, which `attend(approximate=True)` needs.

        Parameters
        ----------
        **options
            Options of ``lance.LanceDataset.create_index``, such as `num_partitions`.

        Raises
        ------
        OptionError
            The library is empty, or open for reading.

        Examples
        --------
        >>> import tempfile, numpy as np, keywise as kw
        >>> folder = tempfile.TemporaryDirectory()
        >>> library = kw.Library.open(folder.name + "/numbers", "a", dtype="float32")
        >>> _ = library.add_keys(np.eye(8) * 9, number=np.arange(8))
        >>> library.index(num_partitions=1)
        >>> attention = library.attend(np.eye(8)[5] * 9, approximate=True, candidates=4, top=1)
        >>> attention.matches[0][0]["number"], attention.exact
        (5, False)
        """
        self._opened.check_writable()
        dataset = self._opened.require_verified()
        with transactions.lock_writers(self.path):
            dataset.create_index(KEY, **{"index_type": "IVF_FLAT", "metric": "dot", "replace": True, **options})
        self._opened.reopen()

    def compact(self) -> None:
        """Rewrite many small additions as few files without deleted rows, which speeds up scans.

        Raises
        ------
        OptionError
            The library is empty, or open for reading.

        Examples
        --------
        >>> import tempfile, numpy as np, keywise as kw
        >>> folder = tempfile.TemporaryDirectory()
        >>> library = kw.Library.open(folder.name + "/numbers", "a")
        >>> for number in range(3):
        ...     _ = library.add_keys(np.eye(2))
        >>> library.compact()
        >>> len(library.dataset.get_fragments())
        1
        """
        self._opened.check_writable()
        dataset = self._opened.require_verified()
        with transactions.lock_writers(self.path):
            dataset.optimize.compact_files()
        self._opened.reopen()
