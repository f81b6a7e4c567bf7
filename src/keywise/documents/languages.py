"""The language of a text, by its script and its commonest words."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

DEFAULT_LANGUAGE: Final = "en"

# First and last character of a script's letters, and the language that its sentences follow.
_SCRIPTS: Final = (
    ("\u0370", "\u03ff", "el"),
    ("\u0400", "\u052f", "ru"),
    ("\u0530", "\u058f", "hy"),
    ("\u0590", "\u05ff", "he"),
    ("\u0600", "\u06ff", "ar"),
    ("\u0750", "\u077f", "ar"),
    ("\u0900", "\u097f", "hi"),
    ("\u0980", "\u09ff", "bn"),
    ("\u0a00", "\u0a7f", "pa"),
    ("\u0a80", "\u0aff", "gu"),
    ("\u0b00", "\u0b7f", "or"),
    ("\u0b80", "\u0bff", "ta"),
    ("\u0c00", "\u0c7f", "te"),
    ("\u0c80", "\u0cff", "kn"),
    ("\u0d00", "\u0d7f", "ml"),
    ("\u0d80", "\u0dff", "si"),
    ("\u0e00", "\u0e7f", "th"),
    ("\u0e80", "\u0eff", "lo"),
    ("\u1000", "\u109f", "my"),
    ("\u10a0", "\u10ff", "ka"),
    ("\u1200", "\u137f", "am"),
    ("\u1780", "\u17ff", "km"),
    ("\u3040", "\u30ff", "ja"),
    ("\u3400", "\u4dbf", "zh"),
    ("\u4e00", "\u9fff", "zh"),
    ("\uac00", "\ud7af", "ko"),
)
_NON_LATIN: Final = re.compile("[" + "".join(f"{first}-{last}" for first, last, _ in _SCRIPTS) + "]")
_LATIN_WORD: Final = re.compile(r"[^\W\d_]+")
_SAMPLE_CHARACTERS: Final = 2000
# Fewer common words than this prove nothing.
_MIN_COMMON_WORDS: Final = 2

_COMMON_WORDS: Final = {
    "en": "the of and to in is that for was on are with as by at from it be this have not or an which you",
    "de": "der die und das den von zu mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat",
    "fr": "le la les de des et à un une est dans que qui pour pas sur au du avec ce il elle sont par plus nous",
    "es": "el la los las de y que en un una es por con para del se al no lo como su más está son este",
    "it": "il la di che e un una è per non in con del della sono si dei le da gli al alla nel come più",
    "pt": "o a os as de e que do da em um uma é não para com por dos das se na no mais ao são",
    "nl": "de het een en van in is dat op te zijn met voor niet aan er ook als bij door naar wordt om dit",
    "sv": "och att det i en som är på av för med den till inte om har de ett vi kan från var ska",
    "da": "og at det i en som er på af for med den til ikke om har de et vi kan fra var skal der",
    "no": "og at det i en som er på av for med den til ikke om har de et vi kan fra var skal jeg",
    "fi": "ja on ei se että oli hän mutta ovat kun niin myös tai joka sen ole mitä voi kuin ovat",
    "pl": "i w na z się nie do to jest że o jak za od po przez dla są tym być ma jego które",
    "cs": "a v na se je že s z do o i to k ve pro za by jsou jako po od ale které není",
    "hu": "a az és hogy nem is egy van ez meg volt csak de már mint kell vagy lesz azt",
    "ro": "și de la în a cu pe nu că un o este din pentru mai care sunt se al ale",
    "tr": "ve bir bu da de için ile olarak çok en daha var gibi olan ne kadar sonra her",
}
_LANGUAGES_OF_WORD: Final[dict[str, list[str]]] = {}
for _language, _words in _COMMON_WORDS.items():
    for _word in _words.split():
        _LANGUAGES_OF_WORD.setdefault(_word, []).append(_language)


def detect_language(text: str, default: str = DEFAULT_LANGUAGE) -> str:
    """Return the code of a text's language.

    Scripts other than Latin decide by their letters, Latin script by the commonest words of sixteen languages.

    Parameters
    ----------
    text
        The text; its first 2000 characters count.
    default
        What to return for a text that is too short to tell, or has no letters.

    Examples
    --------
    >>> detect_language("Die Kaution ist bis zum Ende des Monats zu zahlen."), detect_language("灯塔建于一八六二年。")
    ('de', 'zh')
    >>> detect_language("OK", default="fr")
    'fr'
    """
    sample = text[:_SAMPLE_CHARACTERS]
    words = _LATIN_WORD.findall(sample)
    foreign = _NON_LATIN.findall(sample)
    letters = sum(map(len, words))
    if foreign and 3 * len(foreign) >= letters:
        return _find_script_language(foreign)
    counts: Counter[str] = Counter()
    for word in words:
        counts.update(_LANGUAGES_OF_WORD.get(word.lower(), ()))
    if not counts:
        return default
    language, common = counts.most_common(1)[0]
    if common < _MIN_COMMON_WORDS or counts[default] == common:
        return default
    return language


def _find_script_language(letters: list[str]) -> str:
    counts: Counter[str] = Counter()
    for letter, number in Counter(letters).items():
        for first, last, language in _SCRIPTS:
            if first <= letter <= last:
                counts[language] += number
                break
    # Japanese is written in kana and in Chinese characters.
    if 10 * counts["ja"] >= counts["zh"] > 0:
        return "ja" if counts["ja"] else "zh"
    return counts.most_common(1)[0][0]
