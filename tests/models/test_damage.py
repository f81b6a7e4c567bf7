"""Damaged files of models are refused, or change the fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="reads GGUF files; it comes with keywise[hf]")

from tests.support.damaged_models import ACCEPTED, FORMATS, REFUSED, SAME, UNCHECKED, VALUES


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_to_headers_and_structure_is_refused(tmp_path: Path, kind: str) -> None:
    counts = FORMATS[kind](tmp_path, 500)
    assert not counts[ACCEPTED]
    assert counts[REFUSED] > 50
    assert counts[VALUES] + counts[UNCHECKED] > 20
    assert counts[VALUES]
    assert not counts[SAME], "another content has the fingerprint of the undamaged file"
