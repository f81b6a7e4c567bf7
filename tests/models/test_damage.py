"""Damaged files of models are refused, or change the fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="reads GGUF files; it comes with keywise[hf]")

from tests.support.damage import ACCEPTED, REFUSED, VALUES, run_campaigns


def test_damage_to_headers_and_structure_is_refused(tmp_path: Path) -> None:
    campaigns = run_campaigns(tmp_path, 300)
    for kind, counts in campaigns.items():
        assert not counts[ACCEPTED], kind
        assert counts[REFUSED] > 30, kind
        assert counts[VALUES] > 10, kind
