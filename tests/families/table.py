"""Tables of the results: the one that the package ships, and docs/families.md made from it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from keywise.hf.families import TABLE
from tests.families.check import STATUSES, TOLERANCE

Verdicts = list[dict[str, Any]]


def describe(verdict: dict[str, Any]) -> str:
    """Return a verdict in lines."""
    errors = ", ".join(f"{setting} {error:.1e}" for setting, error in verdict["errors"].items()) or "none"
    return "\n    ".join(
        [
            f"{verdict['name']} ({verdict['recipe'] or 'no recipe'}): {verdict['status']} {verdict['reason']}",
            f"inputs: {', '.join(verdict['inputs'])}",
            f"differences: {errors}; without scores {verdict['sensitivity']:.1e}",
            f"{verdict['calls']} calls, {verdict['own']} softmaxes elsewhere, {verdict['seconds']} s",
            *verdict["notes"],
        ]
    )


def list_verdicts(results: dict[str, Any]) -> Verdicts:
    """Return the verdicts on all classes."""
    return [verdict for verdicts in results["families"].values() for verdict in verdicts]


def list_unequal(results: dict[str, Any]) -> Verdicts:
    """Return the verdicts on classes that are served and unequal."""
    return [verdict for verdict in list_verdicts(results) if verdict["status"] == "unequal"]


def count(results: dict[str, Any]) -> str:
    """Return how many classes have each status."""
    counts = Counter(verdict["status"] for verdict in list_verdicts(results))
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES)


def make_table(results: dict[str, Any]) -> dict[str, Any]:
    """Return the table of the package: for every model type what was found."""
    by_type: dict[str, Verdicts] = defaultdict(list)
    for verdict in list_verdicts(results):
        by_type[verdict["model_type"] or verdict["family"]].append(verdict)
    families = {name: _judge(verdicts) for name, verdicts in sorted(by_type.items())}
    return {"transformers": results["transformers"], "families": families}


def _judge(verdicts: Verdicts) -> dict[str, Any]:
    by_status: dict[str, Verdicts] = defaultdict(list)
    for verdict in verdicts:
        by_status[verdict["status"]].append(verdict)
    served, refused = by_status["served"], by_status["refused"]
    if served and refused:
        names = ", ".join(verdict["name"] for verdict in refused)
        status, reason = "partly", f"{names}: {refused[0]['reason']}"
    elif by_status["unequal"]:
        status, reason = "unequal", by_status["unequal"][0]["reason"]
    elif served:
        status, reason = "served", ""
    elif refused:
        status, reason = "refused", refused[0]["reason"]
    elif by_status["no attention"]:
        status, reason = "no attention", ""
    else:
        status, reason = "unknown", by_status["not built"][0]["reason"]
    largest = max((error for verdict in served for error in verdict["errors"].values()), default=0.0)
    return {
        "status": status,
        "reason": reason,
        "compared": len(served),
        "not_built": len(by_status["not built"]),
        "largest_difference": float(f"{largest:.1e}"),
    }


def write(results: dict[str, Any], root: Path) -> None:
    """Write the table of the package and the page of the documentation."""
    families = make_table(results)
    TABLE.write_text(json.dumps(families, indent=1) + "\n", encoding="utf-8")
    (root / "docs" / "families.md").write_text(render(families), encoding="utf-8")


_INTRODUCTION = """\
# Model families

`keywise.hf.use(model)` either makes keywise the attention of a model or refuses it with a reason.
This page lists {families} model types of transformers {version}, parts of models among them;
`keywise.hf.supported()` lists those of the installed version. `make families` writes both tables.

The command builds the model classes of transformers with small sizes and random weights, among them
drawn biases, sinks and relative positions. It runs each with eager attention and with keywise:
without padding, with padding on the right and on the left, in encoders and decoders, and for four
generated tokens. Outputs at the positions of real tokens must agree within {tolerance:g} of the largest
number of each output, in float32. {compared:,} classes were compared; none that is served differs. Where
padding reaches an output through a convolution or a pooled token, eager attention and sdpa differ
from each other, and keywise agrees with sdpa.

| status | model types |
| --- | --- |
{counts}
"""

_HEADINGS = {
    "served": "Served\n\nEqual to eager attention. The last column is the largest relative difference.",
    "partly": "Partly served\n\nSome classes are refused.",
    "refused": "Refused\n\n`use`, or the first call, raises this error.",
    "no attention": "Without attention\n\nThere is nothing to serve.",
    "unknown": "Not built\n\nNo small model could be built or run. `use` decides by the rules for all models.",
    "unequal": "Unequal",
}


def render(table: dict[str, Any]) -> str:
    """Return the page of the documentation for a table of the package."""
    by_status: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for name, entry in table["families"].items():
        by_status[entry["status"]].append((name, entry))
    found = [status for status in _HEADINGS if by_status[status]]
    page = _INTRODUCTION.format(
        families=len(table["families"]),
        version=table["transformers"],
        tolerance=TOLERANCE,
        compared=sum(entry["compared"] for entry in table["families"].values()),
        counts="\n".join(
            f"| {_HEADINGS[status].splitlines()[0].lower()} | {len(by_status[status])} |" for status in found
        ),
    )
    for status in found:
        page += f"\n## {_HEADINGS[status]}\n\n"
        if status == "served":
            page += "| model type | classes compared | difference |\n| --- | --- | --- |\n"
            page += "".join(
                f"| {name} | {entry['compared']} | {entry['largest_difference']:.0e} |\n"
                for name, entry in by_status[status]
            )
        elif status == "no attention":
            page += ", ".join(name for name, _ in by_status[status]) + "\n"
        else:
            page += "| model type | reason |\n| --- | --- |\n"
            page += "".join(f"| {name} | {_escape(entry['reason'])} |\n" for name, entry in by_status[status])
    return page


def _escape(text: str) -> str:
    for character in "|<>*_`[]":
        text = text.replace(character, f"\\{character}")
    return text
