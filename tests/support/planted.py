"""Every planted fault, and the tables of docs/diagnosis.md.

`python -m tests.support.planted` diagnoses every fault and, if all are found, writes the tables.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch

from keywise.diagnosis.codes import CODES
from tests.support.planted_functions import FUNCTION_FAULTS
from tests.support.planted_models import MODEL_FAULTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "diagnosis.md"
BEGIN, END = "<!-- planted faults: python -m tests.support.planted -->", "<!-- end of planted faults -->"
CODES_BEGIN, CODES_END = "<!-- codes: python -m tests.support.planted -->", "<!-- end of codes -->"

PLANTED_FAULTS = (*MODEL_FAULTS, *FUNCTION_FAULTS)


def make_fault_table() -> str:
    """Diagnose every planted fault and return the table of results."""
    lines = ["| fault | planted in | found as | seconds |", "| --- | --- | --- | ---: |"]
    for planted in PLANTED_FAULTS:
        start = time.perf_counter()
        codes = planted.diagnose().codes
        seconds = time.perf_counter() - start
        is_found = codes[:1] == (planted.code,)
        result = f"`{planted.code}`" if is_found else f"NOT FOUND ({', '.join(codes) or 'healthy'})"
        lines.append(f"| {planted.fault} | {planted.place} | {result} | {seconds:.2f} |")
    return "\n".join(lines)


def make_code_table() -> str:
    """Return the table of every code."""
    rows = [f"| `{name}` | {code.severity} | {code.why} | {code.remedy} |" for name, code in CODES.items()]
    return "\n".join(["| code | level | why it matters | what to do |", "| --- | --- | --- | --- |", *rows])


def replace_table(text: str, begin: str, end: str, table: str) -> str:
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)


def main() -> None:
    torch.set_num_threads(1)
    fault_table = make_fault_table()
    print(fault_table)  # noqa: T201
    if "NOT FOUND" not in fault_table:
        text = replace_table(PAGE.read_text(encoding="utf-8"), BEGIN, END, fault_table)
        PAGE.write_text(replace_table(text, CODES_BEGIN, CODES_END, make_code_table()), encoding="utf-8")


if __name__ == "__main__":
    main()
