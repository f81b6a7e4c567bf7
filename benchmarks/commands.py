"""The commands of ``python -m benchmarks``."""

# ruff: noqa: PLC0415, PLR0917  (a command imports what it measures; each of its arguments is one of the user)

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cases import GROUPS
from benchmarks.console import record_run, report_errors
from benchmarks.markdown import format_threads
from keywise.errors import OptionError

ATTENTION_HELP = (
    """
Groups of cases:

"""
    + "\n\n".join(f"  {name}  {group.description} ({len(group.cases)})" for name, group in GROUPS.items())
    + """

Examples:

  python -m benchmarks attention

  python -m benchmarks attention decode few-queries --threads 2 --json decode.json

  python -m benchmarks attention prefill-fp32-full --only N=2048 --baseline torch --baseline OpenVINO
"""
)
COMPARE_HELP = """
Examples:

  pip install --no-deps --target before ../keywise-main && pip install --no-deps --target after .

  python -m benchmarks compare --before before --after after

  python -m benchmarks compare --before before --after after small decode --seconds 0.5 --json compare.json
"""
TABLE_HELP = """
Examples:

  python -m benchmarks table prefill.json decode.json

  python -m benchmarks table --update docs/performance.md

  python -m benchmarks table
"""

Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Keep every sample in this file; it is complete after every case."),
]
Threads = Annotated[
    list[int] | None,
    typer.Option(min=1, help="Number of threads; several are measured one after the other. Default: 1 and all."),
]
Dtype = Annotated[str | None, typer.Option(help="bfloat16 or float32. Default: as `keywise ask` chooses.")]
Model = Annotated[str | None, typer.Option(help="Hub id, folder or .gguf file. Default: the default model.")]


def attention(
    groups: Annotated[
        list[str] | None,
        typer.Argument(metavar="GROUP", help="Groups of cases, listed below. Default: all.", show_default=False),
    ] = None,
    threads: Threads = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Baseline to compare with, by its name in the tables. Default: all.")
    ] = None,
    only: Annotated[str, typer.Option(metavar="TEXT", help="Only cases whose name contains this.")] = "",
    seconds: Annotated[
        float | None, typer.Option(min=0.0, help="Time for the rounds of one case; at least 5 are run.")
    ] = None,
    json: Json = None,
) -> None:
    """Time attention alone, compared with torch, ONNX Runtime, OpenVINO and JAX.

    Every result is compared with the definition; a backend that is wrong, missing or does not support a case is
    listed and not timed. The others are timed in turns, in one process per number of threads, and medians are
    compared. Ctrl-C keeps the results so far.
    """
    from benchmarks.attention import plan_jobs, run_jobs
    from benchmarks.backends import KEYWISE
    from benchmarks.machine import Limits

    jobs = plan_jobs(
        groups or list(GROUPS), threads=_check_threads(threads), baselines=baseline or [], only=only, seconds=seconds
    )
    with record_run("attention", json, len(jobs)) as (run, report):
        for result in run_jobs(jobs):
            if isinstance(result, Limits):
                run.limits.append(result.to_dict())
                continue
            run.add(result.to_dict())
            timed = KEYWISE in result.seconds_per_call
            duration = f"{result.median_seconds(KEYWISE) * 1e3:.3f} ms" if timed else "not timed"
            report(f"{result.group}, {result.case.name}, {format_threads(result.threads)}: keywise {duration}")


def backward(
    only: Annotated[str, typer.Option(metavar="TEXT", help="Only cases whose name contains this.")] = "",
    threads: Threads = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="Time for the rounds of one case; at least 5 are run.")
    ] = 10.0,
    json: Json = None,
) -> None:
    """Time the forward and the backward pass of attention, compared with torch's.

    Gradients are compared with torch's in float64 first. Both are timed in turns, in one process per number of
    threads.
    """
    from benchmarks.backward import list_cases, run_cases

    cases = [case for case in list_cases() if only in case.name]
    if not cases:
        raise OptionError("only", "must be part of the name of a case", got=only)
    counts = _check_threads(threads)
    with record_run("backward", json, len(cases) * len(counts)) as (run, report):
        for result in run_cases(cases, counts, seconds):
            run.add(result)
            report(f"{result['name']}, {format_threads(result['threads'])}")


