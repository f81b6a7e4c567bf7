"""Files of folders and patterns are found once, and only those that can be documents."""

import os
import socket

import pytest

from keywise.documents.file_tree import explain_unreadable, find_files, match_pattern
from keywise.errors import DtypeError, FormatError


def write_tree(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("It is dry.", encoding="utf-8")


def get_names(found, folder):
    return [os.path.relpath(name, folder) for name in found.files]


def test_a_folder_is_searched_recursively_without_hidden_files(tmp_path):
    write_tree(tmp_path, "b.md", "a.txt", "README", "sub/deep/c.html", "sub/d.csv", ".hidden.md", ".git/e.md")
    found = find_files([tmp_path])
    assert get_names(found, tmp_path) == ["README", "a.txt", "b.md", "sub/d.csv", "sub/deep/c.html"]
    assert found.passed_over == {}
    assert found.named == set()


def test_binary_files_pipes_and_sockets_of_a_folder_are_passed_over(tmp_path):
    write_tree(tmp_path, "a.md")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "old.doc").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1")
    (tmp_path / "wide.txt").write_bytes("It is dry.".encode("utf-16"))
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.txt"))
        found = find_files([tmp_path])
    assert get_names(found, tmp_path) == ["a.md", "wide.txt"]
    reasons = {os.path.basename(name): reason for name, reason in found.passed_over.items()}
    assert sorted(reasons) == ["gone.txt", "old.doc", "photo.png", "pipe.txt", "socket.txt", "zero.txt"]
    assert reasons["pipe.txt"] == reasons["zero.txt"] == reasons["socket.txt"] == "it is not a regular file"
    assert reasons["photo.png"].startswith("it is a binary file")
    assert reasons["gone.txt"] == "it cannot be opened: No such file or directory"


def test_links_are_followed_once(tmp_path):
    write_tree(tmp_path, "real/a.md", "real/sub/b.md", "other/c.md")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "sub" / "other").symlink_to(tmp_path / "other")
    (tmp_path / "real" / "sub" / "again").symlink_to(tmp_path / "other")
    (tmp_path / "real" / "z.md").symlink_to(tmp_path / "real" / "a.md")
    found = find_files([tmp_path / "real"])
    assert [os.path.basename(name) for name in found.files] == ["a.md", "b.md", "c.md"]


def test_a_file_that_several_paths_lead_to_is_found_once(tmp_path, monkeypatch):
    write_tree(tmp_path, "a.md", "sub/b.md")
    monkeypatch.chdir(tmp_path)
    found = find_files([".", "sub", "sub/*.md", "a.md"])
    assert get_names(found, tmp_path) == ["a.md", "sub/b.md"]
    assert found.named == {"./a.md"}
    with pytest.raises(
        FormatError, match=r"must not name a file twice, got '\./a\.md'; it is the same file as 'a\.md'"
    ):
        find_files(["a.md", "./a.md"])


def test_patterns_match_files_and_folders(tmp_path, monkeypatch):
    write_tree(tmp_path, "a.md", "b.txt", "sub/c.md", "sub/deep/d.md", "[x].md", ".hidden.md")
    monkeypatch.chdir(tmp_path)
    assert find_files(["*.md"]).files == ["[x].md", "a.md"]
    assert find_files(["**/*.md"]).files == ["[x].md", "a.md", "sub/c.md", "sub/deep/d.md"]
    assert find_files(["su*"]).files == ["sub/c.md", "sub/deep/d.md"]
    assert find_files(["[x].md"]).named == {"[x].md"}, "a file of this very name comes first"
    assert match_pattern("*.pdf") == match_pattern("a.md") == match_pattern("*\0") == []
    assert find_files(["*.pdf"]).named == {"*.pdf"}


def test_a_folder_without_documents_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"must name folders with documents in them.*hidden files do not count"):
        find_files([tmp_path])
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\0")
    with pytest.raises(FormatError, match=r"passed over 1, such as .*photo\.png: it is a binary file"):
        find_files([tmp_path])
    with pytest.raises(DtypeError, match="must be a list of paths"):
        find_files(tmp_path)


def test_devices_are_explained():
    assert explain_unreadable("/dev/zero") == "it is not a regular file"
    assert explain_unreadable("/nothing") == "it cannot be opened: No such file or directory"
