"""A library: keys of sentences, or of anything, over a Lance dataset; attention to all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from keywise.attention.problem import real, whole
from keywise.errors import DtypeError, FormatError, ModelError, OptionError, ShapeError
from keywise.hf.models import needs
from keywise.memory import commits, ingest
from keywise.memory.approximate import attend_candidates
from keywise.memory.calibrate import calibrated
from keywise.memory.encoder import Encoder, SentenceEncoder
from keywise.memory.mapped import MappedKeys
from keywise.memory.part import NO_ROW
from keywise.memory.scan import Query, attend_fragments, merged
from keywise.memory.schema import (
    KEY,
    SENTENCE_COLUMNS,
    checked_dtype,
    checked_numbers,
    key_array,
    key_type,
    made_by,
    make_schema,
)

Mode = Literal["r", "a"]
Engine = Literal["local", "ray"]
Array = NDArray[Any]

TEMPERATURE: Final = "keywise.temperature"
CALIBRATED_ROWS: Final = "keywise.temperature.rows"


@dataclass(frozen=True)
class Added:
    """What `Library.add` did.

    Attributes
    ----------
    added, replaced, unchanged
        Documents by name: new, changed since they were added, and left alone because their content is the same.
    skipped
        Documents that could not be read, each with the reason.
    sentences
        Number of sentences encoded.
    version
        The library's version now.
    """

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    sentences: int = 0
    version: int = 0


@dataclass(frozen=True)
class Info:
    """What a library is; `documents` and `encoder` are None where its keys are the user's."""

    path: str
    version: int
    rows: int
    documents: int | None
    dimension: int
    dtype: str
    columns: list[str]
    encoder: str | None
    fingerprint: str | None
    temperature: float | None


@dataclass(frozen=True, eq=False)
class Attended:
    """What attention to a library found, per query.

    Attributes
    ----------
    weights : [Q, top] float32
        Weights of the heaviest rows, heaviest first; 0 where there are fewer rows.
    rows : [Q, top] int64
        Their addresses in this version; -1 where there are fewer rows.
    covered : [Q] float32
        Sum of `weights`: what part of all the mass the rows named have. A lower bound if not `exact`.
    value : [Q, Dv] float32 or None
        Weighted sum of the values over all rows.
    entropy, lse : [Q] float32
        Entropy of the weights over all rows, and log-sum-exp of the scores, in nats.
    temperature
        What scores were divided by.
    exact
        Whether every row was attended to; if not, `value`, `entropy` and `lse` are those of the candidates.
    dataset
        The version that was attended to.
    """

    weights: Array
    rows: Array
    covered: Array
    value: Array | None
    entropy: Array
    lse: Array
    temperature: float
    exact: bool
    dataset: Any = field(repr=False)

    @cached_property
    def matches(self) -> list[list[dict[str, Any]]]:
        """Per query its heaviest rows: ``weight`` and the columns besides the key; read when they are asked for."""
        addresses = sorted({int(row) for row in self.rows.reshape(-1) if row != NO_ROW})
        if not addresses:
            return [[] for _ in self.rows]
        columns = ingest.columns_of(self.dataset.schema)
        # Without stable ids of rows, which a library never has, a row's id is its address.
        condition = f"_rowid IN ({', '.join(map(str, addresses))})"
        table = self.dataset.scanner(columns=columns, filter=condition, with_row_id=True).to_table()
        rows = {row.pop("_rowid"): row for row in table.to_pylist()}
        return [
            [{"weight": float(weight), **rows[int(row)]} for weight, row in zip(*both, strict=True) if row != NO_ROW]
            for both in zip(self.weights, self.rows, strict=True)
        ]


