"""`keywise serve`: a local server with a page and the APIs of language models."""

import webbrowser
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated

import typer

import keywise
from keywise.cli.options import AnswerModelName, Dtype, Model, Sentences, Threads, use_threads
from keywise.cli.terminal import print_notice, write
from keywise.documents import Reader
from keywise.documents.reader import MAX_WINDOWS
from keywise.errors import KeywiseError, OptionError
from keywise.models import SentenceEncoder
from keywise.models.loading import load_model
from keywise.util.optional_imports import require_modules
from keywise.util.paths import locate_data_folder

if TYPE_CHECKING:
    from keywise import Library

SERVE_EXAMPLES = """
Examples:

  keywise serve --open

  keywise serve manual.pdf contracts/ --port 8000

  keywise serve --library papers.library

  KEYWISE_TOKEN=secret keywise serve --host 0.0.0.0
"""
DEFAULT_PORT = 7345


def serve(  # noqa: PLR0917 - each is an argument or option of the command
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Documents, folders and patterns that are asked where a question names none.",
            show_default=False,
        ),
    ] = None,
    library: Annotated[
        str | None, typer.Option(metavar="LIBRARY", help="A library to ask where a question names no document.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's own needs --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = DEFAULT_PORT,
    token: Annotated[
        str,
        typer.Option(
            envvar="KEYWISE_TOKEN", help="A secret that every request has to bring. The variable hides it from `ps`."
        ),
    ] = "",
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    model: Model = None,
    answer_model: AnswerModelName = None,
    sentences: Sentences = None,
    semantic: Annotated[
        bool | None,
        typer.Option(
            "--semantic/--no-semantic",
            help="Whether to rank sentences by a sentence encoder too. Default: if its package is installed.",
            show_default=False,
        ),
    ] = None,
    windows: Annotated[
        int,
        typer.Option(
            min=0, help="Most windows of a document longer than the model's context to read for one question; 0: all."
        ),
    ] = MAX_WINDOWS,
    data_dir: Annotated[
        str | None,
        typer.Option(
            help="Folder of kept documents and conversations. Default: KEYWISE_DATA_DIR, else the user's data."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name under which this server is reached; may be repeated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="A web origin whose pages may call the APIs, such as http://localhost:3000."),
    ] = None,
    open_webui: Annotated[
        bool, typer.Option("--open-webui", help="Add events to streams that fill the citation panel of Open WebUI.")
    ] = False,
    dtype: Dtype = None,
    threads: Threads = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither reuse nor store prefilled documents.")] = False,
) -> None:
    """Serve a page to ask documents in the browser, and the APIs of OpenAI and Anthropic.

    Answers cite the sentences that support them. Everything stays on this machine. Ctrl-C ends the server.
    """
    require_modules("serve", "fastapi", "uvicorn", "multipart")
    from keywise.server.document_store import DocumentStore  # noqa: PLC0415 - optional
    from keywise.server.run import add_files, find_address, make_service, open_socket, run_server  # noqa: PLC0415
    from keywise.server.settings import ServerSettings  # noqa: PLC0415

    if files and library is not None:
        raise OptionError("files", "must be left out with --library", got=files, remedy="ask one of the two")
    settings = ServerSettings(
        host, port, token, tuple(allow_host or ()), tuple(allow_origin or ()), open_webui_sources=open_webui
    )
    listener = open_socket(settings)
    use_threads(threads)
    folder = locate_data_folder(data_dir)
    store = DocumentStore(folder / "documents", settings.limits)
    with ThreadPoolExecutor(1) as executor:
        # A process of its own converts the files while this one imports torch and loads the model.
        documents = executor.submit(add_files, store, files or (), print_notice)
        loaded = load_model(model, dtype=dtype, pack_linear=True, status=print_notice)
    reader = Reader(
        loaded,
        keep=not no_cache,
        encode=SentenceEncoder().encode if semantic else semantic is None,
        answer_model=answer_model,
        max_windows=windows,
        status=print_notice,
    )
    service = make_service(
        settings,
        reader,
        store,
        folder,
        documents=documents.result(),
        library=_open_library(library),
        sentences=sentences,
    )
    address = find_address(settings, listener)

    def tell() -> None:
        write(f"keywise is at {address} with the model {loaded.name}; Ctrl-C ends it.\n")
        if open_browser and not webbrowser.open(f"{address}?token={token}" if token else address):
            print_notice("there is no browser here")

    try:
        run_server(service, listener, on_start=tell)
    except KeyboardInterrupt:
        print_notice("stopped")


def _open_library(path: str | None) -> "Library | None":
    if path is None:
        return None
    try:
        return keywise.Library.open(path)
    except KeywiseError as error:
        if error.argument == "path":
            error.argument = "library"  # as the command names it
        raise
