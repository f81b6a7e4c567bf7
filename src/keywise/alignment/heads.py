"""Attention heads that align words, and how their weights become links; stored as JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, cast

from keywise.errors import FormatError, OptionError
from keywise.util.paths import locate_cache_folder
from keywise.util.sealed_json import SealedJson

FILES: Final = SealedJson(
    format="keywise.alignment-heads",
    version=1,
    description="a file of alignment heads",
    remedy="delete it or create it again with `keywise tune --alignments`",
    max_bytes=1 << 20,
)

FORWARD: Final = "forward"
BACKWARD: Final = "backward"
BOTH: Final = "both"
DIRECTIONS: Final = (FORWARD, BACKWARD, BOTH)

INPUT: Final = "input"
OUTPUT: Final = "output"
ROWS: Final = (INPUT, OUTPUT)


@dataclass(frozen=True, order=True)
class AlignmentHead:
    """A head, and which of its rows belongs to a target token.

    Attributes
    ----------
    layer
        The layer's number.
    head
        The query head's number.
    row
        ``"input"``: the row of the token itself; ``"output"``: the row of the token before, which predicts it.

    Examples
    --------
    >>> from keywise.alignment import AlignmentHead
    >>> AlignmentHead(3, 5)
    AlignmentHead(layer=3, head=5, row='input')
    """

    layer: int
    head: int
    row: Literal["input", "output"] = INPUT


@dataclass(frozen=True)
class LinkRule:
    """How the weights of a pair's words become scores and links.

    Without coefficients a score is the mean weight of the heads. With coefficients it is the probability of a link:
    the logistic function of the bias and the weighted features of `keywise.alignment.links.compute_features`. A second
    logistic function of the same features and of the first one's scores around a pair corrects it.

    Attributes
    ----------
    threshold
        A score above this is a link.
    mutual_threshold
        So is a score above this that is the largest of its source word and of its target word.
    coefficients
        One for each feature; empty for the mean.
    bias
        Added to the weighted features.
    context_coefficients
        One for each feature, and one for each of `keywise.alignment.links.compute_context`; empty for no second step.
    context_bias
        Added to the weighted features of the second step.

    Examples
    --------
    >>> from keywise.alignment.heads import LinkRule
    >>> LinkRule().threshold
    0.4
    """

    threshold: float = 0.4
    mutual_threshold: float = 0.1
    coefficients: tuple[float, ...] = ()
    bias: float = 0.0
    context_coefficients: tuple[float, ...] = ()
    context_bias: float = 0.0


@dataclass(frozen=True)
class AlignmentHeads:
    """The heads that align a model's target words with source words.

    Attributes
    ----------
    forward
        Heads for the target's rows on the source.
    backward
        Heads for the source's rows on the target, where a model goes both ways; empty otherwise.
    rules
        How weights become links, for ``"forward"``, ``"backward"`` and ``"both"`` directions. `LinkRule()` where a
        direction is missing.
    tuned_on
        The data that the heads were chosen on; None for heads that no labels have confirmed.

    Examples
    --------
    >>> from keywise.alignment import AlignmentHead, AlignmentHeads
    >>> AlignmentHeads((AlignmentHead(3, 5),)).is_tuned
    False
    """

    forward: tuple[AlignmentHead, ...]
    backward: tuple[AlignmentHead, ...] = ()
    rules: Mapping[str, LinkRule] | None = None
    tuned_on: str | None = None

    @property
    def is_tuned(self) -> bool:
        """Whether labelled pairs have confirmed the heads."""
        return self.tuned_on is not None

    def get_rule(self, direction: str) -> LinkRule:
        """Return the rule of a direction.

        Parameters
        ----------
        direction : str
            ``"forward"``, ``"backward"`` or ``"both"``.
        """
        return (self.rules or {}).get(direction, LinkRule())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AlignmentHeads:
        """Load heads from a JSON file that `keywise tune --alignments` wrote.

        Parameters
        ----------
        path : path
            The file.

        Raises
        ------
        FormatError
            The file is missing, damaged or of another format.

        Examples
        --------
        >>> import tempfile
        >>> from keywise.alignment import AlignmentHead, AlignmentHeads
        >>> heads = AlignmentHeads((AlignmentHead(3, 5),), tuned_on="pairs")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = heads.save(folder + "/heads.json", model="tiny", weights="files: 1f")
        ...     AlignmentHeads.load(path) == heads
        True
        """
        return _load(path)[0]

    def save(self, path: str | os.PathLike[str], *, model: str, weights: str) -> Path:
        """Write the heads as JSON and return the path.

        Parameters
        ----------
        path : path
            The file to write or replace.
        model : str
            The model's name, for people.
        weights : str
            The model's digest: ``keywise.models.fingerprint(...)["weights"]``.

        Returns
        -------
        pathlib.Path

        Raises
        ------
        FormatError
            The file cannot be written.
        """
        return FILES.write(path, {"model": model, "weights": [weights], "heads": asdict(self)})


def check_heads(
    argument: str,
    heads: AlignmentHeads | Iterable[AlignmentHead | Sequence[int]],
    sizes: tuple[int, int],
    backward_sizes: tuple[int, int] | None = None,
) -> AlignmentHeads:
    """Return the heads that a user names, or raise.

    Parameters
    ----------
    argument : str
        The argument's name, for errors.
    heads : AlignmentHeads or iterable of AlignmentHead or (int, int)
        Heads; pairs of a layer and a head mean the row of the token itself.
    sizes : (int, int)
        Number of the model's layers, and of the heads of each.
    backward_sizes : (int, int), optional
        Those of the model that reads in the other direction; default `sizes`.

    Raises
    ------
    OptionError
        There are no heads, or one is out of range.
    """
    if not isinstance(heads, AlignmentHeads):
        named = tuple(each if isinstance(each, AlignmentHead) else _make_head(argument, each) for each in heads)
        heads = AlignmentHeads(named, named)
    for chosen, (layers, per_layer) in ((heads.forward, sizes), (heads.backward, backward_sizes or sizes)):
        for each in chosen:
            if not (0 <= each.layer < layers and 0 <= each.head < per_layer):
                rule = f"must have layers below {layers} and heads below {per_layer}"
                raise OptionError(argument, rule, got=(each.layer, each.head))
            if each.row not in ROWS:
                raise OptionError(argument, f"must have one of the rows {', '.join(ROWS)}", got=each.row)
    if not heads.forward:
        raise OptionError(argument, "must have at least one head", got=[])
    return heads


def _make_head(argument: str, pair: Any) -> AlignmentHead:
    try:
        layer, head = pair
        return AlignmentHead(int(layer), int(head))
    except (TypeError, ValueError) as error:
        raise OptionError(argument, "must have pairs of a layer and a head", got=pair) from error


def find_tuned_heads(
    fingerprint: Mapping[str, str], cache_dir: str | os.PathLike[str] | None = None
) -> AlignmentHeads | None:
    """Return the heads tuned for a model, or None: the user's own first, then those that keywise ships.

    Parameters
    ----------
    fingerprint : mapping
        The model's, from `keywise.models.fingerprint`.
    cache_dir : path, optional
        Folder of keywise's caches.

    Raises
    ------
    FormatError
        The file of tuned heads is damaged or belongs to another model.
    """
    own = locate_own_heads(fingerprint, cache_dir)
    if os.path.isfile(own):
        heads, models = _load(own)
        if fingerprint["weights"] not in models:
            raise FormatError("path", f"{os.fspath(own)!r} has heads of another model", remedy=FILES.remedy)
        return heads
    for shipped in files("keywise.alignment").joinpath("tuned").iterdir():
        if shipped.name.endswith(".json"):
            heads, models = _make_heads(FILES.decode(shipped.read_bytes(), shipped.name), shipped.name)
            if fingerprint["weights"] in models:
                return heads
    return None


def locate_own_heads(fingerprint: Mapping[str, str], cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the file in which `find_tuned_heads` looks for the user's own heads of a model."""
    digest = fingerprint["weights"].rpartition(" ")[2][:32]
    return locate_cache_folder(cache_dir) / "alignment" / f"{digest}.json"


