"""Sampling of tokens and texts that end an answer."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from keywise.documents import Document, Reader, Source
from keywise.documents.generation import Sampling, StopTexts, make_token_chooser
from keywise.errors import DtypeError, OptionError
from keywise.models.loading import load_model
from tests.support.chat_models import write_chat_model

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])
DRAWS = 4000


def draw(sampling: Sampling | None, count: int = DRAWS) -> np.ndarray:
    """Return how often each token is chosen."""
    choose = make_token_chooser(sampling)
    counts = Counter(choose(LOGITS, []) for _ in range(count))
    return np.array([counts[token] for token in range(len(LOGITS))]) / count


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def test_without_sampling_the_most_probable_token_is_chosen() -> None:
    assert draw(None, 3)[0] == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_chosen_by_the_softmax_of_their_logits(temperature: float) -> None:
    expected = softmax(LOGITS.numpy() / temperature)
    # Four standard deviations of a share.
    bound = 4 * np.sqrt(expected * (1 - expected) / DRAWS)
    assert (np.abs(draw(Sampling(temperature, seed=5)) - expected) <= bound).all()


def test_top_p_and_top_k_leave_improbable_tokens_out() -> None:
    expected = softmax(LOGITS.numpy()[:2])
    for sampling in (Sampling(top_k=2, seed=1), Sampling(top_p=0.8, seed=1)):
        shares = draw(sampling)
        assert shares[2:].sum() == 0
        assert shares[:2] == pytest.approx(expected, abs=0.03)


def test_a_seed_repeats_a_choice() -> None:
    chosen = [[make_token_chooser(Sampling(seed=seed))(LOGITS, []) for _ in range(3)] for seed in (1, 1)]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"temperature": 0}, OptionError),
        ({"temperature": -1}, OptionError),
        ({"temperature": float("nan")}, OptionError),
        ({"temperature": "hot"}, DtypeError),
        ({"top_p": 0}, OptionError),
        ({"top_p": 1.1}, OptionError),
        ({"top_k": -1}, OptionError),
        ({"seed": 2**63}, OptionError),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        Sampling(**options)  # type: ignore[arg-type]


def test_stop_texts_are_found_and_their_beginnings_held_back() -> None:
    stop = StopTexts(("###", "END"))
    assert stop.find("a END b ###") == (2, "END")
    assert stop.find("nothing") is None
    assert stop.find_safe_end("text ##") == 5
    assert stop.find_safe_end("text E") == 5
    assert stop.find_safe_end("text X") == 6
    with pytest.raises(OptionError, match="stop"):
        StopTexts(("",))


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    folder = write_chat_model(tmp_path_factory.mktemp("model"))
    return Reader(load_model(folder), keep=False, encode=False).read(Source("note", "It rains. It is dry. Tom left."))


def test_a_stop_text_ends_a_written_answer_and_is_never_shown(document: Document) -> None:
    whole = document.ask("What?", sentences=0, max_tokens=20)
    assert len(whole.text) > 6
    stop = whole.text[4:6]
    shown: list[str] = []
    answer = document.ask("What?", sentences=0, max_tokens=20, stop=[stop], on_token=shown.append)
    before = whole.text[: whole.text.index(stop)]
    assert answer.text == before.strip()
    assert "".join(shown).strip() == before.strip()
    assert (answer.stopped_by, answer.complete) == (stop, True)
    assert all(word.end <= len(answer.text) for word in answer.words)
    assert whole.stopped_by is None


def test_the_parts_of_a_written_answer_are_its_text(document: Document) -> None:
    shown: list[str] = []
    answer = document.ask("What?", sentences=0, max_tokens=12, stop=["\0never"], on_token=shown.append)
    assert "".join(shown).strip() == answer.text


def test_sampled_answers_differ_by_their_seeds_alone(document: Document) -> None:
    def sample(seed: int) -> str:
        return document.ask("What?", max_tokens=12, sampling=Sampling(2.0, seed=seed)).text

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1
    with pytest.raises(OptionError, match="sentences must be 0 with sampling"):
        document.ask("What?", sentences=1, sampling=Sampling())