def model(
    model: Model = None,
    task: Annotated[list[str] | None, typer.Option(help="prefill, decode or statistics. Default: all three.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="bfloat16 or float32. Default: both.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Leave out longer texts.")] = 8000,
    threads: Threads = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="Time for the rounds of one task; at least 3 are run.")
    ] = 20.0,
    json: Json = None,
) -> None:
    """Time a language model with transformers' sdpa and eager attention, with keywise, and in llama.cpp.

    Logits are compared first. Tasks are prefill of 500, 2000 and 8000 tokens, decoding after 128 tokens and after
    each of these, and prefill of 4096 tokens with statistics of every layer, compared with sdpa without. llama.cpp
    needs `pip install llama-cpp-python`.
    """
    from benchmarks.model import run_tasks, select_tasks

    tasks = select_tasks(task, dtype, max_tokens)
    counts = _check_threads(threads)
    with record_run("model", json, len(tasks) * len(counts)) as (run, report):
        for result in run_tasks(model, tasks, counts, seconds):
            run.add(result)
            setting = f"{result['dtype']}, {format_threads(result['threads'])}"
            report(f"{result['task']}, {result['tokens']} tokens, {setting}")


def memory(
    tokens: Annotated[int, typer.Option(min=64, help="Length of the text.")] = 4096,
    model: Model = None,
    json: Json = None,
) -> None:
    """Measure the peak memory of a forward pass with statistics of every layer, compared with sdpa without."""
    from benchmarks.memory import BACKENDS, run_backends

    with record_run("memory", json, 2 * len(BACKENDS)) as (run, report):
        for result in run_backends(tokens, model):
            run.add(result)
            report(f"{result['backend']}: {result['peak_bytes'] / 1e9:.2f} GB")


def training(
    method: Annotated[list[str] | None, typer.Option(help="full or lora. Default: both.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="bfloat16 or float32. Default: both.")] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(min=2, help="Length of the text of a step. Default: 1024 and 2048.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps.")] = 20,
    model: Model = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads. Default: all.")] = None,
    json: Json = None,
) -> None:
    """Train a language model with transformers' sdpa and with keywise in turns, and compare losses and times."""
    from benchmarks.training import run_tasks, select_tasks

    tasks = select_tasks(method, dtype, tokens)
    with record_run("training", json, len(tasks)) as (run, report):
        for result in run_tasks(model, tasks, steps, _check_threads(None if threads is None else [threads])[-1]):
            run.add(result)
            report(f"{result['method']}, {result['dtype']}, {result['tokens']} tokens")


def speech(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder of Whisper.")],
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="A file of English sentences, which espeak-ng speaks.")],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Audios heard at once. Default: 1 and 8.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each way.")] = 5,
    json: Json = None,
) -> None:
    """Measure errors of word times, and the time and memory of token timestamps beside eager attention."""
    from benchmarks.speech import WAYS, measure_cost, measure_words

    batches = batch or [1, 8]
    with record_run("speech", json, 2 + 2 * len(WAYS) * len(batches)) as (run, report):
        for result in measure_words(model, text):
            run.add(result)
            errors = f"median {result['median_seconds']:.3f} s, 90 % {result['percentile_90_seconds']:.3f} s"
            report(f"{result['way']}: {result['words']} words, {errors}, overlap {result['overlap']:.2f}")
        for count in batches:
            for result in measure_cost(model, text, count, rounds):
                run.add(result)
                if result["task"] == "time":
                    equal = "" if result["equal_to_eager"] else ", times differ from eager"
                    report(f"{result['way']}, batch {count}: {sorted(result['seconds'])[rounds // 2]:.2f} s{equal}")
                else:
                    report(f"{result['way']}, batch {count}: {result['peak_bytes'] / 1e6:.0f} MB")


def quality(
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="A text file.")],
    tokens: Annotated[int, typer.Option(min=2, help="Number of its tokens to read.")] = 20_000,
    model: Model = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads. Default: all.")] = None,
    json: Json = None,
) -> None:
    """Compare next-token distributions of a GGUF model in blocks, and of llama.cpp, with those of float32 numbers."""
    from benchmarks.quality import measure

    with record_run("quality", json, 4) as (run, report):
        for result in measure(model, text, tokens, _check_threads(None if threads is None else [threads])[-1]):
            run.add(result)
            report(f"{result['way']}: KL {result['kl_nats']:.2e}, perplexity {result['perplexity']:.3f}")


