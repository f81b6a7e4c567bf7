"""A browser for tests of the page: Debian's chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

CHROMIUM_VARIABLE = "KEYWISE_CHROMIUM"


def explain_missing_browser() -> str | None:
    """Return why no browser can be started, or None."""
    if find_spec("playwright") is None:
        return "playwright is not installed: pip install playwright"
    if find_chromium() is None:
        return f"chromium is not installed: run `make browser`, or name one with {CHROMIUM_VARIABLE}"
    return None


def find_chromium() -> str | None:
    """Return the path of chromium."""
    return os.environ.get(CHROMIUM_VARIABLE) or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def open_browser() -> Iterator[Any]:
    """Yield a browser of playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, as in containers, chromium starts without its sandbox alone.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        try:
            yield browser
        finally:
            browser.close()
