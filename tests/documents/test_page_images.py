"""Pages of a PDF are shown with the places of the best sentences, within limits of size and time."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from keywise.documents import Answer, Evidence, Source, conversion, read_file
from keywise.documents.extract.pdf_pictures import MAX_PICTURE_HEIGHT, PICTURE_WIDTH, render
from keywise.documents.page_images import picture_pages
from keywise.documents.report import to_html
from keywise.errors import FormatError
from tests.support.pdf import write_pages, write_pdf

PAGES = write_pages(
    [(60, 700, "The lamp was lit in 1862. It burned oil.")],
    [(60, 700, "Nothing is here.")],
    [(60, 700, "The keeper was Ann Low."), (60, 400, "She kept goats on the rock.")],
)


def rank(source, *numbers):
    """Return the sentences of these numbers as evidence, best first."""
    evidence = []
    for position, number in enumerate(numbers):
        quote = source.quotes[number]
        scores = (0.5**position, 1.0, 1.0, 1.0, 0.4, 1.0, 1.0, None, None, position + 1)
        evidence.append(Evidence(quote.text, quote.begin, quote.end, source.name, *scores, quote.page, quote.boxes))
    return evidence


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "report.pdf"
    path.write_bytes(PAGES)
    return read_file(path)


def decode(address):
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,")))).convert("L")


def test_only_pages_with_one_of_the_best_sentences_are_shown(report):
    images = picture_pages(report, rank(report, 3, 0))
    assert [(image.number, [mark.rank for mark in image.marks]) for image in images] == [(1, [2]), (3, [1])]
    assert len(images[0].address) < 50_000
    far = [replace(item, share=1.0 if item.rank == 1 else 0.001) for item in rank(report, 3, 0)]
    assert [image.number for image in picture_pages(report, far)] == [3], "a share of nearly nothing"


def test_a_mark_covers_the_ink_of_its_sentence(report):
    (image,) = picture_pages(report, rank(report, 3))
    (mark,) = image.marks
    ink = np.asarray(decode(image.address)) < 128
    rows, columns = ink.nonzero()
    # The other sentence of the page stands lower.
    upper = rows < image.height / 2
    left, right = 100 * columns[upper].min() / image.width, 100 * columns[upper].max() / image.width
    top, bottom = 100 * rows[upper].min() / image.height, 100 * rows[upper].max() / image.height
    assert mark.left - 0.3 <= left <= mark.left + 1
    assert mark.left + mark.width - 1 <= right <= mark.left + mark.width + 0.3
    assert mark.top <= top
    assert bottom <= mark.top + mark.height + 0.1


@pytest.mark.parametrize("rotation", [0, 90, 270])
def test_marks_follow_the_rotation_and_the_crop_of_a_page(rotation):
    content = b"BT /F1 20 Tf 100 700 Td (Rain) Tj ET"
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/CropBox[50 100 550 800]/Rotate %d" % rotation
    font = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
    pdf = write_pdf(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            page + b"/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
            b"<</Length %d>>\nstream\n%s\nendstream" % (len(content), content),
            font,
        ]
    )
    (picture,) = render(pdf, {1: [(100, 696, 145, 716)]})
    ink = np.asarray(decode(f"data:image/png;base64,{picture['png']}")) < 128
    rows, columns = ink.nonzero()
    left, top, width, height = picture["boxes"][0]
    assert left * picture["width"] - 2 <= columns.min() <= columns.max() <= (left + width) * picture["width"] + 2
    assert top * picture["height"] - 2 <= rows.min() <= rows.max() <= (top + height) * picture["height"] + 2


@pytest.mark.parametrize(("width", "height"), [(14400, 14400), (20, 14400), (14400, 20)])
def test_the_size_of_a_picture_is_bounded(width, height):
    pdf = write_pages([(0, 0, "Rain")]).replace(b"0 0 595 842", b"0 0 %d %d" % (width, height))
    (picture,) = render(pdf, {1: []})
    assert picture["width"] <= PICTURE_WIDTH
    assert picture["height"] <= MAX_PICTURE_HEIGHT


def test_the_page_opens_at_the_best_sentence(report):
    evidence = rank(report, 3, 0)
    page = to_html(Answer("Ann Low", evidence, "Who?", "m", True, 9, 2, tuned_on="questions"), [report])
    assert page.count("autofocus") == 1
    box = re.search(r'<a href="#rank-1" id="box-1" [^>]*autofocus=""><title>rank 1</title><rect x="([\d.]+)"', page)
    assert box is not None
    assert float(box[1]) == pytest.approx(100 * 60 / 595, abs=0.2)
    assert f'<a class="where" href="#box-1">{report.name}, page 3</a>' in page
    assert page.count("<img ") == 2
    assert f'alt="Page 3 of {report.name}"' in page
    text = Source("note", "It rains. It is dry.")
    page = to_html(Answer("It rains.", rank(text, 1, 0), "What?", "m", True, 9, 2), [text])
    assert re.search(r'<mark id="rank-1"[^>]* tabindex="-1" autofocus=""', page)
    assert page.count("autofocus") == 1


def test_a_file_that_changed_is_not_shown(report, tmp_path):
    evidence = rank(report, 3)
    assert picture_pages(Source(report.name, report.text, report.blocks), evidence) == []
    (tmp_path / "report.pdf").write_bytes(PAGES.replace(b"Ann", b"Eve"))
    assert picture_pages(report, evidence) == []
    (tmp_path / "report.pdf").unlink()
    with pytest.raises(FormatError, match="must name an existing file"):
        picture_pages(report, evidence)


def test_a_page_that_takes_for_ever_is_stopped(monkeypatch):
    monkeypatch.setattr(conversion, "BASE_SECONDS", 1)
    tiny = b"0 0 1 1 re f\n" * 20
    form = b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X %d 0 R>>>>/Length %d>>"
    form += b"\nstream\n%s\nendstream"
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>"]
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R/Resources<</XObject<</X 5 0 R>>>>>>"
    calls = b"/X Do\n" * 12
    objects += [page, b"<</Length %d>>\nstream\n%s\nendstream" % (len(calls), calls)]
    for number in range(5, 15):
        body = tiny if number == 14 else calls
        objects.append(form % (number + 1, len(body), body))
    with pytest.raises(FormatError, match=r"take more than 1 seconds|the converter crashed"):
        conversion.render_pages(write_pdf(objects), {1: []}, "forms.pdf")
