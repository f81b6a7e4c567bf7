"""The command line: a thin layer over `keywise.documents`, `keywise.diagnosis` and `keywise.explain`."""

import io
import logging
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import keywise
from keywise.attention.kernels import MOST_THREADS
from keywise.bench.machine import available_cpus, cpu_name
from keywise.errors import FormatError, KeywiseError, ModelError, OptionError

if TYPE_CHECKING:
    import typer

    from keywise.documents import Answer, Proof

PROVED_SENTENCES = 3
FAILURE, USER_MISTAKE, FINDINGS, INTERRUPTED = 1, 2, 3, 130

_ARGUMENT = re.compile(r"(?<![\w'\"/.-])(max_tokens|model|sentences|threads|top)=")

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(rf"(?P<number>\d+(\.\d+)?) *(?P<unit>{'|'.join(UNITS)})?", re.ASCII | re.IGNORECASE)

ASK_EXAMPLES = """
Examples:

  keywise ask "Who kept the light?" lighthouse.md

  keywise ask "What is the fee?" contract.pdf terms.docx --html answer.html

  keywise ask "When was it built?" page.html --json --top 3

  keywise ask -- "-5 degrees: when was that?" weather.txt

  keywise ask "Who kept the light?" --library papers.library
"""

CHECK_EXAMPLES = """
Examples:

  keywise check HuggingFaceTB/SmolLM2-135M-Instruct

  keywise check ./my-model --text contract.pdf --attention eager --json
"""

ATTENTIONS = ("eager", "sdpa", "keywise")
CHECKED_TEXT = (
    "The lamp in the tower was lit for the first time on a cold evening in October. For years the keeper carried oil "
    "up the stairs twice a night, wrote down the wind and the ships he saw, and slept by day. When the harbour was "
    "moved, nobody needed the light any more; the glass went to a museum, and the tower became a place for birds."
)


