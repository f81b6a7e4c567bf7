"""Documents on disk: whole or not there, verified, within limits, never named by their sender."""

from __future__ import annotations

import json
import os
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from keywise.errors import FormatError
from keywise.server.api_errors import ApiError
from keywise.server.document_store import SENT, UPLOADED, DocumentStore, clean_name
from keywise.server.settings import Limits
from tests.documents.test_files import docx_bytes
from tests.support.pdf import write_pages

NOTE = b"# Lamp\n\nThe lamp was lit in 1862. It burned oil.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "documents"


@pytest.fixture
def store(folder: Path) -> DocumentStore:
    return DocumentStore(folder, Limits())


def test_a_document_is_the_same_after_a_restart(store: DocumentStore, folder: Path) -> None:
    added = store.add("note.md", NOTE, origin=UPLOADED)
    source = store.read_source(added.id)
    again = DocumentStore(folder, Limits())
    assert again.list_documents() == [added]
    assert again.read_source(added.id) == source
    assert again.read_source(added.id).quotes == source.quotes
    assert again.read_content(added.id) == NOTE
    assert [source.text[start:end] for start, end in source.sentences] == [
        "# Lamp",
        "The lamp was lit in 1862.",
        "It burned oil.",
    ]


def test_the_same_file_is_kept_once_and_another_name_or_content_is_another(store: DocumentStore) -> None:
    ids = [
        store.add(name, content, origin=UPLOADED).id
        for name, content in (("a.md", NOTE), ("a.md", NOTE), ("b.md", NOTE), ("a.md", NOTE + b"More.\n"))
    ]
    assert len(set(ids)) == 3
    assert ids[0] == ids[1]


def test_pages_of_a_pdf_have_sizes(store: DocumentStore) -> None:
    pdf = write_pages([(60, 700, "The lamp was lit.")], [(60, 700, "It burned oil.")])
    assert store.add("a.pdf", pdf, origin=UPLOADED).page_sizes == ((900, 1274), (900, 1274))


@pytest.mark.parametrize("suffix", [".content", ".text"])
def test_damage_is_noticed(store: DocumentStore, folder: Path, suffix: str) -> None:
    document = store.add("note.md", NOTE, origin=UPLOADED)
    path = folder / f"{document.id}{suffix}"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match="damaged; upload it again"):
        store.read_source(document.id) if suffix == ".text" else store.read_content(document.id)


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b'{"version": 99}', b"\xff", b"[" * 5000])
def test_a_damaged_record_is_no_document(store: DocumentStore, folder: Path, record: bytes) -> None:
    document = store.add("note.md", NOTE, origin=UPLOADED)
    (folder / f"{document.id}.json").write_bytes(record)
    assert DocumentStore(folder, Limits()).list_documents() == []


def test_a_record_with_another_identifier_is_no_document(store: DocumentStore, folder: Path) -> None:
    document = store.add("note.md", NOTE, origin=UPLOADED)
    path = folder / f"{document.id}.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "id": "../../etc/passwd"}))
    assert DocumentStore(folder, Limits()).list_documents() == []


def test_what_a_killed_writer_left_is_no_document_and_is_swept_later(store: DocumentStore, folder: Path) -> None:
    document = store.add("note.md", NOTE, origin=UPLOADED)
    (folder / f"{document.id}.json").unlink()
    again = DocumentStore(folder, Limits())
    assert again.list_documents() == []
    assert len(list(folder.iterdir())) == 2, "another server may be writing the record"
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    assert DocumentStore(folder, Limits()).list_documents() == []
    assert list(folder.iterdir()) == []


def test_removed_documents_are_gone(store: DocumentStore, folder: Path) -> None:
    document = store.add("note.md", NOTE, origin=UPLOADED)
    store.remove(document.id)
    assert list(folder.iterdir()) == []
    with pytest.raises(ApiError) as caught:
        store.read_source(document.id)
    assert caught.value.status == 404


