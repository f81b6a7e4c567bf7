"""What was read stays on disk: found again by the longest common prefix of tokens, within a limit of bytes."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.cache import file
from keywise.cache.head import VERSION
from keywise.cache.kvcache import KVCache
from keywise.errors import FormatError, OptionError
from keywise.util.atomic_write import UNFINISHED_PREFIX, atomic_write
from keywise.util.paths import cache_folder
from keywise.util.progress import Status

DEFAULT_LIMIT_BYTES: Final = 4 * 10**9
# Less in common than this is read again sooner than a large file is opened.
FEWEST_REUSED_TOKENS: Final = 64
ABANDONED_SECONDS: Final = 3600
SENTENCE_OF: Final = "sentence_of"
"""Kept with a whole document: for each of its tokens the number of its sentence."""
_SUFFIX: Final = ".keywise"
_ABOUT: Final = "about"
_TEXT: Final = "text_sha256"


@dataclass(frozen=True)
class Kept:
    """A reading on disk.

    Attributes
    ----------
    path
        Its file.
    sources
        Names of the texts that were read.
    model
        Name of the model that read them.
    tokens
        Number of tokens, those of the prompt before the document included.
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
class Found:
    """A reading that begins with tokens that are wanted.

    Attributes
    ----------
    path
        Its file.
    cache
        Its keys and values, mapped; those of a layer are verified when it is first used, and raise `FormatError` then.
    common_tokens
        How many of the wanted tokens it begins with.
    token_ids
        int64 [tokens], those that it has.
    extra
        What was kept with it.
    """

    path: Path
    cache: KVCache
    common_tokens: int
    token_ids: NDArray[np.int64]
    extra: Mapping[str, NDArray[Any]]


class Store:
    """The folder of all readings, one file each.

    Parameters
    ----------
    cache_dir
        Where keywise keeps things; default is ``KEYWISE_CACHE_DIR``, else keywise's folder in the user's cache.
    status
        Called with a line of text about every file that could not be used or written; default is a warning.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = Store(folder)
    ...     store.limit_bytes = 10**9
    ...     store.kept(), Store(folder).limit_bytes
    ([], 1000000000)
    """

    def __init__(self, cache_dir: str | os.PathLike[str] | None = None, status: Status | None = None) -> None:
        self.folder = cache_folder(cache_dir) / "documents"
        self._say = status or warnings.warn

    @property
    def limit_bytes(self) -> int:
        """Most bytes of all readings together; setting it removes those not used for longest until they fit.

        Raises
        ------
        OptionError
            When it is set to a negative number.
        FormatError
            When it cannot be written, or what was written is damaged.
        """
        try:
            limit = json.loads(self._settings.read_bytes())["limit_bytes"]
        except FileNotFoundError:
            return DEFAULT_LIMIT_BYTES
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FormatError(f"{self._settings}: cannot be read ({error}); set the limit again") from error
        if not isinstance(limit, int) or limit < 0:
            raise FormatError(f"{self._settings}: limit_bytes={limit!r} is no number of bytes; set the limit again")
        return limit

    @limit_bytes.setter
    def limit_bytes(self, limit: int) -> None:
        if limit < 0:
            raise OptionError(f"limit_bytes={limit} is below 0; give the most bytes that readings may take")
        try:
            _make(self.folder)
            with atomic_write(self._settings, private=True) as settings:
                settings.write(json.dumps({"limit_bytes": limit}).encode())
        except OSError as error:
            raise FormatError(f"{self._settings}: cannot be written ({error.strerror})") from error
        self.evict(limit)

    def kept(self) -> list[Kept]:
        """List all readings, the last used first; damaged ones are told of and left out."""
        found = []
        for path in self._files():
            try:
                opened = file.open(path, file.peek(path).fingerprint)
                stat = path.stat()
                about = json.loads(opened.extra[_ABOUT].tobytes())
            except (FormatError, FileNotFoundError) as error:
                self._say(f"{error}; remove it with `keywise cache clear`")
                continue
            names, model = tuple(about["sources"]), about["model"]
            found.append(Kept(path, names, model, opened.head.tokens, stat.st_size, stat.st_mtime))
        return sorted(found, key=lambda kept: -kept.used)

    def clear(self) -> int:
        """Remove all readings; give the bytes that this set free."""
        return sum(_remove(path) for path in [*self._files(), *self._abandoned()])

    @property
    def _settings(self) -> Path:
        return self.folder / "settings.json"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*/*{_SUFFIX}"))

    def _abandoned(self) -> list[Path]:
        """Give what writers left behind who were killed long ago."""
        long_ago = time.time() - ABANDONED_SECONDS
        return [path for path in self.folder.glob(f"*/{UNFINISHED_PREFIX}*") if path.stat().st_mtime < long_ago]

    def evict(self, limit: int, *, spare: Path | None = None) -> None:
        """Remove the readings not used for longest until the rest fits; one of them is spared."""
        for path in self._abandoned():
            _remove(path)
        sizes = {}
        for path in self._files():
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            sizes[path] = (path != spare, -stat.st_mtime, stat.st_size)
        total = 0
        for path in sorted(sizes, key=lambda path: sizes[path]):
            total += sizes[path][2]
            if total > limit:
                _remove(path)


