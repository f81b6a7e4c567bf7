"""`atomic_write`: the old file or the new one, never a part, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keywise.util import atomic_write as module
from keywise.util.atomic_write import (
    ABANDONED_SECONDS,
    UNFINISHED_PREFIX,
    atomic_write,
    sweep_unfinished,
    synchronise,
)
from tests.support.command_line import restore_control_c

pytestmark = pytest.mark.serial


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_new_content_replaces_the_old_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        with atomic_write(path) as file:
            file.write(b"new")
            file.flush()
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"
        assert reader.read() == b"old"
    assert names(tmp_path) == ["note"]


def write_half_and_raise(path: Path, error: BaseException) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, FileExistsError, KeyboardInterrupt, SystemExit])
def test_raising_block_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "note"
    path.write_bytes(b"old")
    with pytest.raises(error):
        write_half_and_raise(path, error())
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["note"]


def test_interrupt_while_the_file_is_opened_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_and_interrupt(path: str, flags: int) -> int:
        os.close(os.open(path, flags, 0o600))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_open_private", open_and_interrupt)
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "note", private=True):
        pytest.fail("the block ran")
    assert names(tmp_path) == []


def test_control_c_inside_the_block_leaves_no_file(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from keywise.util.atomic_write import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'half')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "note")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=restore_control_c,  # noqa: PLW1509 - a shell in the background ignores Ctrl-C
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(names(tmp_path)) == 1
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    process.stdout.close()
    assert names(tmp_path) == []


def test_temporary_names_are_long_and_differ(tmp_path: Path) -> None:
    seen = set()
    for _ in range(20):
        with atomic_write(tmp_path / "note") as file:
            (name,) = [name for name in names(tmp_path) if name != "note"]
            assert Path(file.name).name == name
        seen.add(name)
    assert len(seen) == 20
    for name in seen:
        assert name.startswith(UNFINISHED_PREFIX)
        assert len(name) == len(UNFINISHED_PREFIX) + 32


def test_file_or_link_of_the_temporary_name_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / f"{UNFINISHED_PREFIX}guessed").symlink_to(victim)
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "note"):
        pytest.fail("the block ran")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "note").exists()


@pytest.mark.parametrize(("private", "mode"), [(False, 0o640), (True, 0o600)])
def test_mode_follows_umask_or_is_private(tmp_path: Path, private: bool, mode: int) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "note", private=private):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "note").stat().st_mode & 0o777 == mode


def test_file_and_folder_are_synchronised_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, bool]] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"
        events.append((kind, (tmp_path / "note").exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    with atomic_write(tmp_path / "note") as file:
        file.write(b"new")
    assert events == [("file", False), ("folder", True)]


def test_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "note"):
        pytest.fail("the block ran")


def test_synchronise_accepts_files_and_folders_and_refuses_missing_ones(tmp_path: Path) -> None:
    (tmp_path / "note").write_bytes(b"x")
    synchronise(tmp_path / "note")
    synchronise(tmp_path)
    with pytest.raises(FileNotFoundError):
        synchronise(tmp_path / "none")


def make_old(path: Path) -> Path:
    old = time.time() - ABANDONED_SECONDS - 60
    os.utime(path, (old, old), follow_symlinks=False)
    return path


def test_next_write_in_a_folder_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from keywise.util.atomic_write import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'half')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "note")]
    assert subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}).returncode
    (left,) = names(tmp_path)
    with atomic_write(tmp_path / "young"):  # its writer may be alive
        pass
    assert names(tmp_path) == [left, "young"]
    make_old(tmp_path / left)
    with atomic_write(tmp_path / "other"):
        pass
    assert names(tmp_path) == ["other", "young"]


def test_sweep_removes_old_files_folders_and_links_with_the_prefix_only(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_bytes(b"12345")
    folder = tmp_path / f"{UNFINISHED_PREFIX}folder"
    (folder / "model").mkdir(parents=True)
    (folder / "link").symlink_to(precious)
    (tmp_path / f"{UNFINISHED_PREFIX}link").symlink_to(precious)
    (folder / "model" / "weights").touch()
    for path in (
        folder / "model" / "weights",
        folder / "link",
        folder,
        tmp_path / f"{UNFINISHED_PREFIX}link",
        precious,
    ):
        make_old(path)
    busy = tmp_path / f"{UNFINISHED_PREFIX}busy"
    busy.mkdir()
    (busy / "weights").write_bytes(b"123")
    make_old(busy)
    assert sweep_unfinished(tmp_path) == 0
    assert names(tmp_path) == [busy.name, "precious"]
    assert (precious / "file").read_bytes() == b"12345"
    make_old(busy / "weights")
    assert sweep_unfinished(tmp_path, prefix="other") == 0
    assert sweep_unfinished(tmp_path) == 3
    assert sweep_unfinished(tmp_path / "none") == 0


@pytest.mark.parametrize("name", ["", ".", "folder", "pipe", "a\0b", "\ud800"])
def test_target_that_cannot_be_a_file_raises_and_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError), atomic_write(os.path.join(tmp_path, name)):  # noqa: PT011 - the message differs
        pytest.fail("the block ran")
    assert names(tmp_path) == ["folder", "pipe"]
