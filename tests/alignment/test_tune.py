"""Heads chosen from labelled pairs and ranked without labels, their files, and the files of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from keywise.alignment import AlignmentHead, AlignmentHeads
from keywise.alignment.head_ranking import rank_heads
from keywise.alignment.heads import BACKWARD, BOTH, FORWARD, LinkRule, find_tuned_heads, locate_own_heads
from keywise.alignment.pairs import GoldLinks, load_gold, load_pairs
from keywise.alignment.tune import compute_error_rate, make_gold_pair, tune_heads
from keywise.errors import FormatError, MissingFileError, OptionError

ALL_HEADS = tuple(AlignmentHead(layer, head) for layer in range(3) for head in range(4))
GOOD, FAIR = 5, 9


def draw_pair(seed, *, backward=True):
    """Return weights of 12 heads, two of which follow the links, and the links."""
    generator = np.random.default_rng(seed)
    size = int(generator.integers(4, 9))
    order = generator.permutation(size)
    links = np.zeros((size, size))
    links[np.arange(size), order] = 1.0
    directions = []
    for gold in (links, links.T):
        weights = generator.dirichlet(np.ones(size), size=(12, size))
        weights[GOOD] = 0.7 * gold + 0.3 * weights[GOOD]
        weights[FAIR] = 0.35 * gold + 0.65 * weights[FAIR]
        directions.append(weights.astype(np.float32))
    pairs = frozenset((int(source), target) for target, source in enumerate(order))
    return directions[0], directions[1] if backward else None, GoldLinks(pairs, pairs)


def make_pairs(count, *, backward=True):
    return [make_gold_pair(*draw_pair(seed, backward=backward)) for seed in range(count)]


def test_heads_that_follow_the_links_are_chosen():
    seen = []
    result = tune_heads(
        make_pairs(40), AlignmentHeads(ALL_HEADS, ALL_HEADS), tuned_on="drawn", progress=lambda *at: seen.append(at)
    )
    assert ALL_HEADS[GOOD] in result.heads.forward
    assert ALL_HEADS[GOOD] in result.heads.backward
    assert result.heads.tuned_on == "drawn"
    assert set(result.heads.rules) == {FORWARD, BACKWARD, BOTH}
    assert result.error_rates[BOTH] <= min(result.error_rates.values()) + 0.02
    assert result.error_rates[FORWARD] < 0.1
    assert seen == [(number, 5) for number in range(1, 6)]


def test_one_direction_is_tuned_alone():
    result = tune_heads(make_pairs(16, backward=False), AlignmentHeads(ALL_HEADS), tuned_on="drawn")
    assert result.heads.backward == ()
    assert set(result.error_rates) == {FORWARD}


def test_agreement_ranks_heads_without_labels():
    pairs = [draw_pair(seed)[:2] for seed in range(12)]
    heads = rank_heads(pairs, AlignmentHeads(ALL_HEADS, ALL_HEADS), count=2)
    assert set(heads.forward) == set(heads.backward) == {ALL_HEADS[GOOD], ALL_HEADS[FAIR]}
    assert not heads.is_tuned


def test_nearness_to_the_diagonal_ranks_heads_of_one_direction():
    generator = np.random.default_rng(1)
    weights = generator.dirichlet(np.ones(8), size=(12, 8)).astype(np.float32)
    weights[GOOD] = 0.6 * np.eye(8) + 0.4 * weights[GOOD]
    heads = rank_heads([(weights, None)], AlignmentHeads(ALL_HEADS), count=1)
    assert heads.forward == (ALL_HEADS[GOOD],)


def test_error_rate_follows_its_definition():
    """One proposed link is sure, one possible, one wrong; one sure link is missed."""
    forward = np.zeros((1, 3, 3), np.float32)
    pair = make_gold_pair(forward, None, GoldLinks(frozenset({(0, 0), (1, 1)}), frozenset({(0, 0), (1, 1), (2, 2)})))
    proposed = np.zeros((3, 3), bool)
    proposed[0, 0] = proposed[2, 2] = proposed[0, 2] = True
    assert compute_error_rate([proposed], [pair]) == pytest.approx(1 - (1 + 2) / (3 + 2))


def test_too_few_pairs_and_links_of_other_words_are_refused():
    with pytest.raises(OptionError, match="at least 8"):
        tune_heads(make_pairs(7), AlignmentHeads(ALL_HEADS, ALL_HEADS), tuned_on="drawn")
    weights = np.zeros((1, 2, 3), np.float32)
    with pytest.raises(OptionError, match=r"\(4, 1\)"):
        make_gold_pair(weights, None, GoldLinks(frozenset(), frozenset({(3, 0)})))


def make_heads():
    rule = LinkRule(0.5, 0.1, (1.0, -2.5), 0.25, (0.5,), -1.0)
    return AlignmentHeads((AlignmentHead(1, 2), AlignmentHead(0, 3, "output")), (), {FORWARD: rule}, "drawn")


def test_heads_are_stored_and_read(tmp_path):
    path = make_heads().save(tmp_path / "heads.json", model="tiny", weights="files: 12")
    assert AlignmentHeads.load(path) == make_heads()


def test_own_heads_come_before_shipped_ones(tmp_path):
    fingerprint = {"weights": "files: " + "1f" * 32}
    assert find_tuned_heads(fingerprint, tmp_path) is None
    path = locate_own_heads(fingerprint, tmp_path)
    path.parent.mkdir(parents=True)
    make_heads().save(path, model="tiny", weights=fingerprint["weights"])
    assert find_tuned_heads(fingerprint, tmp_path) == make_heads()
    make_heads().save(path, model="tiny", weights="files: other")
    with pytest.raises(FormatError, match="another model"):
        find_tuned_heads(fingerprint, tmp_path)


def test_shipped_heads_are_intact():
    folder = Path(__file__).parents[2] / "src" / "keywise" / "alignment" / "tuned"
    files = sorted(folder.glob("*.json"))
    assert files
    for path in files:
        heads = AlignmentHeads.load(path)
        assert heads.is_tuned
        weights = json.loads(path.read_text())["weights"]
        assert find_tuned_heads({"weights": weights[0]}, folder / "none") == heads


def test_every_changed_byte_of_a_file_is_found(tmp_path):
    path = make_heads().save(tmp_path / "heads.json", model="tiny", weights="files: 12")
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for at in generator.choice(len(whole), 120, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 + int(generator.integers(255))
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            AlignmentHeads.load(path)
    with pytest.raises(MissingFileError):
        AlignmentHeads.load(tmp_path / "gone.json")


def test_pairs_and_gold_links_are_read(tmp_path):
    (tmp_path / "pairs").write_text("the  red house ||| la maison rouge \n. ||| .\n")
    (tmp_path / "gold").write_text("1-1 2p3\n\n")
    (source, target), (other, _) = load_pairs(tmp_path / "pairs")
    assert (source.words, target.words, other.words) == (("the", "red", "house"), ("la", "maison", "rouge"), (".",))
    first, second = load_gold(tmp_path / "gold")
    assert (first.sure, first.possible) == ({(0, 0)}, {(0, 0), (1, 2)})
    assert (second.sure, second.possible) == (frozenset(), frozenset())


@pytest.mark.parametrize(
    ("loader", "content", "message"),
    [
        (load_pairs, "", "at least one line"),
        (load_pairs, "a ||| b\n\n", "line 2 of file is blank"),
        (load_pairs, "one text\n", "line 1"),
        (load_pairs, "a ||| b\na ||| b ||| c\n", "line 2"),
        (load_pairs, "a |||  \n", "line 1"),
        (load_gold, "0-1\n", "counted from 1"),
        (load_gold, "1-1\n1:2\n", "line 2"),
    ],
)
def test_malformed_files_are_refused_with_their_line(tmp_path, loader, content, message):
    (tmp_path / "file").write_text(content)
    with pytest.raises(FormatError, match=message):
        loader(tmp_path / "file")


@pytest.mark.parametrize("loader", [load_pairs, load_gold])
def test_missing_and_binary_files_are_refused(tmp_path, loader):
    with pytest.raises(MissingFileError):
        loader(tmp_path / "gone")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError):
        loader(tmp_path / "binary")
