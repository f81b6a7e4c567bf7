"""The planted battery: every fault is found by its own code, and no other error is reported beside it."""

from __future__ import annotations

import re

import pytest

from keywise.diagnosis.codes import CODES
from tests.support.planted import BEGIN, CODES_BEGIN, CODES_END, END, PAGE, PLANTS, codes_table
from tests.support.planted_functions import FUNCTIONS, TEN_WRONG, Plant
from tests.support.planted_models import MODELS

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.code}: {plant.fault}")
def test_planted_fault_is_found_by_its_own_code(plant: Plant) -> None:
    diagnosis = plant.run()
    assert diagnosis.codes[:1] == (plant.code,), diagnosis
    assert {finding.code for finding in diagnosis.errors} <= {plant.code}, diagnosis
    assert not diagnosis.healthy
    first = diagnosis.findings[0]
    assert first.measured
    assert first.evidence
    assert diagnosis.state(plant.code) == "found"


def test_the_battery_is_large() -> None:
    assert len({plant.code for plant in PLANTS}) >= 40
    assert len(TEN_WRONG) == 10
    assert len(MODELS) + len(FUNCTIONS) == len(PLANTS)


def test_every_fault_is_planted() -> None:
    assert {plant.code for plant in PLANTS} == {code for code, entry in CODES.items() if entry.severity != "note"}


def test_the_page_holds_the_battery() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `([a-z0-9-]+)` \| [\d.]+ \|$", _between(text), re.MULTILINE)
    assert rows == [(plant.fault, plant.place, plant.code) for plant in PLANTS]


def test_the_page_describes_every_code() -> None:
    assert f"{CODES_BEGIN}\n{codes_table()}\n{CODES_END}" in PAGE.read_text(encoding="utf-8")


def _between(text: str) -> str:
    return text[text.index(BEGIN) : text.index(END)]
