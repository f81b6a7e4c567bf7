"""Conversions of GGUF files that are killed: nothing converted is lost, and nothing half-made stays."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="converts GGUF files; it comes with keywise[hf]")

from tests.support.crashes import CONVERTING_MODULES, kill_conversions


def test_nothing_converted_is_lost_when_conversions_are_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*CONVERTING_MODULES])
    crashes = kill_conversions(tmp_path, 8, context)
    assert crashes.kills == 8
    assert crashes.commits
    assert crashes.leftovers
