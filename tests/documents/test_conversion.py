"""Conversions end within their limits, and the next file is read after one that was stopped."""

import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from keywise.documents import conversion
from keywise.documents.files import read_file
from keywise.errors import FormatError
from tests.documents.test_files import docx_bytes, pdf_bytes
from tests.support.pdf import write_pdf

LETTER = docx_bytes("The lamp was lit.")


def nested_forms(depth: int) -> bytes:
    """Make a PDF whose page draws a form that draws ten forms, and so on."""
    content = b"BT /F1 12 Tf 72 720 Td (text) Tj ET" + b" /X Do" * 10
    resources = b"/Resources<</XObject<</X %d 0 R>>/Font<</F1 4 0 R>>>>"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 5 0 R%s>>" % (resources % 6),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
    ]
    for number in range(6, 6 + depth):
        form = b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Length %d%s>>stream\n%s\nendstream"
        objects.append(form % (len(content), resources % min(number + 1, 5 + depth), content))
    return write_pdf(objects)


def bomb(paragraphs: int) -> bytes:
    """Make a DOCX file that is hundreds of times larger when it is unpacked."""
    with zipfile.ZipFile(io.BytesIO(LETTER)) as letter:
        parts = {name: letter.read(name) for name in letter.namelist()}
    document = parts["word/document.xml"]
    start = document.index(b"<w:p>")
    end = document.index(b"</w:p>") + len(b"</w:p>")
    parts["word/document.xml"] = document[:start] + document[start:end] * paragraphs + document[end:]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def read_text_of(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(content)
    return read_file(path).text


def test_a_pdf_that_takes_for_ever_is_stopped_and_the_next_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "BASE_SECONDS", 1)
    with pytest.raises(FormatError, match="take more than 1 seconds") as refused:
        read_text_of(tmp_path, "forms.pdf", nested_forms(12))
    assert "forms.pdf" in str(refused.value)
    assert read_text_of(tmp_path, "letter.docx", LETTER) == "The lamp was lit."


def test_a_docx_that_fills_the_memory_is_stopped_and_the_next_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "BASE_MEMORY_BYTES", 64 * conversion.MEBIBYTE)
    with pytest.raises(FormatError, match=r"bytes need more than 6\d MiB of memory"):
        read_text_of(tmp_path, "bomb.docx", bomb(400_000))
    assert read_text_of(tmp_path, "letter.docx", LETTER) == "The lamp was lit."


def test_the_next_file_is_read_after_the_process_was_killed(tmp_path):
    assert read_text_of(tmp_path, "one.docx", LETTER) == "The lamp was lit."
    process = conversion._PROCESS._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert read_text_of(tmp_path, "two.docx", LETTER) == "The lamp was lit."


def test_a_forked_child_reads_a_file_of_its_own_and_so_does_its_parent(tmp_path):
    assert read_text_of(tmp_path, "one.docx", LETTER) == "The lamp was lit."
    child = os.fork()
    if child == 0:
        try:
            os._exit(read_text_of(tmp_path, "child.pdf", pdf_bytes("It is dry.")).strip() != "It is dry.")
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_text_of(tmp_path, "two.docx", LETTER) == "The lamp was lit."


def test_a_module_of_the_current_folder_is_not_imported_by_the_process(tmp_path, monkeypatch):
    (tmp_path / "docx.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    conversion._PROCESS.stop()
    assert read_text_of(tmp_path, "letter.docx", LETTER) == "The lamp was lit."


def test_the_time_of_earlier_files_does_not_count():
    # The kernel may count a limit of a process's whole time in another way than it tells the process.
    script = """
import resource, time
from types import SimpleNamespace
from keywise.documents.conversion_worker import set_limits

while time.process_time() < 2.5:
    pass
resource.getrusage = lambda who: SimpleNamespace(ru_utime=0.0, ru_stime=0.0)
set_limits(1 << 30, 1)
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
