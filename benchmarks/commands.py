"""The commands of `keywise bench`."""

# ruff: noqa: PLC0415, PLR0917  (a command imports what it measures; each of its arguments is one of the user)

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.cases import GROUPS
from benchmarks.markdown import thread_count
from keywise.errors import OptionError

if TYPE_CHECKING:
    from benchmarks.results import Run

ATTENTION_HELP = (
    """
Groups of cases:

"""
    + "\n\n".join(f"  {name}  {group.what} ({len(group.cases)})" for name, group in GROUPS.items())
    + """

Examples:

  keywise bench attention

  keywise bench attention decode few-rows --threads 2 --json decode.json

  keywise bench attention prefill-fp32-full --only N=2048 --rival torch --rival OpenVINO
"""
)
TABLE_HELP = """
Examples:

  keywise bench table prefill.json decode.json

  keywise bench table --update docs/performance.md
"""


Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Keep every sample in this file; it is whole after every case."),
]
Threads = Annotated[
    list[int] | None,
    typer.Option(min=1, help="Number of threads; several are run one after the other. Default: 1 and all."),
]
Dtype = Annotated[str | None, typer.Option(help="bfloat16 or float32. Default: as `ask` chooses.")]
Model = Annotated[str | None, typer.Option(help="Hub id, folder or .gguf file. Default: the default model.")]


def attention(
    groups: Annotated[
        list[str] | None,
        typer.Argument(metavar="GROUP", help="Groups of cases, listed below. Default: all.", show_default=False),
    ] = None,
    threads: Threads = None,
    rival: Annotated[
        list[str] | None, typer.Option(help="Who takes part besides keywise, by the name in the tables.")
    ] = None,
    only: Annotated[str, typer.Option(metavar="TEXT", help="Only cases whose name contains this.")] = "",
    seconds: Annotated[
        float | None, typer.Option(min=0.0, help="Time for the rounds of one case; at least 5 are run.")
    ] = None,
    json: Json = None,
) -> None:
    """Time attention alone against torch, ONNX Runtime, OpenVINO and JAX.

    Everyone's result is compared with the definition; who is wrong, absent or unable is named and not timed. The
    others take turns in one process per number of threads, and medians are compared. Ctrl-C keeps what was
    measured.
    """
    from benchmarks import attention as bench_attention
    from benchmarks.backends import KEYWISE
    from benchmarks.machine import Limits

    jobs = bench_attention.plan(
        groups or list(GROUPS),
        threads=_counts(threads),
        rivals=rival or [],
        only=only,
        seconds=seconds,
    )
    with _run("attention", json, len(jobs)) as (run, done):
        for found in bench_attention.run(jobs):
            if isinstance(found, Limits):
                run.limits.append(found.plain())
                continue
            run.add(found.plain())
            took = f"{found.seconds(KEYWISE) * 1e3:.3f} ms" if KEYWISE in found.samples else "not timed"
            done(f"{found.group}, {found.case.name}, {thread_count(found.threads)}: keywise {took}")


def model(
    model: Model = None,
    task: Annotated[list[str] | None, typer.Option(help="prefill, decode or readings. Default: all three.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="bfloat16 or float32. Default: both.")] = None,
    most_tokens: Annotated[int, typer.Option(min=1, help="Leave out longer texts.")] = 8000,
    threads: Threads = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="Time for the rounds of one task; at least 3 are run.")
    ] = 20.0,
    json: Json = None,
) -> None:
    """Time a language model with transformers' sdpa and eager attention, with keywise, and in llama.cpp.

    Logits are compared first. Prefill of 2000 and 8000 tokens, decoding after 128, 2000 and 8000 tokens, and a
    text of 4096 tokens with readings on every layer against sdpa without. `pip install llama-cpp-python` adds the last.
    """
    from benchmarks import model as bench_model

    tasks = bench_model.plan(task, dtype, most_tokens)
    counts = _counts(threads)
    with _run("model", json, len(tasks) * len(counts)) as (run, done):
        for found in bench_model.run(model, tasks, counts, seconds):
            run.add(found)
            done(f"{found['task']}, {found['tokens']} tokens, {found['dtype']}, {thread_count(found['threads'])}")


def memory(
    tokens: Annotated[int, typer.Option(min=64, help="Length of the text.")] = 4096,
    model: Model = None,
    json: Json = None,
) -> None:
    """Measure the peak memory of a forward pass with readings on every layer, against sdpa without any."""
    from benchmarks import memory as bench_memory

    with _run("memory", json, 2 * len(bench_memory.WAYS)) as (run, done):
        for found in bench_memory.run(tokens, model):
            run.add(found)
            done(f"{found['way']}: {found['peak_bytes'] / 1e9:.2f} GB")


def cache(
    task: Annotated[
        list[str] | None, typer.Option(help="question, step, int8 or perplexity. Default: all four.")
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=64, help="Length of the document that is asked about; of the text, the most.")
    ] = 4000,
    past: Annotated[int, typer.Option(min=1, help="Tokens in the cache before a decoding step.")] = 8000,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to take the perplexity of. Default: keywise's docs.")
    ] = None,
    model: Model = None,
    json: Json = None,
) -> None:
    """Measure what keeping keys and values saves, and what int8 changes.

    A first and a second question about a document, each in a process of its own; decoding steps with
    keywise.hf.Cache and with transformers' DynamicCache; steps over keys in bfloat16 and in int8; perplexity over int8.
    """
    from benchmarks import cache as bench_cache

    tasks = bench_cache.plan(task)
    content = bench_cache.read_text(text, tasks)
    with _run("cache", json, bench_cache.count(tasks)) as (run, done):
        for found in bench_cache.run(tasks, model, content, tokens, past):
            run.add(found)
            name = next(found[key] for key in ("question", "dtype", "shape", "text") if key in found)
            done(f"{found['task']}: {name}")


