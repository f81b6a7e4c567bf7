"""The attention heads that locate evidence, and the weights of their scores."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from keywise.errors import FormatError, MissingFileError
from keywise.util.atomic_write import atomic_write
from keywise.util.paths import locate_cache_folder

Head = tuple[int, int]
"""A layer and one of its query heads."""

FORMAT: Final = "keywise.heads"
FORMAT_VERSION: Final = 2

ATTENTION: Final = "attention"
LEXICAL: Final = "lexical"
SEMANTIC: Final = "semantic"
_ATTENTION_FEATURES = ("matching", "copying", "previous")
_LEXICAL_FEATURES = (*_ATTENTION_FEATURES, "lexical", "paragraph_lexical")
RANKINGS: Final = {
    ATTENTION: _ATTENTION_FEATURES,
    LEXICAL: _LEXICAL_FEATURES,
    SEMANTIC: (*_LEXICAL_FEATURES, "semantic", "paragraph_semantic"),
}
"""The ways to rank sentences, each with its features; see `keywise.documents.evidence.compute_feature_odds`."""

# Fitted to the default model with all heads of its middle layers, on XQuAD's first 24 English articles.
_GUESSED_POWERS: Final = {
    ATTENTION: {"matching": 2.0},
    LEXICAL: {"matching": 1.5, "lexical": 1.5, "paragraph_lexical": 4.5},
    SEMANTIC: {
        "matching": 1.25,
        "lexical": 1.25,
        "paragraph_lexical": 4.0,
        "semantic": 6.0,
        "paragraph_semantic": 6.0,
    },
}


@dataclass(frozen=True)
class Heads:
    """The heads whose attention is evidence, and the weights of all scores.

    Parameters
    ----------
    matching
        (layer, head) pairs that attend from the question's words to the words that match them.
    copying
        (layer, head) pairs that attend from the beginning of an answer to the words that it would start with.
    powers
        For each ranking of `RANKINGS` the power of each of its features. A sentence's share is proportional to the
        product of these powers. Rankings that were not tuned are missing.
    no_answer_mass, no_answer_power
        The odds that no sentence answers are ``(no_answer_mass / largest) ** no_answer_power``, where ``largest`` is
        the most attention mass above the null question's that the matching heads put on one sentence. Both are 0 if
        they were not tuned.
    answer_sentences
        Number of sentences that an answer is quoted from; 0 if the model writes it from the whole document.
    tuned_on
        The data that the heads were tuned on; None for a guess from the model's depth.

    Examples
    --------
    >>> from keywise.documents import Heads
    >>> Heads(((3, 0),), ((5, 1),), {}, 0.0, 0.0, answer_sentences=1, tuned_on="questions.json").layers
    [3, 5]
    """

    matching: tuple[Head, ...]
    copying: tuple[Head, ...]
    powers: Mapping[str, Mapping[str, float]]
    no_answer_mass: float
    no_answer_power: float
    answer_sentences: int
    tuned_on: str | None

    @property
    def layers(self) -> list[int]:
        """Layers that have such a head, in order."""
        return sorted({layer for layer, _ in (*self.matching, *self.copying)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Heads:
        """Load heads from a JSON file that `keywise tune` wrote.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        FormatError
            The file is missing, damaged, of another format, or was made by an earlier build.

        Examples
        --------
        >>> import tempfile
        >>> from keywise.documents import Heads
        >>> heads = Heads(((3, 0),), ((5, 1),), {}, 0.0, 0.0, answer_sentences=1, tuned_on="questions.json")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = heads.save(folder + "/heads.json", model="tiny", weights="files: 1f")
        ...     Heads.load(path) == heads
        True
        """
        name = os.fspath(path)
        try:
            text = Path(path).read_text("utf-8")
        except FileNotFoundError as error:
            raise MissingFileError("path", "must name an existing file", got=name) from error
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError("path", "must name a file of tuned heads", got=name, remedy=str(error)) from error
        return _parse(text, name)

    def save(self, path: str | os.PathLike[str], *, model: str, weights: str) -> Path:
        """Write the heads as JSON and return the path.

        Parameters
        ----------
        path
            The file to write or replace.
        model
            The model's name, for people.
        weights
            The model's digest: ``keywise.models.fingerprint(...)["weights"]``.

        Returns
        -------
        pathlib.Path

        Raises
        ------
        FormatError
            The file cannot be written.
        """
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "model": model,
            "weights": [weights],
            "heads": asdict(self),
        }
        try:
            with atomic_write(path, private=True) as file:
                file.write((json.dumps(content, indent=1) + "\n").encode())
        except OSError as error:
            rule = "must name a file that can be written"
            raise FormatError("path", rule, got=os.fspath(path), remedy=str(error.strerror)) from error
        return Path(path)


def guess_heads(layers: int, heads: int) -> Heads:
    """Return all heads between a quarter and three quarters of a model's depth.

    The middle layers attend to content; heads near input and output attend to positions and tokens.

    Parameters
    ----------
    layers
        Number of the model's layers.
    heads
        Query heads in each layer.

    Examples
    --------
    >>> guess = guess_heads(30, 9)
    >>> guess.layers[0], guess.layers[-1], len(guess.matching)
    (7, 21, 135)
    """
    first = layers // 4
    middle = range(first, max(first + 1, layers * 3 // 4))
    return Heads(
        matching=tuple((layer, head) for layer in middle for head in range(heads)),
        copying=(),
        powers=_GUESSED_POWERS,
        no_answer_mass=0.0,
        no_answer_power=0.0,
        answer_sentences=0,
        tuned_on=None,
    )


def find_heads(fingerprint: Mapping[str, str], cache_dir: str | os.PathLike[str] | None = None) -> Heads | None:
    """Return the heads tuned for a model, or None if there are none.

    The user's own file comes first, then those that keywise ships.

    Parameters
    ----------
    fingerprint
        The model's, from `keywise.models.fingerprint`.
    cache_dir
        Folder of keywise's caches; see `keywise.documents.Reader`.

    Raises
    ------
    FormatError
        The file of tuned heads is damaged or was made by an earlier build.
    """
    own = locate_own_heads(fingerprint, cache_dir)
    if own.is_file():
        return Heads.load(own)
    for shipped in files("keywise.documents").joinpath("tuned").iterdir():
        if not shipped.name.endswith(".json"):
            continue
        text = shipped.read_text("utf-8")
        if fingerprint["weights"] in json.loads(text)["weights"]:
            return _parse(text, shipped.name)
    return None


def locate_own_heads(fingerprint: Mapping[str, str], cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the file in which `find_heads` looks for the user's own heads of a model."""
    digest = fingerprint["weights"].rpartition(" ")[2][:32]
    return locate_cache_folder(cache_dir) / "heads" / f"{digest}.json"


def _parse(text: str, name: str) -> Heads:
    try:
        content = json.loads(text)
        version = content.get("version", 1)
        fields: dict[str, Any] = content["heads"]
        if version == FORMAT_VERSION:
            for group in ("matching", "copying"):
                fields[group] = tuple((int(layer), int(head)) for layer, head in fields[group])
            fields["powers"] = {
                ranking: {feature: float(powers[feature]) for feature in RANKINGS[ranking]}
                for ranking, powers in fields["powers"].items()
            }
            return Heads(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = f"{error!r}; create it again with `keywise tune`"
        raise FormatError("path", "must be a file of tuned heads", got=name, remedy=remedy) from error
    # A file without a version has the field names of the first builds.
    builds = "an earlier" if version == 1 else "another"
    remedy = "delete it or create it again with `keywise tune`"
    raise FormatError("path", f"{name!r} was made by {builds} build", remedy=remedy)
