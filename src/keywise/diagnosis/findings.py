"""The parts of a diagnosis: findings, their locations, and the answer of every check."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from keywise.diagnosis import report
from keywise.diagnosis.codes import CODES, Severity

State = Literal["found", "clean", "not testable"]


class Location(NamedTuple):
    """The layers, heads and queries of a finding; an empty field means all of them.

    Attributes
    ----------
    layers : tuple of str
        Qualified names of attention layers, or of the inputs tried on a function.
    heads : tuple of int
        Query heads; key heads where the finding is about keys or values.
    queries : tuple of int
        Indices of queries.

    Examples
    --------
    >>> str(Location(("model.layers.0",), heads=(1, 2)))
    'in model.layers.0, heads 1, 2'
    """

    layers: tuple[str, ...] = ()
    heads: tuple[int, ...] = ()
    queries: tuple[int, ...] = ()

    def __str__(self) -> str:
        return report.format_location(self)

    def join(self, other: Location) -> Location:
        """Return the location that covers both.

        Parameters
        ----------
        other : Location
            Another location.

        Returns
        -------
        Location

        Examples
        --------
        >>> Location(("a",), heads=(1,)).join(Location(("b",), heads=(0,)))
        Location(layers=('a', 'b'), heads=(0, 1), queries=())
        """
        return Location(
            tuple(dict.fromkeys((*self.layers, *other.layers))),
            _join_indices(self.heads, other.heads),
            _join_indices(self.queries, other.queries),
        )


def _join_indices(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    # No indices means all of them.
    return tuple(sorted({*first, *second})) if first and second else ()


EVERYWHERE = Location()


@dataclass(frozen=True)
class Finding:
    """A fault or a fact that a check found.

    Attributes
    ----------
    code : str
        Its code; `keywise.diagnosis.codes.CODES` describes all of them.
    severity : str
        ``"error"``, ``"warning"`` or ``"note"``.
    measured : str
        What was measured and what was expected.
    where : Location
        Layers, heads and queries.
    evidence : dict
        The numbers behind `measured`.
    consequences : tuple of str
        Codes that were found too and that this finding explains.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.diagnosis import check
    >>> keys = np.ones((1, 1, 64, 16), np.float32)
    >>> [finding.code for finding in check(keys, keys, keys).findings]
    ['keys-identical']
    """

    code: str
    severity: Severity
    measured: str
    where: Location = EVERYWHERE
    evidence: dict[str, Any] = field(default_factory=dict)
    consequences: tuple[str, ...] = ()

    @property
    def why(self) -> str:
        """Return why it matters."""
        return CODES[self.code].why

    @property
    def remedy(self) -> str:
        """Return what to do."""
        return CODES[self.code].remedy


@dataclass(frozen=True)
class Check:
    """The answer of one check.

    Attributes
    ----------
    code : str
        What was looked for.
    state : str
        ``"found"``, ``"clean"`` (it would have been detected) or ``"not testable"``.
    reason : str
        Why it could not be tested, else empty.

    Examples
    --------
    >>> Check("leak", "clean").state
    'clean'
    """

    code: str
    state: State
    reason: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The findings about an attention, and the answers of all checks.

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
        """Return whether there are neither errors nor warnings."""
        return not self.errors and not self.warnings

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Return the findings that cannot be intended."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Return the findings that are probably not intended."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    @property
    def codes(self) -> tuple[str, ...]:
        """Return the codes of errors and warnings, earliest cause first."""
        return tuple(finding.code for finding in self.findings if finding.severity != "note")

    def state(self, code: str) -> State | None:
        """Return the answer of one check.

        Parameters
        ----------
        code : str
            A key of `keywise.diagnosis.codes.CODES`.

        Returns
        -------
        str or None
            ``"found"``, ``"clean"`` or ``"not testable"``; None when the check was not made.

        Examples
        --------
        >>> Diagnosis("this", (), (Check("scale-missing", "clean"),)).state("scale-missing")
        'clean'
        """
        return next((check.state for check in self.checks if check.code == code), None)

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as plain values for ``json.dumps``.

        Returns
        -------
        dict
            ``subject``, ``healthy``, ``findings`` and ``checks``.

        Examples
        --------
        >>> Diagnosis("this", (), (Check("scale-missing", "clean"),)).to_json()["healthy"]
        True
        """
        return report.to_json(self)

    def __str__(self) -> str:
        return report.format_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return report.format_html(self)