def evidence(
    data: Annotated[Path, typer.Option(metavar="FILE", help="Questions with answer spans, SQuAD's format.")],
    model: Model = None,
    dtype: Dtype = None,
    paragraphs: Annotated[int, typer.Option(min=1, help="Consecutive paragraphs per document.")] = 6,
    documents: Annotated[int | None, typer.Option(min=2, help="Only the first so many documents.")] = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="Let the model answer too, and prove what is right.")
    ] = False,
    naive: Annotated[bool, typer.Option("--naive", help="With --answers: from the whole document too.")] = False,
    json: Json = None,
) -> None:
    """Count how often the sentence that answers a question ranks first, against words, meaning and chance.

    Heads are tuned on the other articles than those they are judged on. Then evidence is timed on a document of about
    4,000 tokens.
    """
    from benchmarks import evidence as bench_evidence
    from keywise.documents.labelled import labelled_documents

    if naive and not answers:
        raise OptionError("--naive compares answers; give --answers too")
    labelled = labelled_documents(data, paragraphs)[:documents]
    asked = sum(len(document.questions) + bench_evidence.STRANGERS for document in labelled)
    with _run("evidence", json, asked + 1) as (run, done):
        for found in bench_evidence.judge(model, dtype, labelled, answers=answers, naive=naive, done=done):
            run.add(found)
        longest = max(labelled_documents(data, 20), key=lambda document: len(document.text))
        run.add(bench_evidence.cost(model, dtype, longest.text, longest.questions[0].text, rounds=7))


def library(
    task: Annotated[
        list[str] | None, typer.Option(help="speed, cluster or evidence. Default: all, evidence only with --data.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Number of keys.")] = 1_000_000,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Questions with answer spans, SQuAD's format, for evidence.")
    ] = None,
    questions: Annotated[
        int, typer.Option(min=1, help="Questions per article that the model reads passages for; all are searched.")
    ] = 2,
    json: Json = None,
) -> None:
    """Time exact attention to a library of keys against FAISS, NumPy and Lance, and on a Ray cluster.

    Everyone names the same ten rows first. With --data, every paragraph is a file of a library: how often the sentence
    that answers a question is found by searching, and by letting the model read the passages found.
    """
    from benchmarks import library as bench_library

    tasks = bench_library.plan(task, data)
    with _run("library", json, bench_library.count(tasks)) as (run, done):
        for found in bench_library.run(tasks, rows, data, questions):
            run.add(found)
            done(f"{found['task']} done")


def table(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Files written with --json.", show_default=False)
    ] = None,
    update: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="Make the tables of this Markdown page anew.")
    ] = None,
) -> None:
    """Write runs as Markdown tables.

    A page to update has lines <!-- keywise bench table FILE... --> and <!-- end of table -->; what stands between
    them is replaced. File names count from the page's folder.
    """
    from benchmarks.results import read_run
    from benchmarks.table import tables, updated
    from keywise.documents.report import write_text_file

    if bool(files) == bool(update):
        raise OptionError("give FILEs to write their tables, or --update PAGE to update a page's")
    if update:
        write_text_file(update, updated(_text(update), update.parent))
    else:
        sys.stdout.write(tables([read_run(path) for path in files or []]) + "\n")


def plot(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Files written with --json.")],
    out: Annotated[Path, typer.Option(metavar="PICTURE", help="An .svg, .png or .pdf file.")],
) -> None:
    """Draw throughput against length from runs of `keywise bench attention lengths`."""
    from benchmarks.plot import draw
    from benchmarks.results import read_run
    from benchmarks.table import timings_of

    draw(out, *timings_of([read_run(path) for path in files]))


def _counts(threads: list[int] | None) -> list[int]:
    from benchmarks.machine import available_cpus

    cpus = len(available_cpus())
    if threads and max(threads) > cpus:
        raise OptionError(f"--threads {max(threads)} is more than the {cpus} CPUs that this process may use")
    return threads or sorted({1, cpus})


def _text(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except OSError as error:
        raise OptionError(f"--update {str(page)!r} cannot be read: {error.strerror}") from error


def _command(arguments: list[str]) -> str:
    """Write the command again without the file that it fills, and other files by their names alone."""
    kept = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--json":
            next(rest, None)
        elif not argument.startswith("--json="):
            kept.append(Path(argument).name if Path(argument).is_absolute() else argument)
    return shlex.join(["keywise", *kept])


@contextmanager
def _run(kind: str, path: Path | None, total: int) -> Iterator[tuple["Run", Callable[[str], None]]]:
    """Begin a run, show how far it is, and end it with its table, also when Ctrl-C ends it early."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from benchmarks.results import Run
    from benchmarks.table import tables
    from keywise.util.terminal_text import replace_controls

    run = Run(kind, _command(sys.argv[1:]), path)
    run.save()
    console = Console(stderr=True)
    columns = (TextColumn("Measuring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total)

            def done(line: str) -> None:
                bar.advance(task)
                console.print(replace_controls(line), style="dim", markup=False, highlight=False, soft_wrap=True)

            yield run, done
    except KeyboardInterrupt:
        run.interrupted = True
        raise
    finally:
        run.save()
        if run.results:
            sys.stdout.write(tables([run]) + "\n")


COMMANDS = (
    (attention, ATTENTION_HELP),
    (model, None),
    (memory, None),
    (cache, None),
    (evidence, None),
    (library, None),
    (table, TABLE_HELP),
    (plot, None),
)
"""Every command with its epilogue."""
