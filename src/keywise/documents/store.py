"""Prefilled documents on disk, found by the longest common prefix of tokens."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.cache import file
from keywise.cache.kvcache import KVCache
from keywise.errors import FormatError, MissingFileError, OptionError
from keywise.models.gguf import remove_abandoned_conversions
from keywise.util.atomic_write import atomic_write, sweep_unfinished
from keywise.util.checks import check_int
from keywise.util.paths import locate_cache_folder
from keywise.util.progress import Status
from keywise.util.regular_files import open_regular

DEFAULT_LIMIT_BYTES: Final = 4 * 10**9
# Computing fewer tokens is faster than opening a large file.
MIN_REUSED_TOKENS: Final = 64
MAX_LIMIT_BYTES: Final = 2**63 - 1
MAX_SETTINGS_BYTES: Final = 4096

FORMAT_VERSION: Final = 2
SENTENCE_IDS: Final = "sentence_ids"
"""Stored with a complete document: the sentence of each of its tokens."""
QUOTE_MARK_IDS: Final = "quote_mark_ids"
"""Stored with a complete document: tokens with a quotation mark; see `Prompt.quote_mark_ids`."""
_SUFFIX: Final = ".keywise"
_DESCRIPTION: Final = "description"
_TEXT_SHA256: Final = "text_sha256"
# Part of every folder's name since the first build, so that files of earlier builds are detected and replaced.
_FOLDER_VERSION: Final = 1


@dataclass(frozen=True)
class PrefillInfo:
    """A prefilled document on disk.

    Attributes
    ----------
    path
        Its file.
    sources
        Names of its texts.
    model
        Name of the model.
    tokens
        Number of tokens, those of the template before the document included.
    size_bytes
        Size of the file.
    used
        When it was last used, in seconds since 1970.
    """

    path: Path
    sources: tuple[str, ...]
    model: str
    tokens: int
    size_bytes: int
    used: float


@dataclass(frozen=True, eq=False)
class StoredPrefill:
    """A stored document that begins with the same tokens as another document.

    Attributes
    ----------
    path
        Its file.
    cache
        Its keys and values. Those of a layer are read and verified at their first use, which raises `FormatError` if
        they are damaged.
    common_tokens
        Number of tokens that both begin with.
    token_ids
        int64 [tokens], its tokens.
    extra
        Arrays that were stored with it.
    """

    path: Path
    cache: KVCache
    common_tokens: int
    token_ids: NDArray[np.int64]
    extra: Mapping[str, NDArray[Any]]


class PrefillStore:
    """The folder of prefilled documents, one file each.

    Parameters
    ----------
    cache_dir
        Folder of keywise's caches. Default: ``KEYWISE_CACHE_DIR``, else keywise's folder in the user's cache.
    status
        Called with a line of text about every file that cannot be used or written. Default: a warning.
    fingerprint
        The model's, from `keywise.models.fingerprint`. Without it documents can be listed, limited and cleared, but
        not found or saved.
    model
        The model's name.

    Attributes
    ----------
    folder : pathlib.Path
        The folder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = PrefillStore(folder)
    ...     store.limit_bytes = 10**9
    ...     store.kept(), PrefillStore(folder).limit_bytes
    ([], 1000000000)
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str] | None = None,
        status: Status | None = None,
        *,
        fingerprint: Mapping[str, str] | None = None,
        model: str = "",
    ) -> None:
        self.folder = locate_cache_folder(cache_dir) / "documents"
        self._fingerprint = dict(fingerprint or {})
        self._model = model
        self._report = status or warnings.warn
        digest = hashlib.sha256(json.dumps([_FOLDER_VERSION, self._fingerprint], sort_keys=True).encode())
        self._model_folder = self.folder / digest.hexdigest()[:16]
        self._discarded: set[Path] = set()

    @property
    def limit_bytes(self) -> int:
        """Most bytes of all documents together.

        Setting it removes the documents that were not used for longest, until the others fit.

        Raises
        ------
        DtypeError, OptionError
            It is set to something else than an integer between 0 and 2**63 - 1.
        FormatError
            The settings cannot be written, or are damaged.
        """
        try:
            with open_regular(self._settings) as settings:
                limit = json.loads(settings.read(MAX_SETTINGS_BYTES))["limit_bytes"]
            return check_int("limit_bytes", limit, minimum=0, maximum=MAX_LIMIT_BYTES)
        except FileNotFoundError:
            return DEFAULT_LIMIT_BYTES
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            rule = f"must be readable from {os.fspath(self._settings)!r} ({error})"
            raise FormatError("limit_bytes", rule, remedy="set the limit again") from error

    @limit_bytes.setter
    def limit_bytes(self, limit: int) -> None:
        limit = check_int("limit_bytes", limit, minimum=0, maximum=MAX_LIMIT_BYTES)
        try:
            _make_private_folder(self.folder)
            with atomic_write(self._settings, private=True) as settings:
                settings.write(json.dumps({"limit_bytes": limit}).encode())
        except OSError as error:
            rule = f"must be writable to {os.fspath(self._settings)!r}"
            raise FormatError("limit_bytes", rule, remedy=str(error.strerror)) from error
        self.evict(limit)

    def kept(self) -> list[PrefillInfo]:
        """Return all documents, the last used first.

        Files that are damaged or cannot be read are reported and left out.

        Returns
        -------
        list of PrefillInfo

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     PrefillStore(folder).kept()
        []
        """
        documents = []
        for path in self._list_files():
            try:
                opened = file.open(path, file.read_header(path).fingerprint)
                stat = path.stat()
                description = _read_description(path, opened.extra)
            except MissingFileError:  # another process removed it
                continue
            except (FormatError, OSError) as error:
                self._report(f"{error} (`keywise cache clear` removes it)")
                continue
            documents.append(
                PrefillInfo(
                    path=path,
                    sources=tuple(description["sources"]),
                    model=description["model"],
                    tokens=opened.header.tokens,
                    size_bytes=stat.st_size,
                    used=stat.st_mtime,
                )
            )
        return sorted(documents, key=lambda document: -document.used)

    def remove(self, name: str) -> int:
        """Remove the stored documents with a source, and return the freed bytes.

        Parameters
        ----------
        name
            Name of a source, as `kept` lists it.

        Returns
        -------
        int
            Bytes that this freed.

        Raises
        ------
        OptionError
            No document has it.
        FormatError
            A file cannot be removed.

        Examples
        --------
        >>> store.remove("report.pdf")  # doctest: +SKIP
        61431808
        """
        found = [document for document in self.kept() if name in document.sources]
        if not found:
            remedy = "`keywise cache ls` lists them"
            raise OptionError("name", "must be of a stored document", got=name, remedy=remedy)
        try:
            return sum(_remove(document.path) for document in found)
        except OSError as error:
            rule = f"must be a folder whose files can be removed; {error.filename!r} ({error.strerror}) stays"
            raise FormatError("cache_dir", rule) from error

    def clear(self) -> int:
        """Remove all documents, and what killed writers and conversions left in the cache.

        Returns
        -------
        int
            Bytes that this freed.

        Raises
        ------
        FormatError
            A file cannot be removed; the others are.
        """
        cache = self.folder.parent
        failures = []
        freed_bytes = 0
        try:
            freed_bytes += remove_abandoned_conversions(cache)
        except OSError as error:
            failures.append(f"{error.filename!r} ({error.strerror})")
        for folder in (cache, cache / "models", *self._list_folders()):
            freed_bytes += sweep_unfinished(folder)
        for path in self._list_files():
            try:
                freed_bytes += _remove(path)
            except OSError as error:
                failures.append(f"{os.fspath(path)!r} ({error.strerror})")
        if failures:
            raise FormatError("cache_dir", f"must be a folder whose files can be removed; {', '.join(failures)} stays")
        return freed_bytes

    def evict(self, limit: int, *, spare: Path | None = None) -> None:
        """Remove the documents that were not used for longest, until the others fit.

        What cannot be removed is reported.

        Parameters
        ----------
        limit
            Most bytes of all documents.
        spare
            A file that stays in any case.
        """
        for folder in self._list_folders():
            sweep_unfinished(folder)
        order: dict[Path, tuple[bool, float, int]] = {}
        for path in self._list_files():
            try:
                stat = path.stat()
            except OSError:  # another process removed it, or its folder cannot be read
                continue
            order[path] = (path != spare, -stat.st_mtime, stat.st_size)
        total_bytes = 0
        for path in sorted(order, key=order.__getitem__):
            _, _, size_bytes = order[path]
            total_bytes += size_bytes
            if total_bytes > limit:
                self._remove_or_report(path)

    def find_text(self, text_sha256: bytes) -> StoredPrefill | None:
        """Return the complete document with this digest of its text, or None.

        Parameters
        ----------
        text_sha256
            Digest of the document's text, from `Prompt.digest_sources`.
        """
        path = self._locate(text_sha256)
        opened = self._open(path)
        # An interrupted document was stored without its sentences.
        if opened is None or not {SENTENCE_IDS, _TEXT_SHA256} <= opened.extra.keys():
            return None
        if opened.extra[_TEXT_SHA256].tobytes() != text_sha256:
            return None
        return _mark_used(path, opened, opened.header.common_tokens(opened.header.token_ids[0]))

    def find(self, token_ids: Sequence[int], text_sha256: bytes) -> StoredPrefill | None:
        """Return the document that begins with most of these tokens.

        Parameters
        ----------
        token_ids
            The tokens of the template's beginning and a document.
        text_sha256
            Digest of the document's text.

        Returns
        -------
        StoredPrefill or None
            None if no document has 64 tokens in common. Files with a damaged header are reported and removed; those
            that cannot be read are reported. Damage in keys and values shows at their first use: `discard` the file
            then, and search again.
        """
        expected_ids = np.array(token_ids, np.int64)
        best: tuple[Path, file.Opened] | None = None
        most_tokens = min(MIN_REUSED_TOKENS, len(token_ids)) - 1
        # The file of the same text comes first: if it has all tokens, the others need not be opened.
        same_text = self._locate(text_sha256)
        for path in sorted(self._model_folder.glob(f"*{_SUFFIX}"), key=lambda path: path != same_text):
            if most_tokens == len(token_ids):
                break
            opened = self._open(path)
            common_tokens = opened.header.common_tokens(expected_ids) if opened else 0
            if opened and common_tokens > most_tokens:
                best = path, opened
                most_tokens = common_tokens
        return None if best is None else _mark_used(*best, most_tokens)

    def save(
        self,
        cache: KVCache,
        token_ids: Sequence[int],
        text_sha256: bytes,
        *,
        sources: Sequence[str],
        extra: Mapping[str, NDArray[Any]],
        replacing: StoredPrefill | None,
    ) -> None:
        """Write a document.

        One that is larger than the limit or cannot be written is reported.

        Parameters
        ----------
        cache
            Keys and values of all tokens.
        token_ids
            The tokens.
        text_sha256
            Digest of the document's text.
        sources
            Names of the document's texts.
        extra
            Arrays to store with it.
        replacing
            A stored document that is removed if this one begins with all of its tokens.
        """
        size_bytes = sum(
            side.data.nbytes for layer in range(cache.layers) for chunk in cache.chunks(layer) for side in chunk
        )
        description = json.dumps({"version": FORMAT_VERSION, "sources": list(sources), "model": self._model}).encode()
        own_arrays = {
            _DESCRIPTION: np.frombuffer(description, np.uint8),
            _TEXT_SHA256: np.frombuffer(text_sha256, np.uint8),
        }
        path = self._locate(text_sha256)
        try:
            limit = self.limit_bytes
            if size_bytes > limit:
                self._report(
                    f"Document not stored: its {size_bytes:,} bytes are more than the limit of {limit:,}; "
                    "see `keywise cache limit`"
                )
                return
            _make_private_folder(self.folder)
            _make_private_folder(self._model_folder)
            file.save(
                path,
                cache,
                fingerprint=self._fingerprint,
                token_ids=np.array(token_ids, np.int64),
                extra={**extra, **own_arrays},
            )
        except (FormatError, OSError) as error:
            self._report(f"Document not stored: {error}")
            return
        self._discarded.discard(path)
        if replacing is not None and replacing.path != path and replacing.common_tokens == replacing.token_ids.size:
            self._remove_or_report(replacing.path)
        self.evict(limit, spare=path)

    def discard(self, path: Path, error: FormatError) -> None:
        """Report a file that cannot be used, and remove it if it is damaged.

        It is never opened again.

        Parameters
        ----------
        path
            The file.
        error
            Why it cannot be used.
        """
        self._discarded.add(path)
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, IsADirectoryError):
            # The disk, the permissions or the number of open files are at fault, not the contents.
            self._report(f"{error} (not used: the document is computed again)")
            return
        try:
            _remove(path)
        except OSError as removal_error:
            self._report(
                f"{error} (not used: the document is computed again; removing failed: {removal_error.strerror})"
            )
        else:
            self._report(f"{error} (removed: the document is computed again)")

    def _open(self, path: Path) -> file.Opened | None:
        """Open a file; return None if it is missing, was discarded before or is discarded now."""
        if path in self._discarded:
            return None
        try:
            opened = file.open(path, self._fingerprint)
            _read_description(path, opened.extra)
        except MissingFileError:
            return None
        except FormatError as error:
            self.discard(path, error)
            return None
        return opened

    def _remove_or_report(self, path: Path) -> None:
        try:
            _remove(path)
        except OSError as error:
            self._report(f"{os.fspath(path)!r} cannot be removed: {error.strerror}")

    def _locate(self, text_sha256: bytes) -> Path:
        return self._model_folder / f"{text_sha256.hex()[:32]}{_SUFFIX}"

    @property
    def _settings(self) -> Path:
        return self.folder / "settings.json"

    def _list_files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*/*{_SUFFIX}"))

    def _list_folders(self) -> list[Path]:
        """Return the folder of the store and those of the models in it."""
        try:
            return [self.folder, *(path for path in self.folder.iterdir() if path.is_dir() and not path.is_symlink())]
        except OSError:
            return []


def _read_description(path: Path, extra: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return a file's description of its document; refuse files of other builds."""
    try:
        description: dict[str, Any] = json.loads(extra[_DESCRIPTION].tobytes())
        version = description["version"]
        names = [*description["sources"], description["model"]]
    except (KeyError, ValueError, TypeError, RecursionError):
        version = 1  # the first builds stored the description under another name
        names = []
    if version != FORMAT_VERSION or not all(isinstance(name, str) for name in names):
        builds = "an earlier" if version == 1 else "another"
        rule = f"{os.fspath(path)!r} was made by {builds} build"
        raise FormatError("path", rule, remedy="delete it or create it again")
    return description


def _mark_used(path: Path, opened: file.Opened, common_tokens: int) -> StoredPrefill:
    with suppress(OSError):  # removed by another process, or owned by another user: the open file stays valid
        os.utime(path)
    return StoredPrefill(path, opened.cache, common_tokens, opened.header.token_ids[0], opened.extra)


def _make_private_folder(folder: Path) -> None:
    # The files contain the text of documents: only their owner may read them.
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _remove(path: Path) -> int:
    """Remove a file and return its size in bytes.

    Processes that have the file open can still read it.
    """
    try:
        size_bytes = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size_bytes