def cache(
    task: Annotated[
        list[str] | None, typer.Option(help="question, step, int8 or perplexity. Default: all four.")
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=64, help="Length of the document that is asked about, and the most of the text.")
    ] = 4000,
    past: Annotated[int, typer.Option(min=1, help="Tokens in the cache before a decoding step.")] = 8000,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text for the perplexity. Default: keywise's documentation.")
    ] = None,
    model: Model = None,
    json: Json = None,
) -> None:
    """Measure the time that caching saves, and the effect of int8.

    Tasks are a first and a second question about a document, each in a process of its own; decoding steps with
    keywise.hf.Cache and with transformers' DynamicCache; steps over keys in bfloat16 and in int8; perplexity over
    int8.
    """
    from benchmarks.cache import count_results, read_text, run_tasks, select_tasks

    tasks = select_tasks(task)
    content = read_text(text, tasks)
    with record_run("cache", json, count_results(tasks)) as (run, report):
        for result in run_tasks(tasks, model, content, tokens, past):
            run.add(result)
            name = next(result[key] for key in ("question", "dtype", "shape", "text") if key in result)
            report(f"{result['task']}: {name}")


def evidence(
    data: Annotated[Path, typer.Option(metavar="FILE", help="Questions with answer spans, in SQuAD's format.")],
    model: Model = None,
    dtype: Dtype = None,
    paragraphs: Annotated[int, typer.Option(min=1, help="Consecutive paragraphs per document.")] = 6,
    documents: Annotated[int | None, typer.Option(min=2, help="Only the first documents, this many.")] = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="Answer the questions too, and ablate the sentences of correct answers.")
    ] = False,
    naive: Annotated[
        bool, typer.Option("--naive", help="With --answers: let the model write from the whole document too.")
    ] = False,
    json: Json = None,
) -> None:
    """Measure how often the sentence that answers a question ranks first, compared with BM25, MiniLM and chance.

    Heads are tuned on other articles than those they are judged on. Then evidence is timed on a document of about
    4,000 tokens.
    """
    from benchmarks.evidence import FOREIGN_QUESTIONS, judge_evidence, measure_cost
    from keywise.documents.squad import load_squad

    if naive and not answers:
        raise OptionError("naive", "must not be given without --answers")
    gold_documents = load_squad(data, paragraphs)[:documents]
    questions = sum(len(document.questions) + FOREIGN_QUESTIONS for document in gold_documents)
    with record_run("evidence", json, questions + 1) as (run, report):
        for result in judge_evidence(model, dtype, gold_documents, answers=answers, naive=naive, report=report):
            run.add(result)
        longest = max(load_squad(data, 20), key=lambda document: len(document.text))
        run.add(measure_cost(model, dtype, longest.text, longest.questions[0].text, rounds=7))


def library(
    task: Annotated[
        list[str] | None, typer.Option(help="speed, cluster or evidence. Default: all, evidence only with --data.")
    ] = None,
    keys: Annotated[int, typer.Option(min=1, help="Number of keys.")] = 1_000_000,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Questions with answer spans, in SQuAD's format, for the task evidence."),
    ] = None,
    questions: Annotated[
        int, typer.Option(min=1, help="Questions per article that the model reads passages for; all are searched.")
    ] = 2,
    json: Json = None,
) -> None:
    """Time exact attention to a library of keys, compared with FAISS, NumPy and Lance, and on a Ray cluster.

    All backends must return the same ten rows first. With --data, every paragraph is a file of a library: the result
    is how often the sentence that answers a question is found by searching, and by evidence in the passages found.
    """
    from benchmarks.library import count_results, run_tasks, select_tasks

    tasks = select_tasks(task, data)
    with record_run("library", json, count_results(tasks)) as (run, report):
        for result in run_tasks(tasks, keys, data, questions):
            run.add(result)
            report(f"{result['task']} done")


def documents(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with documents.", show_default=False)],
    megabytes: Annotated[
        list[float] | None,
        typer.Option(min=0.01, help="Time texts of this length in every format too; several are measured."),
    ] = None,
    json: Json = None,
) -> None:
    """Read the documents of a folder, and compare their words with those of a plain extraction.

    The plain extraction is the text of an HTML tree or of the XML in an office document, a PDF's text in the order of
    its content, or the file itself. Running heads, navigation and hidden text are meant to be missing in what is read.
    """
    from benchmarks.documents import WRITERS, find_documents, judge_documents, time_lengths

    paths = find_documents(folder)
    lengths = megabytes or []
    with record_run("documents", json, len(paths) + len(lengths) * len(WRITERS)) as (run, report):
        for result in judge_documents(paths):
            run.add(result)
            share = result["kept"] / max(result["words"], 1) if "words" in result else None
            report(f"{result['name']}: {result['refused'] if share is None else f'{share:.3f} of the words'}")
        for result in time_lengths(lengths):
            run.add(result)
            report(f"{result['format']}, {result['megabytes']} MB: {result['seconds']} s")


