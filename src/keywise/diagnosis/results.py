"""Collect the results of checks, and order them into a diagnosis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import replace

from keywise.diagnosis.codes import CODES, Severity, Stage
from keywise.diagnosis.findings import EVERYWHERE, Check, Diagnosis, Finding, Location


class CheckResults:
    """Collect findings, codes shown to be clean, and codes that could not be tested.

    A finding outweighs clean, and clean outweighs not testable.

    Examples
    --------
    >>> results = CheckResults()
    >>> results.add_clean("scale-missing")
    >>> results.add_finding("inexact", "the output is up to 0.01 from attention")
    >>> results.make_diagnosis("this").codes
    ('inexact',)
    """

    def __init__(self) -> None:
        self._findings: dict[str, Finding] = {}
        self._clean: set[str] = set()
        self._untestable: dict[str, str] = {}

    def add_finding(
        self,
        code: str,
        measured: str,
        where: Location = EVERYWHERE,
        severity: Severity | None = None,
        **evidence: object,
    ) -> None:
        """Record a finding.

        A code that was found before only covers more places: its measurement and its evidence stay.

        Parameters
        ----------
        code : str
            A key of `keywise.diagnosis.codes.CODES`.
        measured : str
            What was measured and what was expected.
        where : Location
            Layers, heads and queries; default: everywhere.
        severity : str, optional
            Default: that of the code.
        **evidence
            The numbers behind `measured`.
        """
        if code in self._findings:
            known = self._findings[code]
            self._findings[code] = replace(known, where=known.where.join(where))
        else:
            self._findings[code] = Finding(code, severity or CODES[code].severity, measured, where, evidence)

    def add_clean(self, *codes: str) -> None:
        """Record that these faults would have been detected and were not."""
        self._clean.update(codes)

    def add_untestable(self, reason: str, *codes: str) -> None:
        """Record that these faults could not have been detected, and the first reason."""
        for code in codes:
            self._untestable.setdefault(code, reason)

    def merge(self, other: CheckResults) -> None:
        """Add the results of other checks."""
        for finding in other._findings.values():
            self.add_finding(finding.code, finding.measured, finding.where, finding.severity, **finding.evidence)
        self._clean |= other._clean
        for code, reason in other._untestable.items():
            self.add_untestable(reason, code)

    def combine_findings(self, parts: tuple[str, ...], combined: str) -> None:
        """Replace two or more of several findings by one that covers them.

        Parameters
        ----------
        parts : tuple of str
            Codes that are parts of one fault.
        combined : str
            Code of that fault.
        """
        findings = [self._findings[code] for code in (combined, *parts) if code in self._findings]
        if len(findings) < 2:
            return
        measured = f"{findings[0].measured} ({', '.join(finding.code for finding in findings)})"
        for finding in findings:
            del self._findings[finding.code]
        severity = CODES[combined].severity
        self._findings[combined] = replace(findings[0], code=combined, severity=severity, measured=measured)
        for finding in findings[1:]:
            self.add_finding(combined, finding.measured, finding.where)

    def has_finding(self, *codes: str) -> bool:
        """Return whether one of these codes was found."""
        return any(code in self._findings for code in codes)

    def get_finding(self, code: str) -> Finding | None:
        """Return the finding of a code, None if there is none."""
        return self._findings.get(code)

    @property
    def clean_codes(self) -> Set[str]:
        """Return the codes shown to be clean."""
        return frozenset(self._clean)

    @property
    def has_errors(self) -> bool:
        """Return whether an error was found."""
        return any(finding.severity == "error" for finding in self._findings.values())

    @property
    def has_call_errors(self) -> bool:
        """Return whether an error was found in the inputs or in one call.

        Errors of later stages are its consequences.
        """
        return any(
            finding.severity == "error" and CODES[finding.code].stage < Stage.PROBES
            for finding in self._findings.values()
        )

    def make_diagnosis(self, subject: str) -> Diagnosis:
        """Return the diagnosis, causes before consequences.

        Parameters
        ----------
        subject : str
            What was examined.

        Returns
        -------
        Diagnosis
        """
        return Diagnosis(subject, tuple(order_findings(self._findings.values())), tuple(self._list_checks()))

    def _list_checks(self) -> Iterator[Check]:
        for code in CODES:
            if code in self._findings:
                yield Check(code, "found")
            elif code in self._clean:
                yield Check(code, "clean")
            elif code in self._untestable:
                yield Check(code, "not testable", self._untestable[code])


def order_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by cause; list what the first error explains in its `consequences` instead.

    Parameters
    ----------
    findings : iterable of Finding
        In any order.

    Returns
    -------
    list of Finding
        Errors and warnings, earliest cause first; then notes.
    """
    order = list(CODES)
    ranked = sorted(findings, key=lambda finding: (CODES[finding.code].stage, order.index(finding.code)))
    notes = [finding for finding in ranked if finding.severity == "note"]
    problems = [finding for finding in ranked if finding.severity != "note"]
    cause = next((finding for finding in problems if finding.severity == "error"), None)
    if cause is None:
        return problems + notes
    consequences = tuple(finding.code for finding in problems if _explains(cause, finding))
    remaining = [finding for finding in problems if not _explains(cause, finding)]
    return [
        replace(finding, consequences=consequences) if finding is cause else finding for finding in remaining
    ] + notes


def _explains(cause: Finding, finding: Finding) -> bool:
    """Return whether an error explains a finding of a later stage or another failed probe."""
    stage, later = CODES[cause.code].stage, CODES[finding.code].stage
    return later > stage or (later == stage >= Stage.PROBES and finding is not cause)
