"""Documents that the server keeps on disk: their files, texts and sentences."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from keywise.documents.blocks import decode_blocks, decode_quotes, encode_blocks, encode_quotes
from keywise.documents.conversion import measure_pages
from keywise.documents.files import Source, read_content
from keywise.errors import FormatError, OptionError
from keywise.server.api_errors import ApiError
from keywise.server.settings import Limits
from keywise.util.atomic_write import ABANDONED_SECONDS, atomic_write, sweep_unfinished
from keywise.util.terminal_text import replace_controls

VERSION: Final = 1
NAMED: Final = "named"
UPLOADED: Final = "uploaded"
SENT: Final = "sent"
MAX_NAME_CHARACTERS: Final = 200
_ID: Final = re.compile(r"file-[0-9a-f]{32}")


@dataclass(frozen=True)
class StoredDocument:
    """A document that the server keeps.

    Attributes
    ----------
    id
        Its identifier, from its name and content.
    name
        What its sender calls it.
    size_bytes
        Length of its file.
    created_at
        When it came, in seconds since 1970.
    origin
        ``"named"`` on the command line, ``"uploaded"``, or ``"sent"`` inside a question.
    file_sha256, text_sha256
        Digests of the file, and of the text with its blocks and sentences.
    page_sizes
        Width and height of the pictures of its pages, in pixels; empty unless it is a PDF.
    warnings
        What its reader should know.
    """

    id: str
    name: str
    size_bytes: int
    created_at: int
    origin: str
    file_sha256: str
    text_sha256: str
    page_sizes: tuple[tuple[int, int], ...] = ()
    warnings: tuple[str, ...] = ()


class DocumentStore:
    """Documents in a folder.

    A document is three files: its content, its text, and a record, which is written last. Without a record it does not
    exist.

    Parameters
    ----------
    folder
        The folder; it is created for its owner alone.
    limits
        Most of what is kept.

    Raises
    ------
    OptionError
        The folder cannot be used.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._lock = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sweep_unfinished(folder)
            records = [read_record(path) for path in folder.glob("*.json")]
        except OSError as error:
            raise OptionError(
                "data_dir", "must be a folder that can be written", got=str(folder), remedy=str(error.strerror)
            ) from error
        self._documents = {record.id: record for record in records if record is not None}
        self._remove_leftovers()

    def list_documents(self) -> list[StoredDocument]:
        """Return all documents, the newest first."""
        with self._lock:
            return sorted(self._documents.values(), key=lambda each: (-each.created_at, each.name))

    def get(self, document_id: str) -> StoredDocument:
        """Return a document.

        Raises
        ------
        ApiError
            There is none of this identifier.
        """
        with self._lock:
            document = self._documents.get(document_id)
        if document is None:
            raise ApiError(404, f"There is no document {document_id!r} here.", "file_id", "file_not_found")
        return document

    def select_kept(self, document_ids: Sequence[str]) -> tuple[str, ...]:
        """Return the identifiers of documents that are here."""
        with self._lock:
            return tuple(each for each in document_ids if each in self._documents)

    def add(self, name: str, content: bytes, *, origin: str) -> StoredDocument:
        """Read a file in a process with limits and keep it; a file that is here already is not read again.

        Parameters
        ----------
        name
            What its sender calls it; it never becomes a path.
        content
            The file.
        origin
            Where it comes from.

        Raises
        ------
        FormatError
            The file cannot be read.
        ApiError
            It is too long, or too many documents are here.
        """
        name = clean_name(name)
        if len(content) > self._limits.file_bytes:
            message = f"{name!r} must have at most {self._limits.file_bytes:,} bytes, got {len(content):,}."
            raise ApiError(413, message, "file", "file_too_large")
        file_sha256 = hashlib.sha256(content).hexdigest()
        document_id = f"file-{hashlib.sha256(f'{name}/{file_sha256}'.encode()).hexdigest()[:32]}"
        with self._lock:
            known = self._documents.get(document_id)
            if known is None and len(self._documents) >= self._limits.documents:
                message = f"{self._limits.documents:,} documents are kept here: remove some first."
                raise ApiError(409, message, "file", "too_many_documents")
        if known is not None:
            return known
        source = read_content(content, name, isolated=True)
        self._check_length(name, source)
        page_sizes = tuple(measure_pages(content, name)) if name.lower().endswith(".pdf") else ()
        if len(page_sizes) > self._limits.pages:
            message = f"{name!r} must have at most {self._limits.pages:,} pages, got {len(page_sizes):,}."
            raise ApiError(413, message, "file", "too_many_pages")
        text = json.dumps(encode_source(source)).encode()
        document = StoredDocument(
            id=document_id,
            name=name,
            size_bytes=len(content),
            created_at=int(time.time()),
            origin=origin,
            file_sha256=file_sha256,
            text_sha256=hashlib.sha256(text).hexdigest(),
            page_sizes=page_sizes,
            warnings=source.warnings,
        )
        self._write(document, content, text)
        return document

    def read_source(self, document_id: str) -> Source:
        """Return the text of a document with its blocks and sentences, named by its identifier.

        Raises
        ------
        ApiError
            There is none of this identifier.
        FormatError
            Its file is damaged.
        """
        document = self.get(document_id)
        text = self._read(document, ".text", document.text_sha256)
        return decode_source(json.loads(text), document.name)

    def read_content(self, document_id: str) -> bytes:
        """Return the file of a document.

        Raises
        ------
        ApiError
            There is none of this identifier.
        FormatError
            The file is damaged.
        """
        document = self.get(document_id)
        return self._read(document, ".content", document.file_sha256)

    def remove(self, document_id: str) -> None:
        """Remove a document.

        Raises
        ------
        ApiError
            There is none of this identifier.
        """
        self.get(document_id)
        with self._lock:
            self._documents.pop(document_id, None)
            self._unlink(document_id)

    def _check_length(self, name: str, source: Source) -> None:
        if len(source.text) > self._limits.characters:
            limit, length = self._limits.characters, len(source.text)
            message = f"The text of {name!r} must have at most {limit:,} characters, got {length:,}."
            raise ApiError(413, message, "file", "file_too_large")

    def _write(self, document: StoredDocument, content: bytes, text: bytes) -> None:
        with self._lock:
            for suffix, data in (
                (".content", content),
                (".text", text),
                (".json", json.dumps({"version": VERSION, **asdict(document)}).encode()),
            ):
                with atomic_write(self._folder / f"{document.id}{suffix}", private=True) as file:
                    file.write(data)
            self._documents[document.id] = document
            sent = [each for each in self._documents.values() if each.origin == SENT]
            for oldest in sorted(sent, key=lambda each: each.created_at)[: -self._limits.sent_documents]:
                del self._documents[oldest.id]
                self._unlink(oldest.id)

    def _read(self, document: StoredDocument, suffix: str, sha256: str) -> bytes:
        path = self._folder / f"{document.id}{suffix}"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise FormatError(
                "file_id", f"must be whole, but {document.name!r} cannot be read", remedy="upload it again"
            ) from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise FormatError("file_id", f"must be whole, but {document.name!r} is damaged", remedy="upload it again")
        return content

    def _unlink(self, document_id: str) -> None:
        # The record first: without it the document does not exist.
        for suffix in (".json", ".text", ".content"):
            (self._folder / f"{document_id}{suffix}").unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Remove old files without a record, which a killed process left behind."""
        oldest = time.time() - ABANDONED_SECONDS
        for path in self._folder.iterdir():
            if path.suffix in {".content", ".text"} and path.stem not in self._documents:
                with suppress(OSError):  # another process may remove it too
                    if path.stat().st_mtime < oldest:
                        path.unlink()


def clean_name(name: str) -> str:
    r"""Return the name of a document as it is shown: without folders and control characters, and of bounded length.

    Parameters
    ----------
    name
        From a client.

    Examples
    --------
    >>> clean_name("../../etc/pass\x1bwd.txt"), clean_name("C:\\papers\\a.pdf"), clean_name(" / ")
    ('pass�wd.txt', 'a.pdf', 'document')
    """
    base = re.split(r"[/\\]", name.strip())[-1]
    base = replace_controls(" ".join(base.split())).encode("utf-8", "replace").decode()
    stem, suffix = os.path.splitext(base)
    return (stem[: MAX_NAME_CHARACTERS - len(suffix)] + suffix[:MAX_NAME_CHARACTERS]) or "document"


def read_record(path: Path) -> StoredDocument | None:
    """Return the record of a document; None if it is damaged or of another version.

    Parameters
    ----------
    path
        Its file.
    """
    try:
        fields = json.loads(path.read_bytes())
        if fields.pop("version") != VERSION or not _ID.fullmatch(fields["id"]) or path.stem != fields["id"]:
            return None
        sizes = tuple((int(width), int(height)) for width, height in fields.pop("page_sizes"))
        return StoredDocument(**{**fields, "page_sizes": sizes, "warnings": tuple(fields["warnings"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def encode_source(source: Source) -> dict[str, Any]:
    """Return a text with its blocks and sentences as plain data for JSON.

    Parameters
    ----------
    source
        The text; its blocks are known.
    """
    blocks = source.blocks or ()
    return {
        "text": source.text,
        "encoding": source.encoding,
        "warnings": list(source.warnings),
        "file_sha256": source.file_sha256,
        "blocks": encode_blocks(blocks),
        "quotes": encode_quotes(source.quotes, blocks),
    }


def decode_source(data: dict[str, Any], name: str) -> Source:
    """Return the text that `encode_source` encoded.

    Parameters
    ----------
    data
        From JSON.
    name
        Name of the document.
    """
    blocks = decode_blocks(data["blocks"])
    source = Source(name, data["text"], blocks, data["encoding"], tuple(data["warnings"]), data["file_sha256"])
    source.__dict__["quotes"] = decode_quotes(data["quotes"], blocks)
    return source
