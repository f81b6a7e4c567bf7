"""Units that a quotation keeps whole: words with their marks, numbers with sign and unit, names, addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import regex

# Scripts without spaces between words: every character may begin or end a quotation.
_UNSPACED: Final = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTER: Final = rf"[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]"
_CURRENCY: Final = r"\p{Sc}"
_SIGN: Final = r"[+\-\u2212\u00b1~\u2248<>\u2264\u2265]"
# Words that belong to the number before them.
_MEASURE: Final = (
    r"thousand|million|billion|trillion|[mb]n|Tausend|Millionen|Milliarden"
    r"|(?:kilo|centi|milli)?met(?:re|er)s?|[kcm]?m[\u00b2\u00b3]?|feet|foot|ft|inch(?:es)?|yards?|miles?|acres?|hectares?|ha"
    r"|(?:kilo)?grams?|[km]?g|tonnes?|tons?|lbs?|oz|lit(?:re|er)s?|ml|l"
    r"|years?|months?|weeks?|days?|hours?|minutes?|seconds?|ms|min|[ap]\.?m\.?|Jahren?|Monaten?|Wochen?|Tagen?|Stunden?|Uhr"
    r"|per\ ?cent|percent|Prozent|degrees?|pounds?|euros?|dollars?|cents?|pence|yen|francs?|EUR|USD|GBP|CHF"
    r"|km/h|mph|[kMG]?Wh?|[kMG]?Hz|[kKMGT]i?B|volts?|V|people|persons|Personen"
)

_UNIT = regex.compile(
    rf"""
    (?P<address> [a-z][a-z0-9+.\-]*://\S*[^\s.,;:!?)\]}}'"\u2019\u201d\u00bb]
               | [\w.+\-]+@[\w\-]+(?:\.[\w\-]+)+ )
  | (?P<number> (?:(?<![\p{{L}}\p{{N}}]){_SIGN})?(?:{_CURRENCY}\s?)?{_SIGN}?
                \p{{Nd}}(?:[\p{{Nd}}.,:/'\u2019\u00a0\u202f\-\u2010-\u2015\u00d7^]*\p{{Nd}})?
                [\u2070\u00b2\u00b3\u00b9\u2074-\u2079]*
                (?:[\ \u00a0\u202f]?[%\u2030\u00b0\u2032\u2033{_CURRENCY}][CFKN]?)?
                (?:[\-_./]?{_LETTER})*
                (?:(?<=\p{{Nd}})(?:\ \p{{Nd}}+){{2,}}(?!\p{{Nd}}))?
                (?:[\ \u00a0\u202f\-](?:{_MEASURE})(?!{_LETTER})){{0,2}} )
  | (?P<word> (?<!{_LETTER})[\#@.\\/]?{_LETTER}
              (?:(?:['\u2019\-\u2010\u2011._/&@:+\\]|\#(?={_LETTER}))?{_LETTER})*
              (?:\#|\+\+|\+(?!\w))? )
  | (?P<character> (?=[{_UNSPACED}])\X )
    """,
    regex.VERBOSE | regex.VERSION1 | regex.IGNORECASE,
)
_UNSPACED_CHARACTER = regex.compile(rf"[{_UNSPACED}]")
_POSSESSIVE = regex.compile(r"['\u2019]s$", regex.IGNORECASE)
# A marker of a list or clause at the beginning of a sentence: "3.", "(b)", "4.2", "Q:".
_MARKER = regex.compile(r"\s*(?:\(?(?:\p{Nd}+(?:\.\p{Nd}+)*|[a-zA-Z]|[ivxIVX]+)[.):]|\p{Nd}+(?:\.\p{Nd}+)+)(?=\s)")
# The same within a sentence: "if the tenant (a) fails to pay or (b) leaves".
_INNER_MARKER = regex.compile(r"\((?:\p{Nd}{1,2}|[a-zA-Z]|[ivxIVX]{1,4})\)")


@dataclass(frozen=True)
class Unit:
    """A part of a text that a quotation keeps whole.

    Attributes
    ----------
    start, end
        Its characters.
    word_end
        Where a quotation may end too: before a possessive "'s"; otherwise `end`.

    Examples
    --------
    >>> from keywise.documents.units import find_units
    >>> find_units("Ann's lamp")[0]
    Unit(start=0, end=5, word_end=3)
    """

    start: int
    end: int
    word_end: int


def find_units(text: str) -> list[Unit]:
    """Return the units of a text, in order.

    Numbers keep their sign, currency and unit, and names, addresses and code their punctuation. In scripts without
    spaces between words a unit is a grapheme cluster (Unicode Standard Annex #29).

    Parameters
    ----------
    text
        Some sentences.

    Examples
    --------
    >>> text = "At -12.5 °C, run_all.py of C# fell from £1,000."
    >>> [text[unit.start : unit.end] for unit in find_units(text)]
    ['At', '-12.5 °C', 'run_all.py', 'of', 'C#', 'fell', 'from', '£1,000']
    """
    units: list[Unit] = []
    for match in _UNIT.finditer(text):
        start, end = match.span()
        start += len(match[0]) - len(match[0].lstrip())
        possessive = _POSSESSIVE.search(match[0])
        units.append(Unit(start, end, match.start() + possessive.start() if possessive else end))
    return units


def has_unspaced_script(text: str) -> bool:
    """Return whether a text has characters of a script without spaces between words.

    Examples
    --------
    >>> has_unspaced_script("1862年"), has_unspaced_script("in 1862")
    (True, False)
    """
    return bool(_UNSPACED_CHARACTER.search(text))


def find_markers(sentence: str) -> list[tuple[int, int]]:
    """Return the spans of the clause number that a sentence begins with, and of those within it.

    Examples
    --------
    >>> find_markers("4.2 The tenant (a) pays and (b) leaves.")
    [(0, 3), (15, 18), (28, 31)]
    """
    spans = [match.span() for match in _INNER_MARKER.finditer(sentence)]
    end = find_marker_end(sentence)
    return [(0, end), *(span for span in spans if span[0] >= end)] if end else spans


def find_marker_end(text: str) -> int:
    """Return the length of the list marker or clause number that a sentence begins with, 0 for none.

    Examples
    --------
    >>> find_marker_end("4.2 Smoking is prohibited."), find_marker_end("(b) Pets"), find_marker_end("1862 was wet.")
    (3, 3, 0)
    """
    match = _MARKER.match(text)
    return match.end() if match else 0
