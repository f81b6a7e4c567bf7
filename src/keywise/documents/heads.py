"""The attention heads that locate evidence, and the weights of their scores."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from keywise.errors import FormatError
from keywise.util.paths import locate_cache_folder
from keywise.util.sealed_json import SealedJson

Head = tuple[int, int]
"""A layer and one of its query heads."""

FILES: Final = SealedJson(
    format="keywise.heads",
    version=4,
    description="a file of tuned heads",
    remedy="delete it or create it again with `keywise tune`",
    max_bytes=1 << 24,
)
_FOLDER: Final = "heads"

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

BIAS: Final = "bias"
ANSWER_WEIGHTS: Final = {LEXICAL: ("mass", "lexical"), SEMANTIC: ("mass", "lexical", "semantic")}
"""The scores of the best sentence that tell whether it answers, for each ranking by text."""

# For all heads of a model's middle layers; those by text as they were fitted with tuned heads.
_GUESSED_POWERS: Final = {
    ATTENTION: {"matching": 2.0},
    LEXICAL: {"matching": 1.5, "lexical": 2.2, "paragraph_lexical": 0.5},
    SEMANTIC: {
        "matching": 1.25,
        "lexical": 1.8,
        "paragraph_lexical": 0.0,
        "semantic": 8.3,
        "paragraph_semantic": 3.0,
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
    answer_odds
        For each ranking the weights in the logarithm of the odds that a sentence answers: ``bias``, and those of the
        best sentence's ``mass`` (its logarithm), ``lexical`` and ``semantic``; see
        `keywise.documents.evidence.estimate_no_answer_share`. Rankings that were not tuned are missing.
    answer_sentences
        Number of sentences that an answer is quoted from; 0 if the model writes it from the whole document.
    tuned_on
        The data that the heads were tuned on; None for a guess from the model's depth.
    moves_sentences
        Whether the model's answers may change the order of the sentences; None if that was not measured.

    Examples
    --------
    >>> from keywise.documents import Heads
    >>> Heads(((3, 0),), ((5, 1),), {}, {}, answer_sentences=1, tuned_on="questions.json").layers
    [3, 5]
    """

    matching: tuple[Head, ...]
    copying: tuple[Head, ...]
    powers: Mapping[str, Mapping[str, float]]
    answer_odds: Mapping[str, Mapping[str, float]]
    answer_sentences: int
    tuned_on: str | None
    moves_sentences: bool | None = None

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
            The file is missing, damaged, of another format, or was made by an earlier build. Every changed byte is
            detected.

        Examples
        --------
        >>> import tempfile
        >>> from keywise.documents import Heads
        >>> heads = Heads(((3, 0),), ((5, 1),), {}, {}, answer_sentences=1, tuned_on="questions.json")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = heads.save(folder + "/heads.json", model="tiny", weights="files: 1f", architecture="llama")
        ...     Heads.load(path) == heads
        True
        """
        return _load(path).heads

    def save(self, path: str | os.PathLike[str], *, model: str, weights: str, architecture: str) -> Path:
        """Write the heads as JSON and return the path.

        Parameters
        ----------
        path
            The file to write or replace.
        model
            The model's name, for people.
        weights
            The model's digest: ``keywise.models.fingerprint(...)["weights"]``.
        architecture
            The model's architecture and size, from `describe_architecture`.

        Returns
        -------
        pathlib.Path

        Raises
        ------
        FormatError
            The file cannot be written.
        """
        entries = {"model": model, "architecture": architecture, "weights": [weights], "heads": asdict(self)}
        return FILES.write(path, entries)


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
        answer_odds={},
        answer_sentences=0,
        tuned_on=None,
    )


def describe_architecture(config: Any) -> str:
    """Return the architecture and the sizes that a model shares with its relatives.

    Parameters
    ----------
    config
        The configuration of a language model of transformers.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> describe_architecture(LlamaConfig(num_hidden_layers=30, hidden_size=576, num_attention_heads=9))
    'llama, 30 layers, 9 heads, 9 key heads, 576 wide'
    """
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    sizes = f"{config.num_hidden_layers} layers, {heads} heads, {key_heads} key heads, {config.hidden_size} wide"
    return f"{config.model_type}, {sizes}"


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
    if os.path.isfile(own):  # Path.is_file raises an error for a folder that may not be searched
        tuned = _load(own)
        if fingerprint["weights"] not in tuned.weights:
            raise FormatError("path", f"{os.fspath(own)!r} has heads of another model", remedy=FILES.remedy)
        return tuned.heads
    return next((tuned.heads for tuned in _load_shipped() if fingerprint["weights"] in tuned.weights), None)


def find_related_heads(architecture: str, cache_dir: str | os.PathLike[str] | None = None) -> Heads | None:
    """Return the heads tuned for a model of the same architecture and size, or None if there are none.

    The user's own files come first, then those that keywise ships. ``tuned_on`` names the related model.

    Parameters
    ----------
    architecture
        From `describe_architecture`.
    cache_dir
        Folder of keywise's caches; see `keywise.documents.Reader`.
    """
    for tuned in (*_load_own(locate_cache_folder(cache_dir) / _FOLDER), *_load_shipped()):
        if tuned.architecture == architecture:
            return replace(tuned.heads, tuned_on=f"{tuned.heads.tuned_on}, with the related model {tuned.model}")
    return None


@dataclass(frozen=True)
class _TunedHeads:
    """Heads with the model that they were tuned for."""

    heads: Heads
    model: str
    architecture: str
    weights: list[str]


def _load_shipped() -> Iterator[_TunedHeads]:
    for file in sorted(files("keywise.documents").joinpath("tuned").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            yield _make_tuned_heads(FILES.decode(file.read_bytes(), file.name), file.name)


def _load_own(folder: Path) -> Iterator[_TunedHeads]:
    """Yield the user's own heads of other models; a damaged file is an error for its own model only."""
    for path in sorted(folder.glob("*.json")):
        with suppress(FormatError):
            yield _load(path)


