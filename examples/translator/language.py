"""Sentence pairs of English and an invented language, with the true alignment of their words.

The invented language puts the verb last and the object before it, adjectives and numbers after their noun, and
postpositions after the noun phrase. Particles mark subject, object, plural, possession and the past.
"""

from __future__ import annotations

import random
from typing import NamedTuple

NOUNS = [
    "dog",
    "cat",
    "horse",
    "bird",
    "fish",
    "child",
    "farmer",
    "doctor",
    "sister",
    "brother",
    "teacher",
    "baker",
    "house",
    "boat",
    "tree",
    "river",
    "road",
    "lamp",
    "letter",
    "book",
    "apple",
    "stone",
    "field",
    "bridge",
    "tower",
    "garden",
    "window",
    "table",
    "coat",
    "ring",
]
ADJECTIVES = ["old", "small", "red", "green", "white", "black", "heavy", "quiet", "young", "deep", "bright", "cold"]
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine"]
VERBS = {
    "see": ("sees", "saw"),
    "find": ("finds", "found"),
    "take": ("takes", "took"),
    "bring": ("brings", "brought"),
    "know": ("knows", "knew"),
    "draw": ("draws", "drew"),
    "hide": ("hides", "hid"),
    "break": ("breaks", "broke"),
    "sell": ("sells", "sold"),
    "keep": ("keeps", "kept"),
    "leave": ("leaves", "left"),
    "hold": ("holds", "held"),
}
"""The plural of the present, with its singular and the past."""
PREPOSITIONS = ["near", "behind", "under", "beside", "above"]
ADVERBS = ["today", "yesterday", "often", "never", "slowly", "again"]
IRREGULAR_PLURALS = {"child": "children", "fish": "fishes"}
SUBJECT, OBJECT, PLURAL, DEFINITE, OWN, PAST = "ga", "wo", "mi", "ta", "no", "shu"


class Pair(NamedTuple):
    """A sentence and its translation.

    Attributes
    ----------
    source, target
        Words.
    alignment
        For each target word, the position of the source word that it comes from.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    alignment: tuple[int, ...]


def invent_words() -> dict[str, str]:
    """Return the invented word for each English word of a dictionary."""
    generator = random.Random(17)
    syllables = [consonant + vowel for consonant in "bdfhjklnprtvz" for vowel in "aeiou"]
    english = [*NOUNS, *ADJECTIVES, *NUMBERS, *VERBS, *PREPOSITIONS, *ADVERBS]
    invented: list[str] = []
    while len(invented) < len(english):
        word = "".join(generator.choices(syllables, k=2))
        if word not in invented:
            invented.append(word)
    return dict(zip(english, invented, strict=True))


DICTIONARY = invent_words()
SOURCE_WORDS = sorted(
    {
        *DICTIONARY,
        *(form for forms in VERBS.values() for form in forms),
        *(IRREGULAR_PLURALS.get(noun, f"{noun}s") for noun in NOUNS),
        "the",
        "my",
    }
)
TARGET_WORDS = sorted({*DICTIONARY.values(), SUBJECT, OBJECT, PLURAL, DEFINITE, OWN, PAST})

Links = list[tuple[str, int]]
"""Target words with the position of their source word."""


def draw_noun_phrase(generator: random.Random, source: list[str], particle: str | None) -> Links:
    """Append a noun phrase to a source sentence and return its translation."""
    is_plural = generator.random() < 0.35
    determiner = generator.choice(NUMBERS) if is_plural else generator.choice(("the", "my"))
    adjectives = generator.sample(ADJECTIVES, generator.choice((0, 0, 1, 1, 2)))
    noun = generator.choice(NOUNS)
    first = len(source)
    source += [determiner, *adjectives, IRREGULAR_PLURALS.get(noun, f"{noun}s") if is_plural else noun]
    noun_position = len(source) - 1
    links = [(DICTIONARY[noun], noun_position)]
    if is_plural:
        links.append((PLURAL, noun_position))
    links += [(DICTIONARY[adjective], first + 1 + number) for number, adjective in enumerate(adjectives)]
    if is_plural:
        links.append((DICTIONARY[determiner], first))
    else:
        links.append((DEFINITE if determiner == "the" else OWN, first))
    if particle is not None:
        links.append((particle, noun_position))
    return links


def draw_pair(generator: random.Random) -> Pair:
    """Draw a sentence pair."""
    source: list[str] = []
    adverb: Links = []
    if generator.random() < 0.5:
        word = generator.choice(ADVERBS)
        adverb = [(DICTIONARY[word], len(source))]
        source.append(word)
    subject = draw_noun_phrase(generator, source, SUBJECT)
    base = generator.choice(list(VERBS))
    singular, past = VERBS[base]
    verb = [(DICTIONARY[base], len(source))]
    is_plural = any(word == PLURAL for word, _ in subject)
    form = generator.choice((past, base if is_plural else singular))
    if form == past:
        verb.append((PAST, len(source)))
    source.append(form)
    place: Links = []
    target_object = draw_noun_phrase(generator, source, OBJECT)
    if generator.random() < 0.5:
        preposition = generator.choice(PREPOSITIONS)
        position = len(source)
        source.append(preposition)
        place = [*draw_noun_phrase(generator, source, None), (DICTIONARY[preposition], position)]
    target, alignment = zip(*subject, *place, *target_object, *adverb, *verb, strict=True)
    return Pair(tuple(source), target, alignment)


def draw_pairs(count: int, seed: int) -> list[Pair]:
    """Draw sentence pairs of which no two are the same.

    Parameters
    ----------
    count : int
        Number of pairs.
    seed : int
        Seed of the random numbers.
    """
    generator = random.Random(seed)
    pairs: dict[tuple[str, ...], Pair] = {}
    while len(pairs) < count:
        pair = draw_pair(generator)
        pairs.setdefault(pair.source, pair)
    return list(pairs.values())
