"""The page in a browser: answers and marks, PDF pages, keyboard, colours, widths, accessibility, hostile documents."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import explain_missing_browser, open_browser
from tests.support.pdf import write_pages
from tests.support.server import LIGHTHOUSE, ServerProcess

REASON = explain_missing_browser()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

TIMEOUT_MS = 60_000
PDF = write_pages(
    [(60, 700, "The lamp was lit in 1862. It burned oil.", 14)],
    [(60, 700, "Nothing is here.", 14)],
    [(60, 700, "The keeper was Ann Low.", 14), (60, 400, "She kept goats on the rock.", 14)],
)
HOSTILE_HTML = b"""<html><head><script>window.hacked = 1</script></head><body onload="window.hacked = 2">
<p>The keeper was Ann Low. <img src=x onerror="window.hacked = 3"></p>
<p>She wrote &lt;script&gt;window.hacked = 4&lt;/script&gt; and &lt;img src=x onerror="window.hacked = 5"&gt;
in the book.</p>
<svg onload="window.hacked = 6"></svg></body></html>"""
HOSTILE_NOTE = b"""The keeper was Ann Low.

She wrote <script>window.hacked = 7</script> and <img src=x onerror="window.hacked = 8"> in the book.

"><svg/onload=window.hacked=9> {{7*7}} javascript:alert(1) &lt;b&gt; was her mark.
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def open_page(browser: Any, server: ServerProcess) -> Iterator[Callable[..., Any]]:
    """Return a function that opens the page in a context of its own; its console must stay without errors."""
    contexts, problems = [], []

    def open_one(path: str = "/", **options: Any) -> Any:
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options}
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda each: None if each.url.startswith(server.address) else problems.append(each.url))
        page.goto(f"{server.address}{path}")
        page.wait_for_selector("#sheets .sentence", state="attached")
        return page

    yield open_one
    for context in contexts:
        context.close()
    # Files that the server refuses, and documents that were removed, are such lines.
    refused = ("a status of 400 (Bad Request)", "a status of 404 (Not Found)")
    assert [line for line in problems if not any(status in line for status in refused)] == []


def wait_until(page: Any, expression: str) -> None:
    """Wait until an expression is true; playwright's own waiting needs eval, which the page forbids."""
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


def ask(page: Any, question: str) -> Any:
    """Ask, and return the article of the answer."""
    turns = page.locator(".turn").count()
    page.fill("#question", question)
    page.keyboard.press("Enter")
    wait_until(page, f"document.querySelectorAll('.turn').length > {turns} && document.querySelector('#stop').hidden")
    return page.locator(".turn").last


def add_file(page: Any, name: str, content: bytes) -> None:
    page.set_input_files("#files", {"name": name, "mimeType": "application/octet-stream", "buffer": content})
    wait_until(page, f"document.querySelector('#about').textContent === {f'About {name}'!r}")
    wait_until(page, "document.querySelector('#uploads').children.length === 0")
    page.wait_for_selector("#sheets .sentence", state="attached")


def get_active_ranks(page: Any) -> set[str]:
    return set(page.eval_on_selector_all("#sheets .active", "all => all.map(each => each.dataset.rank)"))


def is_in_view(page: Any, selector: str) -> bool:
    return bool(
        page.eval_on_selector(
            selector,
            """element => {
                const box = element.getBoundingClientRect();
                const sheets = document.querySelector('#sheets').getBoundingClientRect();
                return box.top >= sheets.top && box.bottom <= sheets.bottom;
            }""",
        )
    )


def test_an_answer_streams_in_and_its_sources_are_marked_in_the_document(open_page: Any) -> None:
    page = open_page()
    answer = ask(page, "Where is the old lens now?")
    assert answer.locator(".word").inner_text() == "the town museum1"
    cited = page.locator("#sheets .sentence.cited")
    assert cited.count() == 1
    assert cited.inner_text().startswith("The old lens was taken down")
    assert is_in_view(page, "#sheets .sentence.cited")
    assert get_active_ranks(page) == set()
    answer.locator(".word").hover()
    assert get_active_ranks(page) == {"1"}
    page.locator("#question").hover()
    assert get_active_ranks(page) == set()
    page.eval_on_selector("#sheets", "sheets => sheets.scrollTo(0, 0)")
    answer.locator(".source").nth(0).click()
    wait_until(page, "document.activeElement.id === 'rank-1'")
    assert is_in_view(page, "#rank-1")
    assert get_active_ranks(page) == {"1"}


