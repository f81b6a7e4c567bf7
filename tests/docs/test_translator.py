"""The translator of examples/translator: its language, and a short training with and without guided attention."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "translator"
MODULES = ("language", "model", "training", "translator")


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    """Import the example's modules as its script does, from its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        imported = {name: __import__(name) for name in MODULES}
    for name in MODULES:
        del sys.modules[name]
    return imported


def test_pairs_differ_and_every_word_has_its_source(modules: dict[str, ModuleType]) -> None:
    language = modules["language"]
    pairs = language.draw_pairs(500, seed=1)
    assert len({pair.source for pair in pairs}) == 500
    for pair in pairs:
        assert len(pair.target) == len(pair.alignment)
        for word, position in zip(pair.target, pair.alignment, strict=True):
            english = pair.source[position]
            translated = language.DICTIONARY.get(english)
            particles = {
                language.SUBJECT,
                language.OBJECT,
                language.PLURAL,
                language.DEFINITE,
                language.OWN,
                language.PAST,
            }
            inflected = translated is None or word in particles
            assert word == translated or inflected, (word, english)
    assert any(list(pair.alignment) != sorted(pair.alignment) for pair in pairs)


def test_words_of_the_language_are_known(modules: dict[str, ModuleType]) -> None:
    language = modules["language"]
    generator = random.Random(5)
    for _ in range(200):
        pair = language.draw_pair(generator)
        assert set(pair.source) <= set(language.SOURCE_WORDS)
        assert set(pair.target) <= set(language.TARGET_WORDS)


@pytest.mark.usefixtures("one_torch_thread")
def test_guided_attention_lowers_the_alignment_error(
    modules: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    # A third of the steps of the example: a translation is seldom exact, but the alignment is learnt already.
    errors = modules["translator"].main(["--pairs", "4000", "--held-out", "100", "--steps", "240"])
    assert errors["plain"].exact_match > 0.15
    assert errors["guided"].exact_match > 0.15
    assert errors["guided"].alignment_error < 0.05
    assert errors["guided"].alignment_error < errors["plain"].alignment_error / 3
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("plain ", "guided ")) for line in lines) == 4
    assert any(line.split()[-1].endswith("%") for line in lines if line.startswith("  "))
