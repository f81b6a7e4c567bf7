"""Files of sentence pairs and of their hand-made links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keywise.alignment.links import Link
from keywise.alignment.words import Words, split_words
from keywise.errors import FormatError, KeywiseError, MissingFileError

SEPARATOR: Final = " ||| "
_GOLD_LINK: Final = re.compile(r"(\d+)([-p])(\d+)")


@dataclass(frozen=True)
class GoldLinks:
    """Hand-made links of a pair, words counted from 0.

    Attributes
    ----------
    sure
        Links that an alignment must have.
    possible
        Links that it may have, the sure ones included.
    """

    sure: frozenset[Link]
    possible: frozenset[Link]


def load_pairs(path: Path) -> list[tuple[Words, Words]]:
    """Load sentence pairs: one a line, source and target with ``|||`` between, words separated by spaces.

    Parameters
    ----------
    path : pathlib.Path
        The file, in UTF-8.

    Raises
    ------
    FormatError
        The file is missing or cannot be read, or a line has no two texts of at least one word.
    """
    lines = _read_lines("pairs", path)
    if lines == [""]:
        raise FormatError("pairs", "must have at least one line 'source ||| target'", got=str(path))
    pairs = []
    for number, line in enumerate(lines, start=1):
        texts = line.split(SEPARATOR)
        if len(texts) != 2:
            fault = f"has {len(texts)} texts" if line.strip() else "is blank"
            raise FormatError("pairs", f"must have lines 'source ||| target'; line {number} of {path.name} {fault}")
        try:
            pairs.append((split_words("source", texts[0].split()), split_words("target", texts[1].split())))
        except KeywiseError as error:
            raise FormatError("pairs", f"line {number} of {path.name}: {error}") from error
    return pairs


def load_gold(path: Path) -> list[GoldLinks]:
    """Load hand-made links: one line a pair, ``i-j`` for a sure link and ``ipj`` for a possible one, from 1.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Raises
    ------
    FormatError
        The file is missing or cannot be read, or holds something else.
    """
    gold = []
    for number, line in enumerate(_read_lines("gold", path), start=1):
        sure, possible = set(), set()
        for token in line.split():
            match = _GOLD_LINK.fullmatch(token)
            if match is None or "0" in (match[1], match[3]):
                rule = "must have links 'i-j' (sure) or 'ipj' (possible), words counted from 1"
                raise FormatError("gold", rule, got=token, remedy=f"line {number} of {path.name}")
            link = int(match[1]) - 1, int(match[3]) - 1
            possible.add(link)
            if match[2] == "-":
                sure.add(link)
        gold.append(GoldLinks(frozenset(sure), frozenset(possible)))
    return gold


def _read_lines(argument: str, path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError as error:
        raise MissingFileError(argument, "must name an existing file", got=str(path)) from error
    except OSError as error:
        rule = "must name a file that can be read"
        raise FormatError(argument, rule, got=str(path), remedy=str(error.strerror)) from error
    except UnicodeDecodeError as error:
        raise FormatError(argument, "must be in UTF-8", got=str(path)) from error
