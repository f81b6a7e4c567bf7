"""The command line: a thin layer over `keywise.documents` and `keywise.explain`."""

import io
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import keywise
from keywise.errors import KeywiseError, OptionError

if TYPE_CHECKING:
    import typer

USER_MISTAKE, INTERRUPTED = 2, 130

ASK_EXAMPLES = """
Examples:

  keywise ask "Who kept the light?" lighthouse.md

  keywise ask "What is the fee?" contract.pdf terms.docx --html answer.html

  keywise ask "When was it built?" page.html --json --top 3
"""


def main() -> None:
    """Run the command line: exit code 0 is success, 1 a failure, 2 a mistake of the user, 130 Ctrl-C."""
    if missing := [name for name in ("typer", "rich") if find_spec(name) is None]:
        _say(f'the command line needs {" and ".join(missing)}; install with `pip install "keywise[app]"`')
        sys.exit(USER_MISTAKE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a document may hold what this terminal cannot show
    _application()()


def _application() -> "typer.Typer":
    import typer  # noqa: PLC0415 - optional: `main` says so when it is missing

    application = typer.Typer(
        name="keywise",
        help="Ask documents, and see which sentences the model looked at.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @application.command(epilog=ASK_EXAMPLES)
    def ask(  # noqa: PLR0917 - each is an argument or option of the command
        question: Annotated[str, typer.Argument(help="What you want to know.", show_default=False)],
        files: Annotated[
            list[str],
            typer.Argument(metavar="FILE...", help="Text, Markdown, HTML, PDF or DOCX files.", show_default=False),
        ],
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
        threads: Annotated[int | None, typer.Option(min=1, help="Number of CPU threads. Default: all.")] = None,
    ) -> None:
        """Answer a QUESTION about FILEs, with the sentences that mattered.

        A language model on this machine reads the files and answers. Below the answer stand the sentences that the
        question's attention went to, each with its share, its file and its span in characters.
        """
        with _reported():
            _ask(question, files, model, as_json=as_json, html=html, top=top, max_tokens=max_tokens, threads=threads)

    @application.command()
    def info(
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    ) -> None:
        """Show version, CPU, kernels that run here and why the others do not, threads, and models found."""
        with _reported():
            _info(as_json=as_json)

    return application


def _ask(
    question: str,
    files: list[str],
    model: str | None,
    *,
    as_json: bool,
    html: str | None,
    top: int,
    max_tokens: int,
    threads: int | None,
) -> None:
    from keywise.documents import Reader, read_file  # noqa: PLC0415 - a missing file must not wait for these
    from keywise.documents.report import evidence_table, to_json, write_html  # noqa: PLC0415

    if not question.strip():
        raise OptionError("QUESTION is empty; ask in words")
    if html is not None and not Path(html).absolute().parent.is_dir():
        raise OptionError(f"--html {html!r}: there is no folder {str(Path(html).parent)!r}; make it first")
    sources = [read_file(name) for name in files]

    from rich.console import Console  # noqa: PLC0415

    console, notices = Console(), Console(stderr=True)
    if threads is not None:
        import torch  # noqa: PLC0415 - heavy

        torch.set_num_threads(threads)
        keywise.set_threads(threads)
    reader = Reader(model, status=lambda line: notices.print(line, style="dim", markup=False, highlight=False))
    with _progress_bar(notices) as progress:
        document = reader.read(sources, progress=progress)

    if as_json:
        answer = document.ask(question, max_tokens=max_tokens)
        sys.stdout.write(json.dumps(to_json(answer, top=top), ensure_ascii=False, indent=2) + "\n")
    else:
        answer = document.ask(question, max_tokens=max_tokens, on_token=_write)
        _write(f"{'' if answer.complete else ' …'}\n\n")
        console.print(evidence_table(answer.evidence, top=top))
    if html is not None:
        write_html(html, answer, document.sources)
        notices.print(f"Wrote {html}", style="dim", markup=False, highlight=False)


def _info(*, as_json: bool) -> None:
    from keywise.hf.models import models_found  # noqa: PLC0415 - looks through the hub cache

    explanation = keywise.explain()
    models = models_found()
    if as_json:
        facts: dict[str, Any] = {
            "version": keywise.__version__,
            "cpu": _cpu_name(),
            "target": explanation.target,
            "targets": explanation.reasons,
            "threads": explanation.threads,
            "models": [asdict(found) for found in models],
        }
        sys.stdout.write(json.dumps(facts, ensure_ascii=False, indent=2, default=str) + "\n")
        return
    _write(f"keywise {keywise.__version__}\ncpu     {_cpu_name()}\n{explanation}\nmodels\n")
    for found in models:
        size = f"{found.size_bytes / 1e6:,.0f} MB" if found.size_bytes is not None else "on the hub"
        _write(f"  {found.name}  ({found.origin}, {size})\n")
    if not models:
        from keywise.hf.models import HOW_TO_GET_THE_DEFAULT  # noqa: PLC0415

        _write(f"  none: {HOW_TO_GET_THE_DEFAULT}\n")


@contextmanager
def _reported() -> Iterator[None]:
    """Turn a user's mistake and Ctrl-C into one line on stderr and an exit code."""
    import typer  # noqa: PLC0415 - optional

    try:
        yield
    except KeywiseError as error:
        _say(str(error))
        raise typer.Exit(USER_MISTAKE) from error
    except KeyboardInterrupt as error:
        _say("interrupted")
        raise typer.Exit(INTERRUPTED) from error


@contextmanager
def _progress_bar(console: Any) -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("Reading"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _cpu_name() -> str:
    # platform.processor() is empty or just the architecture on most Linux systems.
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} CPUs"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(message: str) -> None:
    sys.stderr.write(f"keywise: {message}\n")