class PrefillStore:
    """The readings of one model.

    Parameters
    ----------
    store
        The folder of all readings.
    fingerprint
        What `keywise.models.fingerprint` says of the model.
    model
        Its name.
    status
        Called with a line of text about every file that could not be used or written; default is a warning.
    """

    def __init__(self, store: Store, fingerprint: Mapping[str, str], model: str, status: Status | None = None) -> None:
        self._store, self._fingerprint, self._model, self._say = store, fingerprint, model, status or warnings.warn
        # Files of another format are another keywise's, not damaged.
        digest = hashlib.sha256(json.dumps([VERSION, fingerprint], sort_keys=True).encode())
        self.folder = store.folder / digest.hexdigest()[:16]
        self._refused: set[Path] = set()

    def whole(self, text_sha256: bytes) -> Found | None:
        """Find the reading of a whole document by the digest of its text; None if there is none."""
        path = self._path(text_sha256)
        opened = self._opened(path) if path.exists() else None
        if opened is None or not {SENTENCE_OF, _TEXT} <= opened.extra.keys():  # an interrupted reading has no sentences
            return None
        if opened.extra[_TEXT].tobytes() != text_sha256:
            return None
        return _used(path, opened, opened.head.common_tokens(opened.head.token_ids[0]))

    def find(self, token_ids: Sequence[int], text_sha256: bytes) -> Found | None:
        """Find the reading that begins with most of these tokens; None if none begins with 64, or is the same.

        It is mapped, not read. Files whose heads are damaged are told of and removed, never used; damage in keys and
        values shows when they are first used: then `refuse` it, and find again.
        """
        wanted, best, most = np.array(token_ids, np.int64), None, min(FEWEST_REUSED_TOKENS, len(token_ids)) - 1
        # The same text is looked for under its own name first: then the others need not be opened.
        same = self._path(text_sha256)
        for path in sorted(self.folder.glob(f"*{_SUFFIX}"), key=lambda path: path != same):
            if most == len(token_ids):
                break
            opened = self._opened(path)
            common = opened.head.common_tokens(wanted) if opened else 0
            if opened and common > most:
                best, most = (path, opened), common
        return best and _used(*best, most)

    def _opened(self, path: Path) -> file.Opened | None:
        """Open a reading; None if it was refused before, or is damaged now."""
        if path in self._refused:
            return None
        try:
            return file.open(path, self._fingerprint)
        except FormatError as error:
            self.refuse(path, error)
            return None

    def keep(
        self,
        cache: KVCache,
        token_ids: Sequence[int],
        text_sha256: bytes,
        *,
        sources: Sequence[str],
        extra: Mapping[str, NDArray[Any]],
        replacing: Found | None,
    ) -> None:
        """Write a reading, in place of one whose tokens are all in it; say so if it is too large or cannot be."""
        size_bytes = sum(
            side.data.nbytes for layer in range(cache.layers) for chunk in cache.chunks(layer) for side in chunk
        )
        about = json.dumps({"sources": list(sources), "model": self._model}).encode()
        path = self._path(text_sha256)
        also = {_ABOUT: np.frombuffer(about, np.uint8), _TEXT: np.frombuffer(text_sha256, np.uint8)}
        try:
            limit = self._store.limit_bytes
            if size_bytes > limit:
                self._say(f"Not kept: {size_bytes:,} bytes are more than the limit of {limit:,}; see `keywise cache`")
                return
            _make(self._store.folder)
            _make(self.folder)
            file.save(
                path,
                cache,
                fingerprint=self._fingerprint,
                token_ids=np.array(token_ids, np.int64),
                extra={**extra, **also},
            )
        except (FormatError, OSError) as error:
            self._say(f"Not kept: {error}")
            return
        self._refused.discard(path)
        if replacing is not None and replacing.path != path and replacing.common_tokens == replacing.token_ids.size:
            _remove(replacing.path)
        self._store.evict(limit, spare=path)

    def _path(self, text_sha256: bytes) -> Path:
        return self.folder / f"{text_sha256.hex()[:32]}{_SUFFIX}"

    def refuse(self, path: Path, error: FormatError) -> None:
        """Never use a damaged file again: tell the reason and remove it."""
        self._refused.add(path)
        try:
            _remove(path)
        except OSError as refusal:
            self._say(f"{error}; not used, to be read again, but it cannot be removed ({refusal.strerror})")
        else:
            self._say(f"{error}; removed, to be read again")


def _used(path: Path, opened: file.Opened, common_tokens: int) -> Found:
    with suppress(OSError):  # removed by another process, or not ours to change; what is open stays
        os.utime(path)
    return Found(path, opened.cache, common_tokens, opened.head.token_ids[0], opened.extra)


def _make(folder: Path) -> None:
    # The files tell what was read: they are for their owner alone.
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _remove(path: Path) -> int:
    """Remove a file; readers that have it open keep it. Give its bytes."""
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size