def test_a_written_answer_grows_word_by_word(browser: Any, tmp_path: Path) -> None:
    with ServerProcess(tmp_path, LIGHTHOUSE, "--no-cache", "--sentences", 0) as server:
        page = browser.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.goto(server.address)
        page.wait_for_selector("#sheets .sentence", state="attached")
        page.evaluate(
            """() => {
                window.seen = [];
                new MutationObserver(() => {
                    const answer = document.querySelector(".turn p.answer");
                    if (answer && !document.querySelector("#stop").hidden) window.seen.push(answer.textContent);
                }).observe(document.querySelector("#turns"), { childList: true, subtree: true });
            }"""
        )
        answer = ask(page, "Tell me about the lamp.").locator(".answer").inner_text()
        seen = [text for text in dict.fromkeys(page.evaluate("window.seen")) if text]
        page.close()
    growing = [text for text in seen if answer.startswith(text.rstrip())]
    assert len(growing) > 5
    assert [len(text) for text in growing] == sorted(len(text) for text in growing)


def test_a_conversation_is_kept_and_a_follow_up_is_understood(open_page: Any) -> None:
    page = open_page()
    ask(page, "Which keeper stayed longest?")
    answer = ask(page, "And what did he write down?")
    assert "weather" in answer.locator(".answer").inner_text()
    assert (
        page.locator("#conversations .open[aria-current=true]").inner_text().startswith("Which keeper stayed longest?")
    )
    page.reload()
    wait_until(page, "document.querySelectorAll('.turn .sources').length === 2")
    assert "weather" in page.locator(".turn .answer").last.inner_text()
    page.wait_for_selector("#sheets .sentence.cited")


def test_an_answer_without_support_says_so_and_marks_nothing(open_page: Any) -> None:
    page = open_page()
    answer = ask(page, "Who is the president of France?")
    assert "No sentence of the documents supports an answer" in answer.inner_text()
    assert answer.locator(".word").count() == 0
    assert page.locator("#sheets mark, #sheets .cited, #sheets .context").count() == 0


def test_ablation_is_measured_on_demand_and_kept(open_page: Any) -> None:
    page = open_page(viewport={"width": 1280, "height": 480})
    answer = ask(page, "Where is the old lens now?")
    answer.get_by_role("button", name="Measure what the answer depends on").click()
    lines = answer.locator(".ablation li")
    lines.first.wait_for()
    times = r"([\d.,]+|more than a million) times less likely"
    assert re.fullmatch(rf"Without sentence 1 the answer is {times}\.", lines.first.inner_text())
    assert "(control: from the middle of the ranking)" in lines.last.inner_text()
    # The area of the question lies over the end of the conversation.
    bottom = lines.last.bounding_box()["y"] + lines.last.bounding_box()["height"]
    assert bottom <= page.locator("#ask").bounding_box()["y"]
    page.reload()
    page.wait_for_selector(".ablation li")


def test_an_ablation_is_told_in_plain_words(open_page: Any) -> None:
    page = open_page()
    lines = page.evaluate(
        """async () => {
            const { describeAblation } = await import("/static/turns.js");
            return [2.5, 1, 0.01, 0, -1, 20].map((drop) => describeAblation({ rank: 2, drop_nats: drop }));
        }"""
    )
    assert lines == [
        "Without sentence 2 the answer is 12 times less likely.",
        "Without sentence 2 the answer is 2.7 times less likely.",
        "The answer hardly depends on sentence 2.",
        "The answer does not depend on sentence 2.",
        "The answer does not depend on sentence 2.",
        "Without sentence 2 the answer is more than a million times less likely.",
    ]


def test_a_pdf_is_shown_as_pages_with_the_cited_words_boxed(open_page: Any, tmp_path: Path) -> None:
    page = open_page()
    add_file(page, "log.pdf", PDF)
    answer = ask(page, "Who was the keeper?")
    assert answer.locator(".word").inner_text() == "Ann Low1"
    assert page.locator("#sheets .page").count() == 3
    wait_until(page, "document.querySelector('[data-page=\"3\"] img').complete")
    assert is_in_view(page, "#box-1")
    assert page.locator("#box-1").evaluate("box => box.closest('.page').dataset.page") == "3"
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed: apt-get install poppler-utils")
    path = tmp_path / "log.pdf"
    path.write_bytes(PDF)
    text = subprocess.run(["pdftotext", "-bbox", path, "-"], capture_output=True, text=True, check=True).stdout
    third = text.split("<page ")[3]
    width, height = (float(value) for value in re.findall(r'(?:width|height)="([\d.]+)"', third)[:2])
    words = {
        word: (float(left) / width, float(top) / height, float(right) / width, float(bottom) / height)
        for left, top, right, bottom, word in re.findall(
            r'<word xMin="([\d.]+)" yMin="([\d.]+)" xMax="([\d.]+)" yMax="([\d.]+)">(.*?)</word>', third
        )
    }
    box = page.locator("#box-1 rect").bounding_box()
    sheet = page.locator('[data-page="3"] img').bounding_box()
    left, right = (box["x"] - sheet["x"]) / sheet["width"], (box["x"] + box["width"] - sheet["x"]) / sheet["width"]
    top, bottom = (box["y"] - sheet["y"]) / sheet["height"], (box["y"] + box["height"] - sheet["y"]) / sheet["height"]
    for word in ("The", "keeper", "was", "Ann", "Low."):
        middle = (words[word][0] + words[word][2]) / 2, (words[word][1] + words[word][3]) / 2
        assert left <= middle[0] <= right, word
        assert top <= middle[1] <= bottom, word
    assert left == pytest.approx(words["The"][0], abs=0.01)
    assert right == pytest.approx(words["Low."][2], abs=0.01)
    for word in ("She", "goats"):
        assert not top <= (words[word][1] + words[word][3]) / 2 <= bottom