def _load(path: str | os.PathLike[str]) -> tuple[AlignmentHeads, list[str]]:
    return _make_heads(FILES.read(path), os.fspath(path))


def _make_heads(entries: Mapping[str, Any], name: str) -> tuple[AlignmentHeads, list[str]]:
    """Return the heads of a file, and the digests of the models that they were tuned for."""
    try:
        fields = entries["heads"]
        heads = AlignmentHeads(
            forward=_read_heads(fields["forward"]),
            backward=_read_heads(fields["backward"]),
            rules=None if fields["rules"] is None else _read_rules(fields["rules"]),
            tuned_on=None if fields["tuned_on"] is None else str(fields["tuned_on"]),
        )
        return heads, [str(weights) for weights in entries["weights"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FILES.make_error(name, repr(error)) from error


def _read_heads(values: Any) -> tuple[AlignmentHead, ...]:
    heads = []
    for value in values:
        layer, head, row = value["layer"], value["head"], value["row"]
        if type(layer) is not int or type(head) is not int or min(layer, head) < 0 or row not in ROWS:
            raise ValueError(f"{value!r:.80} is no head")
        heads.append(AlignmentHead(layer, head, cast(Literal["input", "output"], row)))
    return tuple(heads)


def _read_rules(values: Any) -> dict[str, LinkRule]:
    rules = {}
    for direction, value in values.items():
        rule = LinkRule(
            threshold=value["threshold"],
            mutual_threshold=value["mutual_threshold"],
            coefficients=tuple(value["coefficients"]),
            bias=value["bias"],
            context_coefficients=tuple(value["context_coefficients"]),
            context_bias=value["context_bias"],
        )
        limits = (rule.threshold, rule.mutual_threshold, rule.bias, rule.context_bias)
        numbers = (*limits, *rule.coefficients, *rule.context_coefficients)
        if direction not in DIRECTIONS or not all(
            type(number) is float and math.isfinite(number) for number in numbers
        ):
            raise ValueError(f"{direction!r:.40} has no rule of finite numbers")
        rules[direction] = rule
    return rules