def locate_own_heads(fingerprint: Mapping[str, str], cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the file in which `find_heads` looks for the user's own heads of a model."""
    digest = fingerprint["weights"].rpartition(" ")[2][:32]
    return locate_cache_folder(cache_dir) / _FOLDER / f"{digest}.json"


def _load(path: str | os.PathLike[str]) -> _TunedHeads:
    return _make_tuned_heads(FILES.read(path), os.fspath(path))


def _make_tuned_heads(entries: Mapping[str, Any], name: str) -> _TunedHeads:
    try:
        weights = [str(weights) for weights in entries["weights"]]
        heads = _make_heads(entries["heads"])
        return _TunedHeads(heads, str(entries["model"]), str(entries["architecture"]), weights)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FILES.make_error(name, repr(error)) from error


def _make_heads(fields: dict[str, Any]) -> Heads:
    """Return heads from the entries of a file; raise a built-in error if one is no number or out of bounds."""
    groups = {
        group: tuple((_check_count(layer), _check_count(head)) for layer, head in fields[group])
        for group in ("matching", "copying")
    }
    powers = {
        ranking: {feature: _check_number(values[feature]) for feature in RANKINGS[ranking]}
        for ranking, values in fields["powers"].items()
    }
    tuned_on, moves_sentences = fields["tuned_on"], fields["moves_sentences"]
    if not groups["matching"] or not isinstance(tuned_on, str | None) or not isinstance(moves_sentences, bool | None):
        raise ValueError("no matching heads, or damaged text")
    return Heads(
        **groups,
        powers=powers,
        answer_odds={
            ranking: {name: _check_number(values[name]) for name in ANSWER_WEIGHTS[ranking]}
            | {BIAS: _check_number(values[BIAS], signed=True)}
            for ranking, values in fields["answer_odds"].items()
        },
        answer_sentences=_check_count(fields["answer_sentences"]),
        tuned_on=tuned_on,
        moves_sentences=moves_sentences,
    )


def _check_count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"an integer of 0 or more expected, got {value!r:.40}")
    return value


def _check_number(value: Any, *, signed: bool = False) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or (value < 0 and not signed):
        raise ValueError(f"a finite number{'' if signed else ' of 0 or more'} expected, got {value!r:.40}")
    return float(value)
