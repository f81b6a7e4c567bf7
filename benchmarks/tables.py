"""Markdown of runs, and pages whose tables are generated from committed runs."""

from __future__ import annotations

import glob
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import (
    backward,
    cache,
    compare_tables,
    documents,
    evidence,
    library,
    memory,
    model,
    quality,
    speech,
    training,
)
from benchmarks.attention_tables import format_attention_tables
from benchmarks.results import Run, read_run, read_text_file, write_file
from benchmarks.summaries import SUMMARIES, format_summary
from benchmarks.timings import collect_timings
from keywise.errors import FormatError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MACHINES = ("zen4", "zen5", "xeon")
"""Folders of results, the newest first; each has a page `tables.md` with all its tables."""

PAGES = ("docs/performance.md", "docs/documents.md", "docs/evidence.md", "docs/library.md", "docs/scale.md")
"""Pages with generated tables."""

_TABLE = re.compile(r"(<!-- python -m benchmarks table ([^\n]*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_SUMMARY = re.compile(rf"--summary ({'|'.join(SUMMARIES)}) (.*)")


def _format_attention(runs: Sequence[Run]) -> str:
    return format_attention_tables([collect_timings([run]) for run in runs])


FORMATTERS = {
    "attention": _format_attention,
    "backward": backward.format_tables,
    "model": model.format_tables,
    "memory": memory.format_tables,
    "quality": quality.format_tables,
    "training": training.format_tables,
    "speech": speech.format_tables,
    "cache": cache.format_tables,
    "evidence": evidence.format_tables,
    "library": library.format_tables,
    "documents": documents.format_tables,
    "compare": compare_tables.format_tables,
}
"""A function that formats the tables of runs, per kind of run."""

DESCRIPTIONS = {
    "model": "SmolLM2-135M-Instruct in transformers, with attention replaced; everything else is the same, including "
    "the bfloat16 linear layers that `load_model` packs once for oneDNN. Logits are compared with sdpa's before "
    "anything is timed.",
    "memory": "Peak of one forward pass of SmolLM2-135M-Instruct over 4096 tokens in float32, with the logits of "
    "every token. The right half has MALLOC_MMAP_THRESHOLD_=65536 in the environment: without it glibc keeps holes "
    "between freed tensors, and the peak of the same pass differs from run to run.",
    "cache": "SmolLM2-135M-Instruct. Two questions about a document, each in a process of its own, five times in "
    "turns; seconds count from the loaded model. Decoding steps in turns, all with keywise's attention. One query "
    "over random keys and values in bfloat16 and in int8. Perplexity of a text in float32, with a float32 and an int8 "
    "cache. torch's allocations are added up over a step; those of Python and NumPy are the peak.",
}
"""The method of measurement of a kind of run, where its tables do not describe it."""


def format_tables(runs: Sequence[Run]) -> str:
    """Format the tables of runs, those of one kind together.

    Machines and commands come first.

    Raises
    ------
    FormatError
        A run is damaged.
    """
    parts = list(describe_sources(runs))
    for kind in dict.fromkeys(run.kind for run in runs):
        if kind not in FORMATTERS:
            raise FormatError("path", f"must be a run of kind {', '.join(FORMATTERS)}", got=kind)
        parts.append(FORMATTERS[kind]([run for run in runs if run.kind == kind]))
    return "\n\n".join(parts)


def describe_sources(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a paragraph for every machine, with its versions and the commands of its runs."""
    commands: dict[str, list[str]] = {}
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.machine["versions"].items())
        machine = f"{run.machine['cpu']}, {run.machine['cpus']} CPUs; {run.machine['system']}; {versions}."
        suffix = " (interrupted before its end)" if run.interrupted else ""
        commands.setdefault(machine, []).append(f"`{run.command}`{suffix}")
    for machine, members in commands.items():
        yield f"{machine} {'; '.join(dict.fromkeys(members))}."


def update_tables(page: str, folder: Path) -> str:
    """Return a page with its tables generated again.

    A table stands between the lines ``<!-- python -m benchmarks table FILE... -->`` and ``<!-- end of table -->``;
    ``--summary NAME`` before the files selects a summary. Files may be patterns such as ``*/decode.json``.

    Parameters
    ----------
    page
        The page in Markdown.
    folder
        The folder that its file names are relative to.

    Raises
    ------
    FormatError
        The page has no such lines, or a file cannot be used.
    """

    def regenerate(match: re.Match[str]) -> str:
        opening, arguments, closing = match.groups()
        summary = _SUMMARY.fullmatch(arguments)
        patterns = (summary[2] if summary else arguments).split()
        runs = [read_run(path) for pattern in patterns for path in _find_files(folder, pattern)]
        table = format_summary(summary[1], runs) if summary else format_tables(runs)
        return f"{opening}\n{table}\n\n{closing}"

    updated, count = _TABLE.subn(regenerate, page)
    if not count:
        markers = "<!-- python -m benchmarks table FILE... --> and <!-- end of table -->"
        raise FormatError("page", f"must have the lines {markers}")
    return updated


def _find_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a pattern in the order of `MACHINES`.

    A name without a file is returned unchanged.
    """
    paths = [folder / name for name in glob.glob(pattern, root_dir=folder)] or [folder / pattern]
    order = {machine: number for number, machine in enumerate(MACHINES)}
    return sorted(paths, key=lambda path: (order.get(path.parent.name, len(order)), path))


def format_machine_page(folder: Path) -> str:
    """Format the page of all tables of a folder of results."""
    runs = [read_run(path) for path in sorted(folder.glob("*.json"))]
    parts = [
        f"# Results of {folder.name}",
        "Generated by `python -m benchmarks table` from the files in this folder; do not edit it.\n"
        "[docs/performance.md](../../../docs/performance.md) describes the method.",
    ]
    for kind in FORMATTERS:
        members = [run for run in runs if run.kind == kind]
        if members:
            description = [textwrap.fill(DESCRIPTIONS[kind], 100)] if kind in DESCRIPTIONS else []
            parts += [f"## {kind.capitalize()}", *description, format_tables(members)]
    return "\n\n".join(parts) + "\n"


def generate_pages() -> Iterator[tuple[Path, str]]:
    """Yield every generated page of the repository, and its content generated again."""
    for machine in MACHINES:
        yield RESULTS / machine / "tables.md", format_machine_page(RESULTS / machine)
    for name in PAGES:
        page = ROOT / name
        yield page, update_tables(read_text_file(page), page.parent)


def write_pages() -> list[Path]:
    """Write the generated pages that changed, and return their paths."""
    changed = []
    for path, content in generate_pages():
        if not path.is_file() or read_text_file(path) != content:
            write_file(path, content)
            changed.append(path)
    return changed
