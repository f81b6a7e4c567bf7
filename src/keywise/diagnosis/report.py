"""Write a diagnosis as text, HTML or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keywise.diagnosis.findings import Diagnosis, Finding, Location

MAX_LISTED = 8
"""Layers, heads or queries named before the list is cut."""
COLOURS = {"error": "#b91c1c", "warning": "#b45309", "note": "#475569"}


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as plain values for ``json.dumps``."""
    return {
        "subject": diagnosis.subject,
        "healthy": diagnosis.healthy,
        "findings": [
            {
                **asdict(finding),
                "where": finding.where._asdict(),
                "why": finding.why,
                "remedy": finding.remedy,
            }
            for finding in diagnosis.findings
        ],
        "checks": [asdict(check) for check in diagnosis.checks],
    }


def format_text(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as lines of text."""
    lines = [format_title(diagnosis)]
    for finding in diagnosis.findings:
        lines += _format_finding(finding)
    untestable: dict[str, list[str]] = {}
    for check in diagnosis.checks:
        if check.state == "not testable":
            untestable.setdefault(check.reason, []).append(check.code)
    if untestable:
        lines.append("\nnot testable")
        lines += [f"  {', '.join(codes)}: {reason}" for reason, codes in untestable.items()]
    return "\n".join(lines)


def _format_finding(finding: Finding) -> Iterator[str]:
    place = str(finding.where)
    yield f"\n{finding.severity} {finding.code}{f' ({place})' if place else ''}"
    yield f"  measured  {finding.measured}"
    yield f"  matters   {finding.why}"
    yield f"  remedy    {finding.remedy}"
    if finding.consequences:
        yield f"  explains  {', '.join(finding.consequences)}"


def format_html(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as an HTML table, everything escaped."""
    rows = "".join(
        f"<tr><td style='color:{COLOURS[finding.severity]}'>{finding.severity}</td>"
        f"<td><b>{escape(finding.code)}</b><br>{escape(str(finding.where))}</td><td>{escape(finding.measured)}</td>"
        f"<td>{escape(finding.why)}</td><td>{escape(finding.remedy)}</td></tr>"
        for finding in diagnosis.findings
    )
    title = escape(format_title(diagnosis))
    return f"<table><caption>{title}</caption><tr><th><th>found<th>measured<th>why<th>remedy</tr>{rows}</table>"


def format_title(diagnosis: Diagnosis) -> str:
    """Return the subject with the number of findings and of checks."""
    states = [check.state for check in diagnosis.checks]
    checked = f"{states.count('clean')} checks clean, {states.count('not testable')} not testable"
    if diagnosis.healthy:
        return f"{diagnosis.subject}: healthy; {checked}"
    counts = [(len(diagnosis.errors), "error"), (len(diagnosis.warnings), "warning")]
    counted = " and ".join(f"{count} {name}{'s' if count > 1 else ''}" for count, name in counts if count)
    return f"{diagnosis.subject}: {counted}; {checked}"


def format_location(location: Location) -> str:
    """Return a location as words; empty where it covers everything."""
    fields = (("in", location.layers), ("heads", location.heads), ("queries", location.queries))
    return ", ".join(f"{name} {_format_list(values)}" for name, values in fields if values)


def _format_list(values: tuple[Any, ...]) -> str:
    listed = ", ".join(str(value) for value in values[:MAX_LISTED])
    return f"{listed}, ... ({len(values)})" if len(values) > MAX_LISTED else listed
