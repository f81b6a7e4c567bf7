"""What an examination found: findings, checks, and the diagnosis they make together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any, Literal, NamedTuple

from keywise.diagnosis.codes import BEHAVIOUR, CODES, Severity

State = Literal["found", "clean", "not testable"]
MOST_SHOWN = 8


class Where(NamedTuple):
    """Where something was found; empty where it holds of the whole.

    Attributes
    ----------
    layers : tuple of str
        Qualified names of attention layers, or of the inputs tried on a function.
    heads, rows : tuple of int
        Query heads and query rows.
    """

    layers: tuple[str, ...] = ()
    heads: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{name} {_listed(values)}"
            for name, values in (("in", self.layers), ("heads", self.heads), ("rows", self.rows))
            if values
        ]
        return ", ".join(parts)

    def joined(self, other: Where) -> Where:
        """Give the place that covers both."""
        layers = tuple(dict.fromkeys((*self.layers, *other.layers)))
        # No heads or rows means all of them.
        heads, rows = (
            tuple(sorted({*one, *two})) if one and two else ()
            for one, two in ((self.heads, other.heads), (self.rows, other.rows))
        )
        return Where(layers, heads, rows)


EVERYWHERE = Where()


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes
    ----------
    code : str
        Its name; `keywise.diagnosis.codes.CODES` describes them all.
    severity : str
        ``"error"``, ``"warning"`` or ``"note"``.
    measured : str
        What was measured against what was expected.
    where : Where
        Layers, heads and query rows.
    evidence : dict
        The numbers behind `measured`.
    consequences : tuple of str
        Codes that were found as well and that this one explains.
    """

    code: str
    severity: Severity
    measured: str
    where: Where = EVERYWHERE
    evidence: dict[str, Any] = field(default_factory=dict)
    consequences: tuple[str, ...] = ()

    @property
    def why(self) -> str:
        """Why it matters."""
        return CODES[self.code].why

    @property
    def remedy(self) -> str:
        """What to do."""
        return CODES[self.code].remedy


