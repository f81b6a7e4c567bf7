"""`open_regular`: files are opened, everything else is refused without waiting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keywise.util.regular_files import open_regular


def test_files_and_links_to_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "note").write_bytes(b"dry")
    (tmp_path / "link").symlink_to("note")
    for name in ("note", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"dry"
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(name)).write_bytes(b"wet")
    with open_regular(os.fsdecode(name)) as file:
        assert file.read() == b"wet"


@pytest.mark.parametrize("name", ["none", "", "folder", "pipe", "loop", "note/below", "/dev/null", "a\0b", "\ud800"])
def test_everything_else_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    (tmp_path / "note").write_bytes(b"dry")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):  # noqa: PT011 - the message differs
        open_regular(os.path.join(tmp_path, name))
    assert len(os.listdir("/proc/self/fd")) == before
