"""Search by keys and words: BM25 as a bias of attention, its shares, and the full-text index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import keywise as kw
from keywise.errors import FormatError, OptionError, ShapeError
from keywise.library import word_index, word_scores
from keywise.library.key_pages import KeyPages
from keywise.library.library import Library
from keywise.library.word_index import WORD_INDEX
from tests.support.library_tools import DIMENSION, WordEncoder, make_document_text, write_documents


class BlindEncoder(WordEncoder):
    """Returns the same key for every text."""

    def encode(self, texts: object) -> np.ndarray:
        return np.full((len(list(texts)), DIMENSION), DIMENSION**-0.5)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    write_documents(tmp_path / "documents", 20)
    library = kw.Library.open(tmp_path / "library", "a", encoder=WordEncoder())
    library.add([tmp_path / "documents"])
    return library


def add_texts(folder: Path, texts: list[str], encoder: WordEncoder) -> Library:
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    library = kw.Library.open(folder / "library", "a", encoder=encoder)
    library.add([folder])
    return library


def test_weights_are_a_softmax_of_scores_and_words(library: Library) -> None:
    question = "Who keeps the lamp of house 1?"
    hits = library.search(question, top=120)
    rows = library.dataset.to_table(columns=["text", "key"]).to_pylist()
    texts = [row["text"] for row in rows]
    keys = np.array([row["key"] for row in rows], np.float64)
    query = np.asarray(WordEncoder().encode([question]), np.float16).astype(np.float64)[0]
    scores = keys @ query / library.temperature
    found = library.dataset.scanner(columns=["_score", "text"], full_text_query=question).to_table().to_pylist()
    words = np.zeros(len(rows))
    for row in found:
        words[texts.index(row["text"])] = row["_score"]
    assert len(set(texts)) < len(texts)
    for row in found:  # equal texts have equal scores
        words[[number for number, text in enumerate(texts) if text == row["text"]]] = row["_score"]

    def softmax(logits: np.ndarray) -> np.ndarray:
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    expected = softmax(scores + word_scores.BM25_WEIGHT * words)
    by_keys = softmax(scores)
    assert len(hits) == 120
    assert sum(hit.weight for hit in hits) == pytest.approx(1, abs=1e-4)
    for hit in hits:
        number = texts.index(hit.text)
        assert hit.weight == pytest.approx(expected[number], rel=2e-3, abs=1e-7)
        assert hit.semantic == pytest.approx(by_keys[number], rel=2e-3, abs=1e-7)
        assert hit.lexical == pytest.approx(words[number] / words.sum(), rel=1e-3, abs=1e-7)
    alone = library.search(question, top=120, keys_only=True)
    assert [hit.semantic for hit in alone] == [hit.weight for hit in alone]
    assert [hit.weight for hit in alone] == pytest.approx(sorted(by_keys, reverse=True), rel=2e-3, abs=1e-7)
    assert {hit.lexical for hit in alone} == {None}


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Which keepers wrote?", "The keeper was writing."),
        (
            "\u706f\u53f0\u306f\u3069\u3053",
            "\u53e4\u3044\u706f\u53f0\u306f\u5317\u306b\u3042\u308b\u3002",
        ),
        (
            "\u0e1b\u0e23\u0e30\u0e20\u0e32\u0e04\u0e32\u0e23",
            "\u0e21\u0e35\u0e1b\u0e23\u0e30\u0e20\u0e32\u0e04\u0e32\u0e23\u0e40\u0e01\u0e48\u0e32",
        ),
        ("cafe", "Das Caf\u00e9 ist zu."),
        ("policy KY-3381", "Policy KY-3381 ends in May."),
    ],
)
def test_words_are_found_in_any_script(tmp_path: Path, question: str, answer: str) -> None:
    texts = [
        "The keeper was writing.",
        "\u53e4\u3044\u706f\u53f0\u306f\u5317\u306b\u3042\u308b\u3002",
        "\u732b\u306f\u9b5a\u304c\u597d\u304d\u3067\u3059\u3002",
        "\u0e21\u0e35\u0e1b\u0e23\u0e30\u0e20\u0e32\u0e04\u0e32\u0e23\u0e40\u0e01\u0e48\u0e32",
        "\u0e41\u0e21\u0e27\u0e01\u0e34\u0e19\u0e1b\u0e25\u0e32",
        "Das Caf\u00e9 ist zu.",
        "Policy KX-3380 ends in June.",
        "Policy KY-3381 ends in May.",
    ]
    library = add_texts(tmp_path / "documents", texts, BlindEncoder())
    hits = library.search(question, top=2)
    assert hits[0].text == answer
    assert hits[0].lexical > hits[1].lexical


def test_question_without_words_of_the_library_ranks_by_keys(library: Library) -> None:
    for question in ("zzz qqq", "?!", "\ud800", "\0"):
        hits = library.search(question, top=5)
        assert [hit.text for hit in hits] == [hit.text for hit in library.search(question, top=5, keys_only=True)]
        assert {hit.lexical for hit in hits} == {0.0}


def test_where_hides_rows_from_words_too(library: Library) -> None:
    hits = library.search("Ben keeps the lamp of house 1", top=50, where="document LIKE '%004.txt'")
    assert len(hits) == 6
    assert {Path(hit.document).name for hit in hits} == {"004.txt"}
    assert sum(hit.weight for hit in hits) == pytest.approx(1, abs=1e-4)
    assert sum(hit.lexical for hit in hits) == pytest.approx(1, abs=1e-4)
    assert library.search("Ben", where="sentence > 99") == []


def test_words_count_before_and_after_the_index_has_them(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count_unindexed() -> int:
        return int(library.dataset.stats.index_stats(WORD_INDEX)["num_unindexed_rows"])

    assert count_unindexed() == 120
    question = "Ben keeps the lamp of house 1"
    before = library.search(question)
    monkeypatch.setattr(word_index, "MIN_UNINDEXED_ROWS", 10)
    write_documents(tmp_path / "documents", 1, edition=7)
    library.add([tmp_path / "documents"])
    assert count_unindexed() == 0
    after = library.search(question)
    assert [hit.text for hit in after] == [hit.text for hit in before]
    assert [hit.lexical for hit in after] == pytest.approx([hit.lexical for hit in before], rel=0.1)
    assert library.search("When was it mended, in 1907?", top=1)[0].text == "It was mended in 1907."
    assert not [hit for hit in library.search("mended in 1900", top=120) if hit.text == "It was mended in 1900."]
    library.compact()
    assert [hit.text for hit in library.search(question)] == [hit.text for hit in after]
    library.remove([tmp_path / "documents" / "001.txt"])
    assert library.search(question, top=1)[0].document != after[0].document


def test_changed_index_is_refused(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_index, "MIN_UNINDEXED_ROWS", 10)
    library.add([tmp_path / "documents"])
    files = [path for path in Path(library.path, "_indices").rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(FormatError, match=r"_indices.*is damaged"):
        kw.Library.open(library.path, encoder=WordEncoder()).search("Ben")


def test_library_whose_creator_was_killed_before_the_index_gets_one(library: Library, tmp_path: Path) -> None:
    library.dataset.drop_index(WORD_INDEX)
    assert (
        library.search("Ben keeps the lamp of house 1", top=1)[0].text == make_document_text(1).partition(".")[0] + "."
    )
    writer = kw.Library.open(library.path, "a", encoder=WordEncoder())
    writer.add([tmp_path / "documents"])
    assert [index.name for index in writer.dataset.describe_indices()] == [WORD_INDEX]


def test_attention_with_words_of_some_queries(library: Library) -> None:
    question = "Ben keeps the lamp of house 1"
    attention = library.attend([question, question], words=[question, None], values=None, top=3)
    alone = library.attend(question, values=None, top=3)
    np.testing.assert_array_equal(attention.weights[1], alone.weights[0])
    assert attention.top_mass[0] > attention.top_mass[1]
    np.testing.assert_array_equal(library.attend(question, words=question, top=3).weights[0], attention.weights[0])
    with pytest.raises(ShapeError, match="words must be one text or None per query: 2, got 1"):
        library.attend([question, question], words=question)
    with pytest.raises(OptionError, match="words must not be empty"):
        library.attend(question, words=" ")
    with pytest.raises(OptionError, match="words must be None for candidates"):
        library.attend(question, words=question, approximate=True)


def test_keys_of_the_users_own_have_no_words(tmp_path: Path) -> None:
    library = kw.Library.open(tmp_path / "library", "a")
    library.add_keys(np.eye(3), text=["a", "b", "c"])
    with pytest.raises(OptionError, match="words must be None for candidates and for keys of your own"):
        library.attend(np.eye(3)[0], words="a")


def test_words_of_keys_that_lance_decodes(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    question = "Ben keeps the lamp of house 1"
    expected = library.search(question, top=20)
    opened = kw.Library.open(library.path, encoder=WordEncoder())
    monkeypatch.setattr(KeyPages, "find_pages", lambda *_: None)
    decoded = opened.search(question, top=20)
    assert [hit.text for hit in decoded] == [hit.text for hit in expected]
    assert [hit.weight for hit in decoded] == pytest.approx([hit.weight for hit in expected], rel=1e-4)