@dataclass(frozen=True)
class Check:
    """What became of one check: found, clean, or not testable with the reason."""

    code: str
    state: State
    reason: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with an attention, and what was looked at.

    Attributes
    ----------
    subject : str
        What was examined.
    findings : tuple of Finding
        Earliest cause first; notes last.
    checks : tuple of Check
        Every check that was made, with its answer.

    Examples
    --------
    >>> import numpy as np, keywise.diagnosis
    >>> x = np.random.default_rng(0).normal(size=(1, 2, 5, 8)).astype(np.float32)
    >>> keywise.diagnosis.check(x, x, x).healthy
    True
    """

    subject: str
    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing but notes was found."""
        return not self.errors and not self.warnings

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that cannot be intended."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that are probably not intended."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of errors and warnings, earliest cause first."""
        return tuple(finding.code for finding in self.findings if finding.severity != "note")

    def state(self, code: str) -> State | None:
        """Give the answer of one check, None when it was not made."""
        return next((check.state for check in self.checks if check.code == code), None)

    def to_json(self) -> dict[str, Any]:
        """Give the diagnosis as plain values for ``json.dumps``."""
        return {
            "subject": self.subject,
            "healthy": self.healthy,
            "findings": [
                {
                    **asdict(finding),
                    "where": finding.where._asdict(),
                    "why": finding.why,
                    "remedy": finding.remedy,
                }
                for finding in self.findings
            ],
            "checks": [asdict(check) for check in self.checks],
        }

    def __str__(self) -> str:
        lines = [f"{self.subject}: {self._summary()}"]
        for finding in self.findings:
            place = str(finding.where)
            lines += [
                f"\n{finding.severity} {finding.code}{f' ({place})' if place else ''}",
                f"  measured  {finding.measured}",
                f"  matters   {finding.why}",
                f"  remedy    {finding.remedy}",
            ]
            if finding.consequences:
                lines.append(f"  explains  {', '.join(finding.consequences)}")
        untestable: dict[str, list[str]] = {}
        for check in self.checks:
            if check.state == "not testable":
                untestable.setdefault(check.reason, []).append(check.code)
        if untestable:
            lines.append("\nnot testable")
            lines += [f"  {', '.join(codes)}: {reason}" for reason, codes in untestable.items()]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        colours = {"error": "#b91c1c", "warning": "#b45309", "note": "#475569"}
        rows = "".join(
            f"<tr><td style='color:{colours[finding.severity]}'>{finding.severity}</td>"
            f"<td><b>{escape(finding.code)}</b><br>{escape(str(finding.where))}</td><td>{escape(finding.measured)}</td>"
            f"<td>{escape(finding.why)}</td><td>{escape(finding.remedy)}</td></tr>"
            for finding in self.findings
        )
        title = escape(f"{self.subject}: {self._summary()}")
        return f"<table><caption>{title}</caption><tr><th><th>found<th>measured<th>why<th>remedy</tr>{rows}</table>"

    def _summary(self) -> str:
        states = [check.state for check in self.checks]
        made = f"{states.count('clean')} checks clean, {states.count('not testable')} not testable"
        if self.healthy:
            return f"healthy; {made}"
        counted = [(len(self.errors), "error"), (len(self.warnings), "warning")]
        named = [f"{count} {name}{'s' if count > 1 else ''}" for count, name in counted if count]
        return f"{' and '.join(named)}; {made}"


class Examination:
    """Gathers the answers of checks while they are made."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}
        self._clean: set[str] = set()
        self._untestable: dict[str, str] = {}

    def found(
        self, code: str, measured: str, where: Where = EVERYWHERE, severity: Severity | None = None, **evidence: Any
    ) -> None:
        """Record a finding; found again elsewhere, it only covers more places."""
        if code in self._found:
            known = self._found[code]
            self._found[code] = replace(known, where=known.where.joined(where))
        else:
            self._found[code] = Finding(code, severity or CODES[code].severity, measured, where, evidence)

    def branch(self) -> Examination:
        """Give an examination that knows what is clean already and has found nothing."""
        other = Examination()
        other._clean = set(self._clean)
        return other

    def take(self, other: Examination) -> None:
        """Add what another examination found."""
        for finding in other._found.values():
            self.found(finding.code, finding.measured, finding.where, finding.severity, **finding.evidence)
        self._clean |= other._clean
        for code, reason in other._untestable.items():
            self.untestable(reason, code)

    def unite(self, parts: tuple[str, ...], whole: str) -> None:
        """Report several findings that are parts of one fault as that fault, when two of them or it were found."""
        found = [self._found[code] for code in (whole, *parts) if code in self._found]
        if len(found) < 2:
            return
        measured = f"{found[0].measured} ({', '.join(finding.code for finding in found)})"
        for finding in found:
            del self._found[finding.code]
        self._found[whole] = replace(found[0], code=whole, severity=CODES[whole].severity, measured=measured)
        for finding in found[1:]:
            self.found(whole, finding.measured, finding.where)

    def clean(self, *codes: str) -> None:
        """Record that a fault would have been seen and was not."""
        self._clean.update(codes)

    def untestable(self, reason: str, *codes: str) -> None:
        """Record that a fault could not have been seen; the first reason stays."""
        for code in codes:
            self._untestable.setdefault(code, reason)

    def has_found(self, *codes: str) -> bool:
        """Whether one of these was found."""
        return any(code in self._found for code in codes)

    def finding(self, code: str) -> Finding | None:
        """Give what was found under a code."""
        return self._found.get(code)

    def is_clean(self, code: str) -> bool:
        """Whether this was shown to be clean."""
        return code in self._clean

    @property
    def errors(self) -> bool:
        """Whether an error was found."""
        return any(finding.severity == "error" for finding in self._found.values())

    def has_found_cause(self) -> bool:
        """Whether an error was found that later ones could only follow from."""
        return any(
            finding.severity == "error" and CODES[finding.code].stage < BEHAVIOUR for finding in self._found.values()
        )

    def diagnosis(self, subject: str) -> Diagnosis:
        """Put causes before consequences and give the result."""
        return Diagnosis(subject, tuple(_settled(self._found.values())), tuple(self._checks()))

    def _checks(self) -> Iterable[Check]:
        for code in CODES:
            if code in self._found:
                yield Check(code, "found")
            elif code in self._clean:
                yield Check(code, "clean")
            elif code in self._untestable:
                yield Check(code, "not testable", self._untestable[code])


def _settled(found: Iterable[Finding]) -> list[Finding]:
    """Order findings by cause; what the first error explains is named there and not reported again."""
    order = list(CODES)

    def rank(finding: Finding) -> tuple[int, int]:
        return CODES[finding.code].stage, order.index(finding.code)

    notes = sorted((finding for finding in found if finding.severity == "note"), key=rank)
    accusations = sorted((finding for finding in found if finding.severity != "note"), key=rank)
    errors = [finding for finding in accusations if finding.severity == "error"]
    if not errors:
        return accusations + notes
    cause = errors[0]
    stage = CODES[cause.code].stage

    def explained(finding: Finding) -> bool:
        later = CODES[finding.code].stage
        return later > stage or (later == stage >= BEHAVIOUR and finding is not cause)

    consequences = tuple(finding.code for finding in accusations if explained(finding))
    kept = [finding for finding in accusations if not explained(finding)]
    return [replace(finding, consequences=consequences) if finding is cause else finding for finding in kept] + notes


def _listed(values: tuple[Any, ...]) -> str:
    shown = ", ".join(str(value) for value in values[:MOST_SHOWN])
    return f"{shown}, ... ({len(values)})" if len(values) > MOST_SHOWN else shown
