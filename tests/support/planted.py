"""The battery: every planted fault, with the code that it must be found by.

`python tests/planted.py` writes the tables in docs/diagnosis.md anew when everything is found.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch

from keywise.diagnosis.codes import CODES
from tests.support.planted_functions import FUNCTIONS
from tests.support.planted_models import MODELS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "diagnosis.md"
BEGIN, END = "<!-- battery: python tests/planted.py -->", "<!-- end of battery -->"
CODES_BEGIN, CODES_END = "<!-- codes: python tests/planted.py -->", "<!-- end of codes -->"

PLANTS = (*MODELS, *FUNCTIONS)


def table() -> str:
    """Run the battery and write its table."""
    lines = ["| fault | planted in | found as | seconds |", "| --- | --- | --- | ---: |"]
    for plant in PLANTS:
        begun = time.perf_counter()
        codes = plant.run().codes
        seconds = time.perf_counter() - begun
        found = f"`{plant.code}`" if codes[:1] == (plant.code,) else f"NOT FOUND ({', '.join(codes) or 'healthy'})"
        lines.append(f"| {plant.fault} | {plant.place} | {found} | {seconds:.2f} |")
    return "\n".join(lines)


def codes_table() -> str:
    """Write what every code means."""
    rows = [f"| `{name}` | {code.severity} | {code.why} | {code.remedy} |" for name, code in CODES.items()]
    return "\n".join(["| code | level | why it matters | what to do |", "| --- | --- | --- | --- |", *rows])


def put(text: str, begin: str, end: str, made: str) -> str:
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{made}\n{end}", text, flags=re.DOTALL)


def main() -> None:
    torch.set_num_threads(1)
    battery = table()
    print(battery)  # noqa: T201
    if "NOT FOUND" not in battery:
        text = put(PAGE.read_text(encoding="utf-8"), BEGIN, END, battery)
        PAGE.write_text(put(text, CODES_BEGIN, CODES_END, codes_table()), encoding="utf-8")


if __name__ == "__main__":
    main()
