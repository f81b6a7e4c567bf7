"""Every planted fault is found by its own code, and no other error is reported beside it."""

from __future__ import annotations

import re

import pytest

from keywise.diagnosis.codes import CODES
from tests.support.eager_models import is_exchangeable
from tests.support.planted import BEGIN, CODES_BEGIN, CODES_END, END, PAGE, PLANTED_FAULTS, make_code_table
from tests.support.planted_functions import COMMON_FAULTS, FUNCTION_FAULTS, PlantedFault
from tests.support.planted_models import MODEL_FAULTS

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize("planted", PLANTED_FAULTS, ids=lambda planted: f"{planted.code}: {planted.fault}")
def test_planted_fault_is_found_by_its_own_code(planted: PlantedFault) -> None:
    if planted.place == "T5" and not is_exchangeable("t5"):
        pytest.skip("this version of transformers cannot exchange T5's attention")
    diagnosis = planted.diagnose()
    assert diagnosis.codes[:1] == (planted.code,), diagnosis
    assert {finding.code for finding in diagnosis.errors} <= {planted.code}, diagnosis
    assert not diagnosis.healthy
    first = diagnosis.findings[0]
    assert first.measured
    assert first.evidence
    assert diagnosis.state(planted.code) == "found"


def test_faults_cover_at_least_forty_codes() -> None:
    assert len({planted.code for planted in PLANTED_FAULTS}) >= 40
    assert len(COMMON_FAULTS) == 10
    assert len(MODEL_FAULTS) + len(FUNCTION_FAULTS) == len(PLANTED_FAULTS)


def test_every_error_and_warning_is_planted() -> None:
    assert {planted.code for planted in PLANTED_FAULTS} == {
        code for code, entry in CODES.items() if entry.severity != "note"
    }


def test_page_lists_every_planted_fault() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index(BEGIN) : text.index(END)]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([a-z0-9-]+)` \| [\d.]+ \|$", table, re.MULTILINE)
    assert rows == [(planted.fault, planted.place, planted.code) for planted in PLANTED_FAULTS]


def test_page_describes_every_code() -> None:
    assert f"{CODES_BEGIN}\n{make_code_table()}\n{CODES_END}" in PAGE.read_text(encoding="utf-8")
