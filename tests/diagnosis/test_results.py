"""Check results become a diagnosis: causes before consequences, text, HTML and JSON."""

from __future__ import annotations

import json

import numpy as np

import keywise as kw
from keywise.diagnosis import Location, check
from keywise.diagnosis.codes import CODES
from keywise.diagnosis.findings import EVERYWHERE
from keywise.diagnosis.results import CheckResults


def draw(*shape: int, seed: int = 0, size: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * size).astype(np.float32)


def test_first_error_lists_later_findings_as_consequences() -> None:
    results = CheckResults()
    results.add_finding("softmax-saturated", "3 heads")
    results.add_finding("future-leak", "moved by 3")
    results.add_finding("scale-missing", "off by 3", Location(("a",)))
    results.add_finding("scale-missing", "off by 4", Location(("b",), (1,)))
    results.add_finding("scale-unusual", "scale 1")
    diagnosis = results.make_diagnosis("this")
    assert [finding.code for finding in diagnosis.findings] == ["scale-missing", "scale-unusual"]
    cause = diagnosis.findings[0]
    assert cause.consequences == ("future-leak", "softmax-saturated")
    assert cause.where == Location(("a", "b"))
    assert cause.measured == "off by 3"
    assert diagnosis.state("future-leak") == "found"


def test_first_failed_probe_explains_the_others() -> None:
    results = CheckResults()
    results.add_finding("prefill-decode-disagree", "off by 1")
    results.add_finding("future-leak", "moved by 1")
    diagnosis = results.make_diagnosis("this")
    assert diagnosis.codes == ("future-leak",)
    assert diagnosis.findings[0].consequences == ("prefill-decode-disagree",)


def test_a_finding_outweighs_clean_and_clean_outweighs_not_testable() -> None:
    results = CheckResults()
    results.add_untestable("no window", "window-dropped", "scale-missing", "sinks-dropped")
    results.add_clean("window-dropped", "scale-missing")
    results.add_finding("scale-missing", "off by 3")
    diagnosis = results.make_diagnosis("this")
    assert [diagnosis.state(code) for code in ("scale-missing", "window-dropped", "sinks-dropped", "lse-base")] == [
        "found",
        "clean",
        "not testable",
        None,
    ]


def test_diagnosis_is_written_as_text_html_and_json() -> None:
    array = draw(1, 2, 16, 8)
    diagnosis = check(array, array, array, output=kw.attend(array, array, array, scale=1.0))
    text, page, plain = str(diagnosis), diagnosis._repr_html_(), json.loads(json.dumps(diagnosis.to_json()))
    finding = diagnosis.findings[0]
    for part in (finding.code, finding.measured, finding.why, finding.remedy):
        assert part in text
    assert "not testable" in text
    assert "<b>scale-missing</b>" in page
    assert plain["findings"][0]["evidence"]["error"] > 0.1
    assert plain["findings"][0]["where"]["queries"]
    assert {"code", "state", "reason"} == set(plain["checks"][0])
    assert plain["healthy"] is False
    assert "healthy" in str(check(array, array, array))


def test_html_is_escaped() -> None:
    results = CheckResults()
    results.add_finding("output-differs", "<script>", Location(("<b>",)))
    assert "<script>" not in results.make_diagnosis("<i>")._repr_html_()


def test_every_code_has_reason_and_remedy() -> None:
    assert EVERYWHERE == ((), (), ())
    for name, code in CODES.items():
        assert name == name.lower().replace(" ", "-")
        assert code.why
        assert code.remedy
        assert not code.why.endswith(".")