@dataclass(frozen=True)
class Sentence:
    """A sentence that a question attended to: its weight among all sentences, its file, its span in characters."""

    text: str
    document: str
    start: int
    end: int
    weight: float
    rank: int


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
        self._dataset: Any = _opened(path, version)
        self._maps: MappedKeys | None = None
        if self._dataset is None:
            if mode == "r":
                raise FormatError(f"{path!r}: there is no library; make one with `keywise library add`, or mode='a'")
            return
        key_type(self._dataset.schema, path)
        if encoder is not None:
            self._check_encoder(encoder)

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
            whole("version", version, minimum=1)
            if mode != "r":
                raise OptionError(f"version={version} is for asking only; open it with mode='r'")
        chosen = SentenceEncoder(encoder) if isinstance(encoder, str | os.PathLike) else encoder
        if chosen is not None and not isinstance(chosen, Encoder):
            raise DtypeError(f"encoder={encoder!r} is no name and has not the parts of keywise.memory.Encoder")
        text = os.fspath(path)
        place = os.path.abspath(os.path.expanduser(text)) if commits.is_local(text) else text
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
            ``"ray"`` reads and encodes on a Ray cluster; see `keywise.memory.cluster`.

        Raises
        ------
        OptionError
            When the library is open for reading, or its keys are the user's.
        ModelError
            When the encoder is not the one that made its keys.
        """
        self._check_writable()
        checked_engine(engine)
        files, unread = ingest.find_files(paths)
        encoder = self._encoder_for_text()
        self._create(encoder)
        known = self._known()
        done = Added(skipped=unread)
        changed: list[tuple[str, str]] = []
        for path in files:
            try:
                digest = ingest.content_hash(path)
            except FormatError as error:
                done.skipped[path] = str(error)
                continue
            if known.get(path) == digest:
                done.unchanged.append(path)
            else:
                changed.append((path, digest))
        target = ingest.Target(self._path, self._dataset.schema, encoder)
        if engine == "ray":
            from keywise.memory.cluster import read_and_encode  # noqa: PLC0415 - optional

            groups: Iterable[ingest.Written] = [read_and_encode(target, changed, progress)]
        else:
            groups = ingest.read_and_encode(target, changed, progress)
        sentences = 0
        for group in groups:
            done.skipped.update(group.skipped)
            if group.documents:
                commits.commit(self._path, group.fragments, group.documents)
            for name in group.documents:
                (done.replaced if name in known else done.added).append(name)
            sentences += group.sentences
        self._reopen()
        self._calibrate()
        return Added(done.added, done.replaced, done.unchanged, done.skipped, sentences, self.version)

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
        arrays = {name: _column(name, values, len(numbers)) for name, values in columns.items()}
        if self._dataset is None:
            kinds = [pa.field(name, array.type) for name, array in arrays.items()]
            self._make(make_schema(numbers.shape[1], dtype, kinds))
        schema = self._dataset.schema
        if set(arrays) != set(ingest.columns_of(schema)):
            raise OptionError(
                f"columns {sorted(arrays)} are not the library's, {sorted(ingest.columns_of(schema))}; give these"
            )
        try:
            given = [key_array(numbers), *(arrays[name].cast(schema.field(name).type) for name in schema.names[1:])]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DtypeError(f"columns do not have the types of the library's: {error}") from error
        written = commits.write(self._path, schema, [pa.RecordBatch.from_arrays(given, schema=schema)])
        commits.commit(self._path, written, [])
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
        known = self._known()
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
        query = self._query(queries, temperature, where, top, values)
        checked_engine(engine)
        share: Array = np.ones(len(query.queries), np.float32)
        if approximate:
            if engine != "local":
                raise OptionError(f"engine={engine!r} has no approximate=True; leave one of them out")
            part, share = attend_candidates(self._dataset, query, whole("candidates", candidates, minimum=1))
        elif engine == "ray":
            from keywise.memory.cluster import attend_on_cluster  # noqa: PLC0415 - optional

            part = merged(attend_on_cluster(self._path, self._dataset, query), query)
        else:
            parts = attend_fragments(self._dataset, self._dataset.get_fragments(), query, self._mapped())
            part = merged(parts, query)
        weights = part.weights * share[:, None]
        return Attended(
            weights=weights,
            rows=part.rows,
            covered=weights.sum(axis=1),
            value=None if values is None else part.value,
            entropy=part.entropy,
            lse=part.lse,
            temperature=query.temperature,
            exact=not approximate,
            dataset=self._dataset,
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
        found = self.attend(_asked(text), top=top, where=where, temperature=temperature, values=None)
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
        said = {} if self._dataset is None else self._dataset.config()
        if TEMPERATURE in said:
            return float(said[TEMPERATURE])
        dimension, _ = key_type(self._require().schema, self._path)
        if not self._is_of_sentences():
            return float(np.sqrt(dimension))
        return calibrated(self._dataset)

    def versions(self) -> list[dict[str, Any]]:
        """List the versions that can be opened, oldest first: ``version`` and ``timestamp`` each."""
        return [
            {"version": version["version"], "timestamp": version["timestamp"].isoformat()}
            for version in self._require().versions()
        ]

    def documents(self) -> dict[str, str]:
        """Give the digest of every document's content by its name; empty where keys are the user's."""
        return {} if self._dataset is None or not self._is_of_sentences() else self._known()

    def info(self) -> Info:
        """Say what the library is."""
        dataset = self._require()
        dimension, dtype = key_type(dataset.schema, self._path)
        name, fingerprint = made_by(dataset.schema)
        rows = dataset.count_rows()
        of_sentences = self._is_of_sentences()
        return Info(
            path=self._path,
            version=self.version,
            rows=rows,
            documents=len(self._known()) if of_sentences else None,
            dimension=dimension,
            dtype=dtype,
            columns=ingest.columns_of(dataset.schema),
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

    def _query(self, queries: Any, temperature: float | None, where: str | None, top: int, values: str | None) -> Query:
        dataset = self._require()
        if not dataset.count_rows():
            raise OptionError(f"the library {self._path!r} is empty; add documents first")
        dimension, dtype = key_type(dataset.schema, self._path)
        if isinstance(queries, str):
            queries = [queries]
        if isinstance(queries, Sequence) and queries and all(isinstance(text, str) for text in queries):
            queries = self._encoder_for_text().encode([_asked(text) for text in queries])
        numbers = np.asarray(queries)
        numbers = checked_numbers("queries", numbers[None] if numbers.ndim == 1 else numbers, dimension, dtype)
        if temperature is None:
            temperature = self.temperature
        elif real("temperature", temperature) <= 0:
            raise OptionError(f"temperature={temperature}: it is above 0")
        if where is not None:
            self._check_where(where)
        return Query(
            queries=numbers,
            temperature=float(temperature),
            top=whole("top", top, minimum=0),
            values=values,
            value_dim=0 if values is None else self._value_dim(values),
            where=where,
        )

    def _check_where(self, where: str) -> None:
        try:
            self._dataset.scanner(columns=[], filter=where, with_row_id=True).explain_plan()
        except (ValueError, OSError, TypeError) as error:
            said = str(error).partition(", /")[0]
            raise OptionError(f"where={where!r} cannot be used: {said}; it is Lance's SQL over the columns") from error

    def _value_dim(self, values: str) -> int:
        schema = self._dataset.schema
        if values not in schema.names:
            raise OptionError(f"values={values!r} is no column; there are {', '.join(schema.names)}")
        kind = schema.field(values).type
        width, kind = (kind.list_size, kind.value_type) if pa.types.is_fixed_size_list(kind) else (1, kind)
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise DtypeError(f"values={values!r} is a column of {kind}; name a numeric column")
        return int(width)

    def _known(self) -> dict[str, str]:
        if not self._is_of_sentences():
            raise OptionError(f"{self._path!r} holds keys of the user's, no documents")
        table = self._require().scanner(columns=["document", "hash"], filter="sentence = 0").to_table()
        return dict(zip(table["document"].to_pylist(), table["hash"].to_pylist(), strict=True))

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
            self._check_encoder(self._encoder)
        return self._encoder

    def _check_encoder(self, encoder: Encoder) -> None:
        name, fingerprint = made_by(self._dataset.schema)
        if not fingerprint:
            raise ModelError(f"encoder={encoder.name!r}: the keys of {self._path!r} are the user's, made by no encoder")
        if encoder.fingerprint != fingerprint:
            raise ModelError(
                f"the keys of {self._path!r} were made by encoder {name!r} (fingerprint {fingerprint[:12]}), not by "
                f"{encoder.name!r} (fingerprint {encoder.fingerprint[:12]}); open it with encoder={name!r}, or make a "
                "library of its own"
            )

    def _create(self, encoder: Encoder) -> None:
        if self._dataset is None:
            probe = checked_numbers("keys", encoder.encode(["."]), None, self._dtype)
            schema = make_schema(
                probe.shape[1], self._dtype, SENTENCE_COLUMNS, name=encoder.name, fingerprint=encoder.fingerprint
            )
            self._make(schema)
            self._check_encoder(encoder)
        if not self._is_of_sentences():
            raise OptionError(f"{self._path!r} holds keys of the user's; documents go into a library of their own")

    def _make(self, schema: Any) -> None:
        """Make the library without rows, unless another process was first."""
        with commits.alone(self._path):
            if _opened(self._path, None) is None:
                lance.write_dataset(schema.empty_table(), self._path, schema=schema, mode="create")
        self._reopen()

    def _calibrate(self) -> None:
        """Find the temperature anew whenever the library has doubled."""
        rows = self._dataset.count_rows()
        before = int(self._dataset.config().get(CALIBRATED_ROWS, "0"))
        if rows < 2 * max(before, 1):
            return
        found = calibrated(self._dataset)
        with commits.alone(self._path):
            self._reopen()
            self._dataset.update_config({TEMPERATURE: repr(found), CALIBRATED_ROWS: str(rows)})
        self._reopen()

    def _mapped(self) -> MappedKeys:
        if self._maps is None:
            self._maps = MappedKeys(*key_type(self._dataset.schema, self._path))
        return self._maps

    def _require(self) -> Any:
        if self._dataset is None:
            raise OptionError(f"the library {self._path!r} is empty; add documents first")
        return self._dataset

    def _check_writable(self) -> None:
        if self._mode != "a":
            raise OptionError(f"the library {self._path!r} is open for reading; open it with mode='a'")
        self._reopen()  # others may have written meanwhile

    def _reopen(self) -> None:
        self._dataset = _opened(self._path, self._version)


def checked_engine(engine: str) -> None:
    """Check the name of an engine, and that what it needs is there."""
    if engine not in {"local", "ray"}:
        raise OptionError(f"engine={engine!r}: there are 'local' and 'ray'")
    if engine == "ray":
        needs("cluster", "ray")


def _opened(path: str, version: int | None) -> Any:
    """Give the dataset, None where there is none."""
    if commits.is_local(path) and not _has_versions(path):
        return None
    try:
        return lance.dataset(path, version=version)
    except (ValueError, OSError) as error:
        said = str(error).partition(", /")[0]
        if not commits.is_local(path) and "not found" in said:
            return None
        wanted = f"version={version} of " if version is not None else ""
        raise FormatError(f"{wanted}{path!r} cannot be opened: {said}; `versions()` lists what there is") from error


def _has_versions(path: str) -> bool:
    """Tell whether a folder holds a dataset, and refuse one that holds something else."""
    if not os.path.exists(path):
        return False
    if not os.path.isdir(path):
        raise FormatError(f"{path!r} is a file; a library is a folder")
    versions = os.path.join(path, "_versions")
    if os.path.isdir(versions) and any(name.endswith(".manifest") for name in os.listdir(versions)):
        return True
    # What Lance had begun to write when the process was killed is in the way of nobody.
    if any(not name.startswith("_") and name != "data" for name in os.listdir(path)):
        raise FormatError(f"{path!r} is a folder without a library in it; name a folder of its own")
    return False


def _asked(text: str) -> str:
    if not isinstance(text, str):
        raise DtypeError(f"text={text!r} is no text; ask in words")
    if not text.strip():
        raise OptionError(f"text={text!r} is empty; ask in words")
    return text.strip()


def _column(name: str, values: Any, rows: int) -> Any:
    if name in {KEY, "weight"}:
        raise OptionError(f"a column cannot be called {name!r}; choose another name")
    array = np.asarray(values)
    if array.ndim == 2 and array.dtype.kind in "fiu" and len(array) == rows:
        return key_array(np.ascontiguousarray(array))
    try:
        column = pa.array(values) if array.ndim != 1 or array.dtype.kind not in "fiub" else pa.array(array)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DtypeError(f"column {name!r} cannot be kept: {error}; give numbers or texts, one per key") from error
    if len(column) != rows:
        raise ShapeError(f"column {name!r} has {len(column)} entries; it needs one per key: {rows}")
    return column
