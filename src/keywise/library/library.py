"""A library: keys of sentences, or of anything, over a Lance dataset; attention to all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from keywise.errors import DtypeError, FormatError, OptionError
from keywise.library import commits, ingest
from keywise.library.approximate import attend_candidates
from keywise.library.calibrate import keep_calibrated, temperature_of
from keywise.library.encoder import Encoder, SentenceEncoder
from keywise.library.found import Added, Attended, Info, Sentence
from keywise.library.mapped import MappedKeys
from keywise.library.opening import is_local, opened
from keywise.library.own_keys import arrow_columns, rows_of
from keywise.library.part import Array
from keywise.library.query import checked_query, checked_text
from keywise.library.scan import attend_fragments, merged
from keywise.library.schema import (
    KEY,
    SENTENCE_COLUMNS,
    check_made_by,
    checked_dtype,
    checked_numbers,
    columns_of,
    key_type,
    made_by,
    make_schema,
)
from keywise.util.checks import check_int
from keywise.util.optional_imports import require_modules

Mode = Literal["r", "a"]
Engine = Literal["local", "ray"]


class Library:
    """Keys that stay, over many documents: open one with `Library.open`.

    Examples
    --------
    >>> import tempfile, numpy as np, keywise as kw
    >>> folder = tempfile.mkdtemp()
    >>> library = kw.Library.open(folder + "/memory", "a")
    >>> _ = library.add_keys(np.eye(3) * 9, number=[1.0, 2.0, 3.0])
    >>> found = library.attend([[0, 9, 0]], temperature=1.0, values="number", top=1)
    >>> found.value.round(2).tolist(), found.matches[0][0]["number"]
    ([[2.0]], 2.0)
    """

    def __init__(self, path: str, mode: Mode, encoder: Encoder | None, version: int | None, dtype: str) -> None:
        self._path, self._mode, self._encoder, self._version, self._dtype = path, mode, encoder, version, dtype
        self._dataset: Any = opened(path, version)
        self._maps: MappedKeys | None = None
        if self._dataset is None:
            if mode == "r":
                raise FormatError(f"{path!r}: there is no library; make one with `keywise library add`, or mode='a'")
            return
        key_type(self._dataset.schema, path)
        if encoder is not None:
            check_made_by(encoder, self._dataset.schema, path)

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
        """Open a library, a Lance dataset in a folder or an object store.

        Parameters
        ----------
        path
            A folder, or an address as Lance takes them, such as ``s3://bucket/library``.
        mode
            ``"r"`` to ask; ``"a"`` to add and remove too, and to make the library when there is none.
        encoder
            What makes keys of texts: a hub id or folder of a model of sentence-transformers, or an `Encoder`. None
            takes the library's own, for a new one all-MiniLM-L6-v2.
        version
            The version to open, for asking only; default the latest.
        dtype
            How a new library keeps its keys: ``"float16"`` or ``"float32"``.

        Raises
        ------
        FormatError
            When there is no library there, or no such version of it.
        ModelError
            When `encoder` is not the one that made its keys, or cannot be found.
        OptionError, DtypeError
            When `mode`, `version` or `dtype` cannot be used.
        """
        if mode not in {"r", "a"}:
            raise OptionError(f"mode={mode!r}: a library is opened to read, 'r', or to add to, 'a'")
        if version is not None:
            check_int("version", version, minimum=1)
            if mode != "r":
                raise OptionError(f"version={version} is for asking only; open it with mode='r'")
        chosen = SentenceEncoder(encoder) if isinstance(encoder, str | os.PathLike) else encoder
        if chosen is not None and not isinstance(chosen, Encoder):
            raise DtypeError(f"encoder={encoder!r} is no name and has not the parts of keywise.library.Encoder")
        text = os.fspath(path)
        place = os.path.abspath(os.path.expanduser(text)) if is_local(text) else text
        return cls(place, mode, chosen, version, checked_dtype(dtype))

    def add(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        progress: ingest.Progress | None = None,
        engine: Engine = "local",
    ) -> Added:
        """Add documents: files, and all files in folders, hidden ones left out.

        A document whose content is there already is left alone; of a changed one the sentences are replaced, in one
        commit. What cannot be read is skipped and reported. Interrupted at any moment, the library holds whole
        documents, and adding again goes on.

        Parameters
        ----------
        paths
            Files and folders. A document's name is its absolute path.
        progress
            Called with the number of sentences encoded and the number read so far.
        engine
            ``"ray"`` reads and encodes on a Ray cluster; see `keywise.library.cluster`.

        Raises
        ------
        OptionError
            When the library is open for reading, or its keys are the user's.
        ModelError
            When the encoder is not the one that made its keys.
        """
        self._check_writable()
        _check_engine(engine)
        files, unread = ingest.find_files(paths)
        encoder = self._encoder_for_text()
        self._create(encoder)
        known = self.documents()
        changed, unchanged, unreadable = ingest.told_apart(files, known)
        done = Added(unchanged=unchanged, skipped=unread | unreadable)
        target = ingest.Target(self._path, self._dataset.schema, encoder)
        if engine == "ray":
            from keywise.library.cluster import read_and_encode  # noqa: PLC0415 - optional

            groups: Iterable[ingest.Written] = [read_and_encode(target, changed, progress)]
        else:
            groups = ingest.read_and_encode(target, changed, progress)
        sentences = 0
        for group in groups:
            done.skipped.update(group.skipped)
            if group.documents:
                commits.commit(self._path, group.fragments, group.documents)
            for name in group.documents:
                (done.updated if name in known else done.added).append(name)
            sentences += group.sentences
        keep_calibrated(self._path)
        self._reopen()
        return replace(done, sentences=sentences, version=self.version)

    def add_keys(self, keys: Any, **columns: Any) -> int:
        """Add keys of your own with columns of your own, to be attended to as values or named in `where`.

        Parameters
        ----------
        keys : [N, D]
            Finite numbers.
        columns
            Per column N numbers, texts or rows of numbers; the same columns with every call.

        Returns
        -------
        int
            The library's version now.

        Raises
        ------
        ShapeError, DtypeError, OptionError
            When keys are not finite or of another dimension, or columns do not fit.
        """
        self._check_writable()
        if self._dataset is not None and self._is_of_sentences():
            raise OptionError(f"{self._path!r} is a library of documents; keys of your own go into one of their own")
        dimension, dtype = (None, self._dtype) if self._dataset is None else key_type(self._dataset.schema, self._path)
        numbers = checked_numbers("keys", keys, dimension, dtype)
        arrays = arrow_columns(columns, len(numbers))
        if self._dataset is None:
            kinds = [pa.field(name, array.type) for name, array in arrays.items()]
            commits.make(self._path, make_schema(numbers.shape[1], dtype, kinds))
            self._reopen()
        schema = self._dataset.schema
        commits.commit(self._path, commits.write(self._path, schema, [rows_of(numbers, arrays, schema)]), [])
        self._reopen()
        return self.version

    def remove(self, documents: Sequence[str | os.PathLike[str]]) -> list[str]:
        """Remove documents, by path; a folder stands for all documents in it. Gives the names of those removed.

        Raises
        ------
        FormatError
            When one of them is not there; nothing is removed then.
        """
        self._check_writable()
        if not self._is_of_sentences():
            raise OptionError(f"{self._path!r} holds keys of the user's, no documents")
        known = self.documents()
        names: dict[str, None] = {}
        for document in documents:
            path = os.path.abspath(os.path.expanduser(os.fspath(document)))
            these = [name for name in known if name == path or name.startswith(path + os.sep)]
            if not these:
                raise FormatError(f"{path!r} is not in the library {self._path!r}; `keywise library info` lists it")
            names.update(dict.fromkeys(these))
        commits.commit(self._path, [], list(names))
        self._reopen()
        return list(names)

    def attend(
        self,
        queries: Any,
        *,
        temperature: float | None = None,
        where: str | None = None,
        top: int = 10,
        values: str | None = KEY,
        engine: Engine = "local",
        approximate: bool = False,
        candidates: int = 1000,
    ) -> Attended:
        """Attend to every row: weights are exp(query . key / temperature), divided by their sum over all rows.

        Parameters
        ----------
        queries : [Q, D] or [D] array, text or list of texts
            Rounded to the dtype of the keys; texts are encoded.
        temperature
            What scores are divided by; default the library's own (see `temperature`).
        where
            Lance's SQL over the columns; rows for which it does not hold are hidden, as by a mask.
        top
            Number of heaviest rows to name per query.
        values
            The numeric column to weigh and sum: ``"key"`` for the keys, None for none.
        engine
            ``"ray"`` attends to the fragments on a Ray cluster; the result is the same.
        approximate
            Attend only to candidates that Lance's vector index names (see `index`); then `covered` is a lower bound.
        candidates
            How many per query, if `approximate`.

        Raises
        ------
        OptionError
            When the library is empty, or an argument cannot be used; `where` that does not parse among them.
        ShapeError, DtypeError
            When queries have another dimension or are not finite, or values are no numbers.
        """
        dataset = self._require()
        if not dataset.count_rows():
            raise self._empty()
        numbers = self._numbers(queries)
        chosen = self.temperature if temperature is None else temperature
        query = checked_query(dataset, numbers, temperature=chosen, where=where, top=top, values=values)
        _check_engine(engine)
        share: Array = np.ones(len(query.queries), np.float32)
        if approximate:
            if engine != "local":
                raise OptionError(f"engine={engine!r} has no approximate=True; leave one of them out")
            part, share = attend_candidates(dataset, query, check_int("candidates", candidates, minimum=1))
        elif engine == "ray":
            from keywise.library.cluster import attend_on_cluster  # noqa: PLC0415 - optional

            part = merged(attend_on_cluster(self._path, dataset, query), query)
        else:
            parts = attend_fragments(dataset, dataset.get_fragments(), query, self._mapped())
            part = merged(parts, query)
        weights = part.weights * share[:, None]
        return Attended(
            weights=weights,
            rows=part.rows,
            top_mass=weights.sum(axis=1),
            value=None if values is None else part.value,
            entropy=part.entropy,
            lse=part.lse,
            temperature=query.temperature,
            exact=not approximate,
            dataset=dataset,
        )

    def search(
        self, text: str, *, top: int = 10, where: str | None = None, temperature: float | None = None
    ) -> list[Sentence]:
        """Give the sentences that a text attends to most, each with its weight among all sentences.

        Raises
        ------
        OptionError
            When the text or the library is empty, or its keys are the user's.
        ModelError
            When the encoder is not the one that made its keys.
        """
        found = self.attend(checked_text(text), top=top, where=where, temperature=temperature, values=None)
        return [
            Sentence(match["text"], match["document"], match["start"], match["end"], float(match["weight"]), rank)
            for rank, match in enumerate(found.matches[0], start=1)
        ]

    @property
    def dataset(self) -> Any:
        """The Lance dataset, for all that Lance can do; None before anything was added."""
        return self._dataset

    @property
    def path(self) -> str:
        """Where it is."""
        return self._path

    @property
    def version(self) -> int:
        """The version that is open; every commit makes a new one. 0 before anything was added."""
        return 0 if self._dataset is None else int(self._dataset.version)

    @property
    def temperature(self) -> float:
        """What scores are divided by unless said otherwise; docs/library.md says how it is found."""
        return temperature_of(self._require())

    def versions(self) -> list[dict[str, Any]]:
        """List the versions that can be opened, oldest first: ``version`` and ``timestamp`` each."""
        return [
            {"version": version["version"], "timestamp": version["timestamp"].isoformat()}
            for version in self._require().versions()
        ]

    def documents(self) -> dict[str, str]:
        """Give the digest of every document's content by its name; empty where keys are the user's."""
        if self._dataset is None or not self._is_of_sentences():
            return {}
        table = self._dataset.scanner(columns=["document", "hash"], filter="sentence = 0").to_table()
        return dict(zip(table["document"].to_pylist(), table["hash"].to_pylist(), strict=True))

    def info(self) -> Info:
        """Say what the library is."""
        dataset = self._require()
        dimension, dtype = key_type(dataset.schema, self._path)
        name, fingerprint = made_by(dataset.schema)
        rows = dataset.count_rows()
        return Info(
            path=self._path,
            version=self.version,
            rows=rows,
            documents=len(self.documents()) if fingerprint else None,
            dimension=dimension,
            dtype=dtype,
            columns=columns_of(dataset.schema),
            encoder=name or None,
            fingerprint=fingerprint or None,
            temperature=self.temperature if rows else None,
        )

    def index(self, **options: Any) -> None:
        """Make Lance's vector index over the keys, which `approximate=True` needs; options are Lance's."""
        self._check_writable()
        dataset = self._require()
        with commits.alone(self._path):
            dataset.create_index(KEY, **{"index_type": "IVF_FLAT", "metric": "dot", "replace": True, **options})
        self._reopen()

    def compact(self) -> None:
        """Write many small additions together, and deleted rows out, so that scans go on at full speed."""
        self._check_writable()
        with commits.alone(self._path):
            self._require().optimize.compact_files()
        self._reopen()

    def _numbers(self, queries: Any) -> Array:
        """Give queries [Q, D] in the dtype of the keys; texts are encoded."""
        if isinstance(queries, str):
            queries = [queries]
        if isinstance(queries, Sequence) and queries and all(isinstance(text, str) for text in queries):
            queries = self._encoder_for_text().encode([checked_text(text) for text in queries])
        numbers = np.asarray(queries)
        dimension, dtype = key_type(self._dataset.schema, self._path)
        return checked_numbers("queries", numbers[None] if numbers.ndim == 1 else numbers, dimension, dtype)

    def _is_of_sentences(self) -> bool:
        return bool(made_by(self._require().schema)[1])

    def _encoder_for_text(self) -> Encoder:
        """Give the library's encoder, checked anew: an object of the user's may have changed."""
        if self._encoder is None:
            name = ""
            if self._dataset is not None:
                name, fingerprint = made_by(self._dataset.schema)
                if not fingerprint:
                    raise OptionError(
                        f"{self._path!r} holds keys of the user's, and no encoder; give queries as numbers"
                    )
            self._encoder = SentenceEncoder(name or None)
        if self._dataset is not None:
            check_made_by(self._encoder, self._dataset.schema, self._path)
        return self._encoder

    def _create(self, encoder: Encoder) -> None:
        if self._dataset is None:
            probe = checked_numbers("keys", encoder.encode(["."]), None, self._dtype)
            schema = make_schema(
                probe.shape[1], self._dtype, SENTENCE_COLUMNS, name=encoder.name, fingerprint=encoder.fingerprint
            )
            commits.make(self._path, schema)
            self._reopen()
            check_made_by(encoder, self._require().schema, self._path)
        if not self._is_of_sentences():
            raise OptionError(f"{self._path!r} holds keys of the user's; documents go into a library of their own")

    def _mapped(self) -> MappedKeys:
        if self._maps is None:
            self._maps = MappedKeys(*key_type(self._dataset.schema, self._path))
        return self._maps

    def _require(self) -> Any:
        if self._dataset is None:
            raise self._empty()
        return self._dataset

    def _empty(self) -> OptionError:
        return OptionError(f"the library {self._path!r} is empty; add documents first")

    def _check_writable(self) -> None:
        if self._mode != "a":
            raise OptionError(f"the library {self._path!r} is open for reading; open it with mode='a'")
        self._reopen()  # others may have written meanwhile

    def _reopen(self) -> None:
        self._dataset = opened(self._path, self._version)


def _check_engine(engine: str) -> None:
    if engine not in {"local", "ray"}:
        raise OptionError(f"engine={engine!r}: there are 'local' and 'ray'")
    if engine == "ray":
        require_modules("cluster", "ray")
