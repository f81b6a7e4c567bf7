"""Start of the server: the model, the stores, a socket, and an orderly end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from keywise.documents.file_tree import find_files
from keywise.documents.files import read_bytes
from keywise.errors import FormatError, OptionError
from keywise.server.answering import AnsweringService
from keywise.server.api_errors import ApiError
from keywise.server.conversation_store import ConversationStore
from keywise.server.document_store import NAMED, DocumentStore
from keywise.server.model_queue import ModelQueue
from keywise.server.page_pictures import PagePictures
from keywise.server.service import Service
from keywise.server.settings import ServerSettings
from keywise.util.optional_imports import require_modules

if TYPE_CHECKING:
    from keywise.documents import Reader
    from keywise.library import Library
    from keywise.util.progress import Status

GRACE_SECONDS: Final = 3
BACKLOG: Final = 512


def make_service(
    settings: ServerSettings,
    reader: Reader,
    store: DocumentStore,
    data_folder: Path,
    *,
    documents: Sequence[str] = (),
    library: Library | None = None,
    sentences: int | None = None,
) -> Service:
    """Return the state of a server.

    Parameters
    ----------
    settings
        Where it listens, and its limits.
    reader
        The model.
    store
        The documents.
    data_folder
        Where conversations are kept.
    documents
        Identifiers of those that are asked where a question names no document.
    library
        The library that is asked where there are no such documents.
    sentences
        As for `AnsweringService`.

    Raises
    ------
    OptionError
        The data folder cannot be used.
    """
    conversations = ConversationStore(data_folder / "conversations", settings.limits.conversations)
    answering = AnsweringService(
        reader, store, settings.limits, documents=documents, library=library, sentences=sentences
    )
    queue = ModelQueue(settings.limits.waiting_requests)
    return Service(settings, answering, store, conversations, queue, PagePictures(store))


def add_files(store: DocumentStore, paths: Sequence[str], status: Status) -> list[str]:
    """Keep the files at some paths and return their identifiers.

    Parameters
    ----------
    store
        Where they are kept.
    paths
        Files, folders and patterns.
    status
        Called with a line about each file in a folder that is passed over.

    Raises
    ------
    FormatError
        A named file cannot be read, or no file can be read.
    """
    try:
        return _add_files(store, paths, status) if paths else []
    except ApiError as error:
        raise FormatError("files", f"must be documents that can be kept: {error.message}") from error
    except FormatError as error:
        error.argument = "files"  # as the command names the paths
        raise


def _add_files(store: DocumentStore, paths: Sequence[str], status: Status) -> list[str]:
    found = find_files(paths)
    for name, reason in found.passed_over.items():
        status(f"Passed over {name!r}: {reason}")
    documents: list[str] = []
    for path in found.files:
        try:
            documents.append(store.add(os.path.basename(path), read_bytes(path), origin=NAMED).id)
        except (FormatError, ApiError) as error:
            if path in found.named:
                raise
            status(f"Passed over {path!r}: {error}")
    if not documents:
        raise FormatError("files", "must name a document that can be read", got=list(paths))
    return documents


def open_socket(settings: ServerSettings) -> socket.socket:
    """Return a socket that listens where the settings say.

    Parameters
    ----------
    settings
        Address and port.

    Raises
    ------
    OptionError
        The address or port cannot be used.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        rule = f"must be free to listen on at {settings.host}"
        raise OptionError("port", rule, got=settings.port, remedy=str(error.strerror or error)) from error
    return listener


def find_address(settings: ServerSettings, listener: socket.socket) -> str:
    """Return the address of the page, for a browser on this machine.

    Parameters
    ----------
    settings
        Where the server listens.
    listener
        Its socket.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"http://{host}:{listener.getsockname()[1]}/"


def run_server(service: Service, listener: socket.socket, *, on_start: Callable[[], None]) -> None:
    """Serve until a signal asks for the end.

    Parameters
    ----------
    service
        The state of the server.
    listener
        From `open_socket`.
    on_start
        Called when requests are served.

    Raises
    ------
    ModelError
        The packages of the server are not installed.
    """
    require_modules("serve", "fastapi", "uvicorn", "multipart")
    import uvicorn  # noqa: PLC0415 - optional

    from keywise.server.application import make_application  # noqa: PLC0415

    class Server(uvicorn.Server):
        """A server whose model stops at the first signal."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_start()

        def handle_exit(self, sig: int, frame: FrameType | None) -> Any:
            service.queue.cancel_all()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        make_application(service),
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    Server(config).run(sockets=[listener])