def test_the_text_of_a_pdf_is_one_button_away(open_page: Any) -> None:
    page = open_page()
    add_file(page, "log.pdf", PDF)
    ask(page, "Who was the keeper?")
    assert not page.locator("#rank-1").is_visible()
    page.get_by_role("button", name="Text", exact=True).click()
    assert page.locator("#rank-1").is_visible()
    assert not page.locator("#sheets .page").first.is_visible()


@pytest.mark.parametrize(
    ("name", "content"), [("evil.html", HOSTILE_HTML), ("evil.txt", HOSTILE_NOTE), ("evil.md", HOSTILE_NOTE)]
)
def test_scripts_of_a_document_do_not_run(open_page: Any, name: str, content: bytes) -> None:
    page = open_page()
    add_file(page, name, content)
    answer = ask(page, "What did she write in the book?")
    # The marks of Markdown, HTML among them, are not shown.
    assert ("<script>" in page.locator("#sheets").inner_text()) == (name != "evil.md")
    assert "window.hacked" in answer.inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.locator("#sheets script, #sheets img, #sheets svg").count() == 0


def test_a_cited_address_opens_the_document_at_the_sentence(open_page: Any) -> None:
    page = open_page()
    document = page.evaluate("fetch('/api/state').then(each => each.json()).then(state => state.default_documents[0])")
    other = open_page(f"/?document={document}&start=2287&end=2406")
    other.wait_for_selector("#sheets .sentence.active")
    assert other.locator("#sheets .sentence.active").inner_text().startswith("The old lens was taken down")
    assert is_in_view(other, "#sheets .sentence.active")


def test_the_page_can_be_used_by_the_keyboard_alone(open_page: Any) -> None:
    page = open_page()
    page.locator(".skip").focus()
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "question"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
    page.locator("#documents input").first.focus()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
    assert page.input_value("#question") == ""
    page.keyboard.type("Where is the old lens now?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".sources")
    for _ in range(30):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.className") == "word":
            break
    wait_until(page, "document.querySelectorAll('#sheets .active').length === 1")
    page.keyboard.press("Enter")
    wait_until(page, "document.activeElement.id === 'rank-1'")


def test_the_page_is_dark_where_the_user_prefers_it(open_page: Any) -> None:
    def measure(page: Any) -> float:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3

    assert measure(open_page(color_scheme="light")) > 230
    assert measure(open_page(color_scheme="dark")) < 40


def test_a_narrow_screen_shows_one_part_at_a_time_and_never_scrolls_sideways(open_page: Any) -> None:
    page = open_page(viewport={"width": 390, "height": 800})

    def check(shown: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert [page.locator(f"#{name}").is_visible() for name in ("lists", "conversation", "viewer")] == [
            name == shown for name in ("lists", "conversation", "viewer")
        ]

    check("conversation")
    answer = ask(page, "Where is the old lens now?")
    check("conversation")
    answer.locator(".word").click()
    wait_until(page, "document.activeElement.id === 'rank-1'")
    check("viewer")
    assert is_in_view(page, "#rank-1")
    page.get_by_role("button", name="Documents", exact=True).click()
    check("lists")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(color_scheme=scheme)
    ask(page, "Where is the old lens now?")
    add_file(page, "log.pdf", PDF)
    ask(page, "Who was the keeper?")
    serious = [
        (violation["id"], violation["nodes"][0]["html"])
        for violation in axe.Axe().run(page).response["violations"]
        if violation["impact"] in {"serious", "critical"}
    ]
    assert not serious


def test_a_file_that_cannot_be_read_is_explained(open_page: Any) -> None:
    page = open_page()
    page.set_input_files("#files", {"name": "scan.pdf", "mimeType": "application/pdf", "buffer": write_pages([])})
    page.wait_for_selector("#uploads [role=alert]")
    assert "text recognition" in page.locator("#uploads [role=alert]").inner_text()


def test_a_document_is_removed_after_a_question_and_its_conversation_says_so(open_page: Any) -> None:
    page = open_page()
    add_file(page, "gone.txt", b"The lamp of the tower is green. It rains.")
    ask(page, "Which colour has the lamp?")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Remove gone.txt").click()
    wait_until(page, "!document.querySelector('#documents').textContent.includes('gone.txt')")
    page.reload()
    page.wait_for_selector("#turns .error")
    assert "There is no document" in page.locator("#turns .error").inner_text()
