"""Pictures of the page for docs/server.md: ``python -m tests.support.screenshots FOLDER``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.browser import explain_missing_browser, open_browser
from tests.support.pdf import write_pages
from tests.support.server import LIGHTHOUSE, ServerProcess

PDF = write_pages(
    [
        (60, 760, "The log of Gannet Rock", "bold", 20),
        (60, 715, "The lamp was lit for the first time on the second of October 1863. It burned", 12),
        (60, 699, "oil and was trimmed every four hours.", 12),
        (60, 665, "The first keeper was Ann Low, who had been a baker in Leith. She kept goats on", 12),
        (60, 649, "the rock and left it in 1871 because of her eyes.", 12),
        (60, 615, "The tower is 31 metres tall and has 186 steps.", 12),
    ]
)


def main() -> None:
    """Draw all pictures."""
    if reason := explain_missing_browser():
        sys.exit(reason)
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as data,
        ServerProcess(Path(data), LIGHTHOUSE) as server,
        open_browser() as browser,
    ):
        for scheme in ("light", "dark"):
            draw_answer(browser, server, folder / f"answer-{scheme}.png", scheme)
        draw_pages(browser, server, folder / "pages.png")
        draw_narrow(browser, server, folder / "narrow.png")


def open_page(
    browser: Any, server: ServerProcess, *, width: int = 1280, height: int = 760, scheme: str = "light"
) -> Any:
    """Return the page in a context of its own."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(server.address)
    page.wait_for_selector("#sheets .sentence", state="attached")
    return page


def ask(page: Any, question: str) -> None:
    """Ask and wait for the sources."""
    page.fill("#question", question)
    page.keyboard.press("Enter")
    page.wait_for_selector(".sources", timeout=120_000)
    page.wait_for_timeout(500)


def draw_answer(browser: Any, server: ServerProcess, path: Path, scheme: str) -> None:
    """Draw an answer beside its document."""
    page = open_page(browser, server, scheme=scheme)
    ask(page, "Where is the old lens now?")
    page.hover(".word")
    page.screenshot(path=path)


def draw_pages(browser: Any, server: ServerProcess, path: Path) -> None:
    """Draw an answer beside the page of a PDF."""
    page = open_page(browser, server)
    page.set_input_files("#files", {"name": "log.pdf", "mimeType": "application/pdf", "buffer": PDF})
    page.wait_for_selector("#sheets .page", timeout=120_000)
    ask(page, "Who was the first keeper?")
    page.screenshot(path=path)


def draw_narrow(browser: Any, server: ServerProcess, path: Path) -> None:
    """Draw the evidence on a narrow screen."""
    page = open_page(browser, server, width=390, height=760)
    ask(page, "How tall is the tower?")
    page.screenshot(path=path)


if __name__ == "__main__":
    main()
