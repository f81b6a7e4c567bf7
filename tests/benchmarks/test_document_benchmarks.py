"""Benchmark of how documents are read."""

from __future__ import annotations

from pathlib import Path

import docx
import openpyxl
import pytest

from benchmarks.documents import WRITERS, extract_plainly, find_documents, judge_documents, time_lengths
from benchmarks.results import Run
from benchmarks.tables import format_tables
from keywise.errors import MissingFileError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    document = docx.Document()
    document.add_heading("Ferries", 1)
    document.add_paragraph("It is lit.")
    document.save(str(tmp_path / "lease.docx"))
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["lamp", "fee"])
    book.save(tmp_path / "fees.xlsx")
    (tmp_path / "page.html").write_text("<p>It is <b>lit</b>.</p><nav>two words</nav>")
    (tmp_path / "note.rtf").write_bytes(
        rb"{\rtf1\ansi{\fonttbl{\f0\fcharset238 A;}}\f0 It is \'e8.{\footnote A note.}\par}"
    )
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    return tmp_path


def test_words_are_compared_and_refusals_are_listed(folder: Path) -> None:
    results = {result["name"]: result for result in judge_documents(find_documents(folder))}
    assert list(results) == ["fees.xlsx", "broken.pdf", "lease.docx", "note.rtf", "page.html"]
    kept = {name: (result["kept"], result["words"]) for name, result in results.items() if "words" in result}
    assert kept == {"fees.xlsx": (2, 2), "lease.docx": (4, 4), "note.rtf": (5, 5), "page.html": (3, 5)}
    assert results["lease.docx"]["blocks"] == {"heading": 1, "paragraph": 1}
    text = format_tables([Run("documents", "python -m benchmarks documents", results=list(results.values()))])
    assert "| html | 1 | 5 | 0.600 | 0.600 | 1 |" in text
    assert "Refused: broken.pdf" in text


@pytest.mark.parametrize("suffix", WRITERS)
def test_texts_of_every_length_and_format_are_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(WRITERS[suffix](2000))
    assert "Keeper 9 lit lamp 63" in extract_plainly(path)


def test_times_name_the_length_of_the_text() -> None:
    results = list(time_lengths([0.01]))
    assert [result["format"] for result in results] == [suffix[1:] for suffix in WRITERS]
    assert all(0.009 < result["megabytes"] < 0.02 and result["seconds"] > 0 for result in results)
    assert "| one file | MB of text | s | s per MB |" in format_tables([Run("documents", "", results=results)])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="must be a folder with documents"):
        find_documents(tmp_path)