def main() -> None:
    """Run the command line: exit code 0 is success, 1 a failure, 2 a mistake of the user, 3 findings, 130 Ctrl-C."""
    if missing := [name for name in ("typer", "rich") if find_spec(name) is None]:
        _say(f'the command line needs {" and ".join(missing)}; install with `pip install "keywise[app]"`')
        sys.exit(USER_MISTAKE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a document may hold what this terminal cannot show
    # Libraries warn with lines of their source; what a user has to know is said in keywise's words.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        _application()()
    except KeyboardInterrupt:
        code: object = INTERRUPTED
    except SystemExit as ending:
        code = ending.code
    except OSError as error:
        _discard_output()
        _say(f"{error.filename or 'standard output'} cannot be used: {error.strerror or error}")
        code = FAILURE
    if code == INTERRUPTED:
        _say("interrupted")
    sys.exit(code)  # type: ignore[arg-type]


def _application() -> "typer.Typer":
    import typer  # noqa: PLC0415 - optional: `main` says so when it is missing

    from keywise.bench.commands import COMMANDS as BENCH_COMMANDS  # noqa: PLC0415 - needs typer
    from keywise.documents.commands import TUNE_EXAMPLES, tune  # noqa: PLC0415 - needs typer
    from keywise.memory import commands as library_commands  # noqa: PLC0415

    application = typer.Typer(
        name="keywise",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            _write(f"keywise {keywise.__version__}\n")
            raise typer.Exit

    @application.callback()
    def every_command(
        version: Annotated[
            bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None:
        """Ask documents, and see which sentences the model looked at."""

    @application.command(epilog=ASK_EXAMPLES)
    def ask(  # noqa: PLR0917 - each is an argument or option of the command
        question: Annotated[
            str,
            typer.Argument(
                metavar="QUESTION",
                help="What you want to know. Put -- before one that begins with a dash.",
                show_default=False,
            ),
        ],
        files: Annotated[
            list[str] | None,
            typer.Argument(metavar="FILE", help="Text, Markdown, HTML, PDF or DOCX files.", show_default=False),
        ] = None,
        library: Annotated[
            str | None,
            typer.Option(metavar="LIBRARY", help="Ask this library of documents, instead of FILEs; see `library`."),
        ] = None,
        model: Annotated[
            str | None,
            typer.Option(help="Hub id, folder or .gguf file. Default: KEYWISE_MODEL, else the default model."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
        html: Annotated[
            str | None, typer.Option(metavar="OUT", help="Also write a page with the documents shaded by evidence.")
        ] = None,
        top: Annotated[int, typer.Option(min=1, help="Number of sentences to show.")] = 5,
        max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
        sentences: Annotated[
            int | None,
            typer.Option(
                min=0,
                help="Sentences to quote the answer from; 0 lets the model write it from everything. Default: tuned.",
            ),
        ] = None,
        prove: Annotated[
            bool, typer.Option("--prove", help="Also tell how much the answer loses without each top sentence.")
        ] = False,
        threads: Annotated[
            int | None, typer.Option(min=1, max=MOST_THREADS, help="Number of CPU threads. Default: all.")
        ] = None,
        no_cache: Annotated[
            bool, typer.Option("--no-cache", help="Read everything anew, and keep nothing of it on disk.")
        ] = False,
    ) -> None:
        """Answer a QUESTION about FILEs, with the sentences that mattered.

        A language model on this machine reads the files and answers. Below the answer stand the sentences that the
        question's attention went to, each with its share, its file and its span in characters. What was read is kept
        on disk (see `keywise cache`): the next question about the same files need not wait for the reading.
        """
        with _reported():
            _ask(
                question,
                files or [],
                library,
                model,
                as_json=as_json,
                html=html,
                top=top,
                max_tokens=max_tokens,
                sentences=sentences,
                prove=prove,
                threads=threads,
                keep=not no_cache,
            )

    library_group = typer.Typer(no_args_is_help=True, help=library_commands.HELP, epilog=library_commands.EXAMPLES)
    for function in library_commands.COMMANDS:
        library_group.command()(_reported()(function))
    application.add_typer(library_group, name="library")

    @library_group.command("ask")
    def library_ask(  # noqa: PLR0917 - each is an argument or option of the command
        library: library_commands.Path,
        question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know.")],
        model: Annotated[str | None, typer.Option(help="Hub id, folder or .gguf file.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
        top: Annotated[int, typer.Option(min=1, help="Number of sentences to show.")] = 5,
        max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    ) -> None:
        """Answer a QUESTION from a library: `keywise ask --library`, which has more options."""
        with _reported():
            _ask(
                question,
                [],
                library,
                model,
                as_json=as_json,
                html=None,
                top=top,
                max_tokens=max_tokens,
                sentences=None,
                prove=False,
                threads=None,
                keep=True,
            )

    @application.command(epilog=CHECK_EXAMPLES)
    def check(
        model: Annotated[
            str | None,
            typer.Argument(
                metavar="MODEL",
                help="Hub id, folder or .gguf file. Default: KEYWISE_MODEL, else the default model.",
                show_default=False,
            ),
        ] = None,
        text: Annotated[
            str | None,
            typer.Option(metavar="FILE", help="Text, Markdown, HTML, PDF or DOCX file to run the model on."),
        ] = None,
        attention: Annotated[
            str | None,
            typer.Option(metavar="NAME", help="Attention to check: eager, sdpa or keywise. Default: the model's own."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
        threads: Annotated[
            int | None, typer.Option(min=1, max=MOST_THREADS, help="Number of CPU threads. Default: all.")
        ] = None,
    ) -> None:
        """Say what is wrong with the attention of MODEL.

        The model is run on a text and on small inputs made for the purpose; every attention call is held against the
        definition, and tokens are changed that may not matter. Exit code 0: healthy, 3: something was found.
        """
        with _reported(positional="model"):
            healthy = _check(model, text, attention, as_json=as_json, threads=threads)
        if not healthy:
            raise typer.Exit(FINDINGS)

    cache = typer.Typer(
        no_args_is_help=True, help="Documents that were read, kept on disk for the next question about them."
    )
    application.add_typer(cache, name="cache")

    @cache.command("ls")
    def cache_ls(
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    ) -> None:
        """List what is kept, the last used first."""
        with _reported():
            _cache_ls(as_json=as_json)

    @cache.command("clear")
    def cache_clear(
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    ) -> None:
        """Remove everything that is kept. Models stay."""
        with _reported():
            _cache_clear(as_json=as_json)

    @cache.command("limit")
    def cache_limit(
        size: Annotated[
            str | None,
            typer.Argument(metavar="SIZE", help="Such as 500MB or 10GB; 0 keeps nothing.", show_default=False),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    ) -> None:
        """Show how much may be kept, or set it to SIZE; what was not used for longest goes first."""
        with _reported():
            _cache_limit(size, as_json=as_json)

    @application.command()
    def info(
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    ) -> None:
        """Show version, CPU, kernels that run here and why the others do not, threads, and models found."""
        with _reported():
            _info(as_json=as_json)

    bench = typer.Typer(no_args_is_help=True, help="Time keywise against its rivals; results are checked first.")
    for function, epilogue in BENCH_COMMANDS:
        bench.command(epilog=epilogue)(_reported()(function))
    application.add_typer(bench, name="bench")
    application.command(epilog=TUNE_EXAMPLES)(_reported()(tune))
    return application


def _ask(
    question: str,
    files: list[str],
    library: str | None,
    model: str | None,
    *,
    as_json: bool,
    html: str | None,
    top: int,
    max_tokens: int,
    sentences: int | None,
    prove: bool,
    threads: int | None,
    keep: bool,
) -> None:
    from keywise.documents import Reader, read_file  # noqa: PLC0415 - a missing file must not wait for these
    from keywise.documents.report import printable, write_html  # noqa: PLC0415
    from keywise.hf.models import load_model  # noqa: PLC0415
    from keywise.memory.asking import passages_for  # noqa: PLC0415
    from keywise.memory.passages import placed  # noqa: PLC0415

    if not question.strip():
        raise OptionError("QUESTION is empty; ask in words")
    if bool(files) == (library is not None):
        raise OptionError("name one or more FILEs to ask, or a library with --library")
    _check_files(question, files)
    if html is not None:
        _check_page(html, files)
    sources = [read_file(name) for name in files]
    opened = None if library is None else keywise.Library.open(library)

    from rich.console import Console  # noqa: PLC0415

    console, notices = Console(), Console(stderr=True)
    _use_threads(threads)

    def notify(line: str) -> None:
        notices.print(printable(line), style="dim", markup=False, highlight=False)

    loaded = load_model(model, status=notify)
    passages = [] if opened is None else passages_for(opened, question, loaded)
    reader = Reader(loaded, keep=keep, status=notify)
    with _progress_bar(notices) as progress:
        document = reader.read([*sources, *(passage.source for passage in passages)], progress=progress)
    notify(f"Read {document.tokens - document.reused_tokens:,} tokens, took {document.reused_tokens:,} from the cache")

    def said(piece: str) -> None:
        if not as_json:
            _write(printable(piece))

    answer = document.ask(question, max_tokens=max_tokens, sentences=sentences, on_token=said)
    proofs = document.prove(answer, top=PROVED_SENTENCES) if prove and answer.text else []
    shown = replace(answer, evidence=placed(answer.evidence, passages)) if passages else answer
    _show_answer(shown, proofs, console, top=top, as_json=as_json)
    if html is not None:
        write_html(html, answer, document.sources)
        notify(f"Wrote {html}")


def _show_answer(answer: "Answer", proofs: "Sequence[Proof]", console: Any, *, top: int, as_json: bool) -> None:
    """Show what stands below an answer that was written out as it came; or all of it as JSON."""
    from keywise.documents.report import (  # noqa: PLC0415
        answer_runs,
        caveat,
        evidence_table,
        printable,
        to_json,
        with_sources,
    )

    if as_json:
        proved = [{"rank": each.evidence.rank, "drop": each.drop, "compared": each.compared} for each in proofs]
        _write_json({**to_json(answer, top=top), **({"proof": proved} if proofs else {})})
        return
    runs = answer_runs(answer)
    marks = "".join(f" [{rank}]" for rank in runs[0][1]) if len(runs) == 1 else ""
    _write(f"{marks}{'' if answer.complete else ' …'}\n\n")
    if not marks and (marked := with_sources(answer)) != answer.text:
        _write(printable(f"{marked}\n\n"))
    if (warning := caveat(answer)) is not None:
        _write(printable(f"{warning}\n\n"))
    console.print(evidence_table(answer.evidence, top=top))
    for each in proofs:
        behind = ", from far behind" if each.compared else ""
        _write(f"without sentence {each.evidence.rank}{behind} the answer loses {each.drop:.1f} nats\n")


def _check(model: str | None, text: str | None, attention: str | None, *, as_json: bool, threads: int | None) -> bool:
    from keywise.diagnosis import check_model  # noqa: PLC0415 - a missing file must not wait for torch
    from keywise.documents import read_file  # noqa: PLC0415
    from keywise.documents.report import printable  # noqa: PLC0415
    from keywise.hf.models import load_model  # noqa: PLC0415

    if attention not in {None, *ATTENTIONS}:
        raise OptionError(f"--attention {attention!r}: it is one of {', '.join(ATTENTIONS)}")
    words = CHECKED_TEXT if text is None else read_file(text).text
    _use_threads(threads)
    loaded = load_model(model, status=_say)
    if attention is not None:
        keywise.hf.register()
        try:
            loaded.model.set_attn_implementation(attention)
        except ValueError as error:
            raise ModelError(f"--attention {attention!r}: {type(loaded.model).__name__} cannot use it") from error
    diagnosis = check_model(loaded.model, loaded.tokenizer, words)
    if as_json:
        _write_json({"model": loaded.name, **diagnosis.to_json()})
    else:
        _write(printable(str(diagnosis)) + "\n")
    return diagnosis.healthy


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch  # noqa: PLC0415 - heavy

        torch.set_num_threads(threads)
        keywise.set_threads(threads)


def _check_files(question: str, files: list[str]) -> None:
    # os.path takes a question of any length, where Path raises.
    if os.path.isfile(question) and (gone := [name for name in files if not os.path.exists(name)]):
        raise FormatError(
            f"{gone[0]!r}: there is no such file, but the question {question!r} is one; the question comes first"
        )
    names: dict[str, str] = {}
    for name in files:
        first = names.setdefault(os.path.realpath(name), name)
        if first is not name:
            raise FormatError(f"{name!r} is named twice (first as {first!r}); name each file once")


def _check_page(html: str, files: list[str]) -> None:
    """Refuse an --html that cannot be written, or would replace a document, before the model is at work."""
    page = Path(html)
    if not html.strip():
        raise OptionError(f"--html {html!r} names no file; give a name such as answer.html")
    try:
        if page.is_dir():
            raise OptionError(f"--html {html!r} is a folder; name a file in it")
        if not page.absolute().parent.is_dir():
            raise OptionError(f"--html {html!r}: there is no folder {str(page.parent)!r}; make it first")
        if page.exists():
            if any(os.path.exists(name) and page.samefile(name) for name in files):
                raise OptionError(f"--html {html!r} is a document to read and would be replaced; name another file")
            if not page.is_file() or not os.access(page, os.W_OK):
                raise OptionError(f"--html {html!r} is no file that can be replaced; name another file")
        with tempfile.TemporaryFile(dir=page.absolute().parent):
            pass  # the folder takes new files
    except OSError as error:
        raise OptionError(f"--html {html!r} cannot be written: {error.strerror}; name another file") from error


def _cache_ls(*, as_json: bool) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Column, Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from keywise.documents.report import printable  # noqa: PLC0415
    from keywise.documents.store import Store  # noqa: PLC0415

    store = Store(status=_say)
    kept = store.kept()
    size_bytes, limit_bytes = sum(item.size_bytes for item in kept), store.limit_bytes
    if as_json:
        listed = [asdict(item) for item in kept]
        _write_json({"folder": store.folder, "limit_bytes": limit_bytes, "size_bytes": size_bytes, "kept": listed})
        return
    table = Table(
        *(Column(name, overflow="fold") for name in ("used", "tokens", "size", "model", "documents")), box=None
    )
    for item in kept:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.used))
        cells = (used, f"{item.tokens:,}", _size(item.size_bytes), item.model, ", ".join(item.sources))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console().print(table)
    _write(printable(f"{_size(size_bytes)} of {_size(limit_bytes)} in {store.folder}") + "\n")


def _cache_clear(*, as_json: bool) -> None:
    from keywise.documents.store import Store  # noqa: PLC0415

    freed_bytes = Store(status=_say).clear()
    if as_json:
        _write_json({"freed_bytes": freed_bytes})
    else:
        _write(f"{_size(freed_bytes)} freed\n")


def _cache_limit(size: str | None, *, as_json: bool) -> None:
    from keywise.documents.store import Store  # noqa: PLC0415

    store = Store(status=_say)
    if size is not None:
        store.limit_bytes = _bytes(size)
    if as_json:
        _write_json({"limit_bytes": store.limit_bytes})
    else:
        _write(f"{_size(store.limit_bytes)}\n")


def _bytes(size: str) -> int:
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise OptionError(f"SIZE={size!r} is no size; give a number of {', '.join(UNITS)}, such as 10GB")
    return round(float(match["number"]) * UNITS[(match["unit"] or "B").upper()])


def _size(size_bytes: int) -> str:
    unit = max((unit for unit, worth in UNITS.items() if worth <= size_bytes), key=UNITS.__getitem__, default="B")
    return f"{size_bytes / UNITS[unit]:.4g} {unit}"


def _info(*, as_json: bool) -> None:
    from keywise.documents.report import printable  # noqa: PLC0415
    from keywise.hf.models import HOW_TO_GET_THE_DEFAULT, models_found  # noqa: PLC0415 - looks through the hub cache

    explanation = keywise.explain()
    model_error = None
    try:
        models = models_found()
    except ModelError as error:
        models, model_error = models_found(environment=False), str(error)
    if as_json:
        facts: dict[str, Any] = {
            "version": keywise.__version__,
            "cpu": _cpu(),
            "target": explanation.target,
            "targets": explanation.reasons,
            "threads": explanation.threads,
            "models": [asdict(found) for found in models],
            "model_error": model_error,
        }
        _write_json(facts)
        return
    _write(f"keywise {keywise.__version__}\ncpu     {_cpu()}\n{explanation}\nmodels\n")
    for found in models:
        size = f"{found.size_bytes / 1e6:,.0f} MB" if found.size_bytes is not None else "on the hub"
        _write(printable(f"  {found.name}  ({found.origin}, {size})") + "\n")
    if model_error:
        _write(printable(f"  {model_error}") + "\n")
    elif not models:
        _write(f"  none: {HOW_TO_GET_THE_DEFAULT}\n")


@contextmanager
def _reported(positional: str = "") -> Iterator[None]:
    """Turn a user's mistake into one line on stderr and an exit code."""
    import typer  # noqa: PLC0415 - optional

    try:
        yield
    except KeywiseError as error:

        def option(match: re.Match[str]) -> str:
            return f"{match[1].upper()}=" if match[1] == positional else f"--{match[1].replace('_', '-')}="

        # The library names its arguments; here they are options.
        _say(_ARGUMENT.sub(option, str(error)))
        raise typer.Exit(USER_MISTAKE) from error


@contextmanager
def _progress_bar(console: Any) -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("Reading"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _cpu() -> str:
    return f"{cpu_name()}, {len(available_cpus())} CPUs"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _write_json(value: dict[str, Any]) -> None:
    from keywise.documents.report import json_text  # noqa: PLC0415

    _write(json_text(value))


def _discard_output() -> None:
    """Send what is left in the buffer of stdout nowhere, so that the interpreter's end does not fail on it again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _say(message: str) -> None:
    from keywise.documents.report import printable  # noqa: PLC0415

    sys.stderr.write(f"keywise: {printable(message)}\n")