@pytest.mark.parametrize("document_id", ["../note.md", f"file-{0:032}", "", "/etc/passwd", f"file-{0:032}/.."])
def test_an_unknown_identifier_is_never_a_path(store: DocumentStore, document_id: str) -> None:
    for read in (store.read_source, store.read_content, store.remove, store.get):
        with pytest.raises(ApiError) as caught:
            read(document_id)
        assert caught.value.status == 404


@pytest.mark.parametrize(
    "name", ["../../../tmp/evil.md", "/etc/cron.d/evil.md", "..\\..\\evil.md", "a\0b.md", "x" * 5000 + ".md"]
)
def test_names_never_become_paths(store: DocumentStore, folder: Path, name: str) -> None:
    document = store.add(name, NOTE, origin=UPLOADED)
    assert {path.stem for path in folder.iterdir()} == {document.id}
    assert not set(document.name) & {"/", "\\", "\0"}
    assert len(document.name) <= 200
    assert document.name.endswith(".md")


def test_names_are_shown_without_control_characters() -> None:
    assert clean_name("a\x1b[31m\u202egnp.exe") == "a\ufffd[31m\ufffdgnp.exe"
    assert clean_name("") == clean_name("/") == "document"


def test_documents_are_private(store: DocumentStore, folder: Path) -> None:
    store.add("note.md", NOTE, origin=UPLOADED)
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


@pytest.mark.parametrize(
    ("limits", "name", "content", "code"),
    [
        (Limits(file_bytes=10), "note.md", NOTE, "file_too_large"),
        (Limits(characters=10), "note.md", NOTE, "file_too_large"),
        (Limits(documents=0), "note.md", NOTE, "too_many_documents"),
        (Limits(pages=1), "a.pdf", write_pages([(9, 9, "One two.")], [(9, 9, "Three.")]), "too_many_pages"),
    ],
)
def test_limits(folder: Path, limits: Limits, name: str, content: bytes, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        DocumentStore(folder, limits).add(name, content, origin=UPLOADED)
    assert caught.value.code == code
    assert list(folder.iterdir()) == []


def test_documents_inside_questions_replace_the_oldest_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DocumentStore(folder, Limits(sent_documents=2))
    kept = store.add("kept.md", NOTE, origin=UPLOADED)
    for number in range(4):
        monkeypatch.setattr("keywise.server.document_store.time.time", lambda n=number: 1000.0 + n)
        store.add(f"{number}.md", NOTE, origin=SENT)
    assert {document.name for document in store.list_documents()} == {"2.md", "3.md", kept.name}
    assert len(list(folder.iterdir())) == 9


def bomb() -> bytes:
    """Make a DOCX whose text is hundreds of times larger when it is unpacked."""
    with zipfile.ZipFile(BytesIO(docx_bytes("The lamp was lit."))) as letter:
        parts = {name: letter.read(name) for name in letter.namelist()}
    xml = parts["word/document.xml"]
    start, end = xml.index(b"<w:p>"), xml.index(b"</w:p>") + 6
    parts["word/document.xml"] = xml[:start] + xml[start:end] * 2_000_000 + xml[end:]
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bomb.docx", bomb(), "must be a DOCX file that can be read"),
        ("dots.txt", b"." * 100_000 + b"a", "take more than .* seconds"),
        ("nothing.txt", b"", "the file is empty"),
        ("image.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "must not be a binary file"),
        ("broken.pdf", b"%PDF-1.4 broken", "must be a PDF file that can be read"),
        ("scan.pdf", write_pages([]), "text recognition"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_and_unreadable_files_are_refused_and_the_next_one_is_read(
    store: DocumentStore, folder: Path, name: str, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keywise.documents.conversion.BASE_SECONDS", 2)
    monkeypatch.setattr("keywise.documents.conversion.SECONDS_PER_MEBIBYTE", 0)
    with pytest.raises(FormatError, match=message):
        store.add(name, content, origin=UPLOADED)
    assert list(folder.iterdir()) == []
    assert store.add("note.md", NOTE, origin=UPLOADED).name == "note.md"