def compare(
    before: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder that holds a built `keywise` package.")],
    after: Annotated[Path, typer.Option(metavar="FOLDER", help="The same of the build to compare with it.")],
    groups: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="GROUP", help="Groups of `attention`. Default: all but lengths and sweep.", show_default=False
        ),
    ] = None,
    only: Annotated[str, typer.Option(metavar="TEXT", help="Only cases whose name contains this.")] = "",
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads. Default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds per case and pair; each has a sample of both builds.")] = 9,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for the rounds of one case and pair.")] = 0.3,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of processes, one after the other.")] = 5,
    json: Json = None,
) -> None:
    """Compare the speed and the results of two builds of keywise.

    Each build runs in a process of its own; both run the same cases in turns. Several pairs of processes follow each
    other, because times of short calls differ between processes. The table has the ratio of the medians with a 95 %
    interval, and says whether the results have the same bits.
    """
    from benchmarks.compare import check_folders, plan_cases, run_comparison

    check_folders(before, after)
    cases = plan_cases(groups or [], only)
    count = threads or _check_threads(None)[-1]
    _check_threads([count])
    with record_run("compare", json, pairs * len(cases)) as (run, report):
        for result in run_comparison(cases, before, after, threads=count, rounds=rounds, seconds=seconds, pairs=pairs):
            run.put(result)
            report(f"{result['name']}: after ÷ before {result['ratio']:.3f}")


def table(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Files written with --json.", show_default=False)
    ] = None,
    update: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="Generate the tables of this Markdown page again.")
    ] = None,
) -> None:
    """Print runs as Markdown tables, or generate the tables of pages.

    A page has lines <!-- python -m benchmarks table FILE... --> and <!-- end of table -->; the text between them is
    replaced. File names are relative to the page's folder. Without FILE and PAGE, every generated page of the
    repository is written: benchmarks/results/*/tables.md and the tables in docs/.
    """
    from benchmarks.results import read_run, read_text_file, write_file
    from benchmarks.tables import format_tables, update_tables, write_pages

    if files and update:
        raise OptionError("update", "must not be given together with FILE")
    if files:
        sys.stdout.write(format_tables([read_run(path) for path in files]) + "\n")
    elif update:
        write_file(update, update_tables(read_text_file(update), update.parent))
    else:
        for path in write_pages():
            sys.stdout.write(f"{path}\n")


def plot(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Files written with --json.")],
    out: Annotated[Path, typer.Option(metavar="PICTURE", help="An .svg, .png or .pdf file.")],
) -> None:
    """Draw throughput against length from runs of `python -m benchmarks attention lengths`."""
    from benchmarks.plot import plot_throughput
    from benchmarks.results import read_run
    from benchmarks.timings import collect_timings

    plot_throughput(out, *collect_timings([read_run(path) for path in files]))


def _check_threads(threads: list[int] | None) -> list[int]:
    """Return the numbers of threads to measure; None means 1 and all CPUs."""
    from keywise.util.machine import list_available_cpus

    cpus = len(list_available_cpus())
    if threads and max(threads) > cpus:
        raise OptionError("threads", f"must be at most {cpus}, the CPUs of this process", got=max(threads))
    return threads or sorted({1, cpus})


COMMANDS = (
    (attention, ATTENTION_HELP),
    (backward, None),
    (model, None),
    (memory, None),
    (training, None),
    (quality, None),
    (speech, None),
    (cache, None),
    (evidence, None),
    (library, None),
    (documents, None),
    (compare, COMPARE_HELP),
    (table, TABLE_HELP),
    (plot, None),
)
"""Every command with the text below its help."""


def make_application() -> typer.Typer:
    """Return the command line.

    Errors of keywise are printed in one line; the exit code is 2.
    """
    application = typer.Typer(
        name="python -m benchmarks",
        help="Time keywise against other implementations; results are checked first.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for command, epilog in COMMANDS:
        application.command(epilog=epilog)(_report_errors_of(command))
    return application


def _report_errors_of(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def wrapper(*arguments: Any, **options: Any) -> None:
        with report_errors(inspect.signature(command).parameters):
            command(*arguments, **options)

    return wrapper
