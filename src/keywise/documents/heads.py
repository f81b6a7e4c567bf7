"""Which attention heads of a model find evidence, and how what they say is weighed: tuned for a model, or a guess."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from keywise.errors import FormatError
from keywise.util.atomic_write import atomic_write
from keywise.util.paths import cache_folder

Head = tuple[int, int]

ATTENTION: Final = "attention"
WORDS: Final = "words"
MEANING: Final = "meaning"
_BY_ATTENTION = ("matching", "copying", "previous")
_BY_WORDS = (*_BY_ATTENTION, "words", "paragraph_words")
RANKINGS: Final = {
    ATTENTION: _BY_ATTENTION,
    WORDS: _BY_WORDS,
    MEANING: (*_BY_WORDS, "meaning", "paragraph_meaning"),
}
"""What sentences can be ranked by, each with its clues: see `keywise.documents.evidence.clue_odds`."""

# Fitted to the default model as if nothing were known of its heads (XQuAD's first 24 English articles).
_GUESSED_POWERS: Final = {
    ATTENTION: {"matching": 2.0},
    WORDS: {"matching": 1.5, "words": 1.5, "paragraph_words": 4.5},
    MEANING: {"matching": 1.25, "words": 1.25, "paragraph_words": 4.0, "meaning": 6.0, "paragraph_meaning": 6.0},
}


@dataclass(frozen=True)
class Heads:
    """The heads that are read for evidence, and how what they find is weighed.

    Attributes
    ----------
    matching
        (layer, head) of those that look from the question's words to the words that they match.
    copying
        (layer, head) of those that look from where an answer begins to the words that it would begin with.
    powers
        For each ranking (`RANKINGS`) the power of each of its clues: a sentence's share is proportional to the product
        of these powers. A ranking that was not tuned is missing.
    none_mass, none_power
        The odds that no sentence answers are ``(none_mass / largest) ** none_power``, `largest` being the most mass
        above a null question's that the matching heads give to one sentence. Both are 0 where this was never learned.
    answer_sentences
        How many of the first sentences an answer is written from; 0 for the whole document.
    tuned_on
        What they were chosen on; None for a guess from the model's depth.
    """

    matching: tuple[Head, ...]
    copying: tuple[Head, ...]
    powers: Mapping[str, Mapping[str, float]]
    none_mass: float
    none_power: float
    answer_sentences: int
    tuned_on: str | None

    @property
    def layers(self) -> list[int]:
        """The layers that have to be read."""
        return sorted({layer for layer, _ in (*self.matching, *self.copying)})


def untuned(layers: int, heads: int) -> Heads:
    """Guess: all heads between a quarter and three quarters of a model's depth, where attention finds content.

    Parameters
    ----------
    layers
        Number of the model's layers.
    heads
        Query heads in each.

    Examples
    --------
    >>> untuned(30, 9).layers[0], untuned(30, 9).layers[-1], len(untuned(30, 9).matching)
    (7, 21, 135)
    """
    middle = range(layers // 4, max(layers // 4 + 1, layers * 3 // 4))
    return Heads(
        matching=tuple((layer, head) for layer in middle for head in range(heads)),
        copying=(),
        powers=_GUESSED_POWERS,
        none_mass=0.0,
        none_power=0.0,
        answer_sentences=0,
        tuned_on=None,
    )


def find(fingerprint: Mapping[str, str], cache_dir: str | os.PathLike[str] | None = None) -> Heads | None:
    """Find the heads tuned for a model: the user's own, else those that keywise brings; None if there are none.

    Raises
    ------
    FormatError
        If a file of tuned heads is damaged.
    """
    own = _own(fingerprint, cache_dir)
    if own.is_file():
        return _read(own.read_text("utf-8"), str(own))
    for shipped in files("keywise.documents").joinpath("tuned").iterdir():
        text = shipped.read_text("utf-8")
        if shipped.name.endswith(".json") and fingerprint["weights"] in json.loads(text)["weights"]:
            return _read(text, shipped.name)
    return None


def save(
    heads: Heads,
    fingerprint: Mapping[str, str],
    model: str,
    cache_dir: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Path:
    """Write tuned heads to where `find` looks for a model's, or to another path; give the path.

    Raises
    ------
    FormatError
        If the file cannot be written.
    """
    target = _own(fingerprint, cache_dir) if path is None else Path(path)
    content = {"model": model, "weights": [fingerprint["weights"]], "heads": asdict(heads)}
    try:
        if path is None:
            target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target, private=True) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise FormatError(f"{str(target)!r} cannot be written: {error.strerror}; name another file") from error
    return target


def _own(fingerprint: Mapping[str, str], cache_dir: str | os.PathLike[str] | None) -> Path:
    return cache_folder(cache_dir) / "heads" / f"{fingerprint['weights'].rpartition(' ')[2][:32]}.json"


def _read(text: str, name: str) -> Heads:
    try:
        said: dict[str, Any] = json.loads(text)["heads"]
        for group in ("matching", "copying"):
            said[group] = tuple((int(layer), int(head)) for layer, head in said[group])
        said["powers"] = {
            ranking: {clue: float(powers[clue]) for clue in RANKINGS[ranking]}
            for ranking, powers in said["powers"].items()
        }
        return Heads(**said)
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{name}: is no file of tuned heads ({error}); tune again with `keywise tune`") from error
