"""Documents split into windows that fit into a model's context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keywise.documents.files import Source

if TYPE_CHECKING:
    from keywise.documents.prefill import PrefilledContext
    from keywise.documents.text_index import TextIndex

OVERLAP_SENTENCES: Final = 3


@dataclass(frozen=True)
class Excerpt:
    """Consecutive sentences of a source.

    Attributes
    ----------
    source
        Their text, under the source's name.
    start
        Character of the source at which it begins.
    """

    source: Source
    start: int


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a document that fits into a model's context, prefilled.

    Attributes
    ----------
    sources
        Its texts.
    starts
        By the name of each text, the character of the source at which it begins.
    context
        Its keys and values.
    text_index
        Its words.
    """

    sources: Sequence[Source]
    starts: Mapping[str, int]
    context: PrefilledContext
    text_index: TextIndex


def split_sources(
    sources: Sequence[Source], count_tokens: Callable[[str], int], max_tokens: int
) -> list[list[Excerpt]]:
    """Split sources into windows of whole sentences.

    Each window begins with the last three sentences of the one before.

    Parameters
    ----------
    sources
        The texts, in order.
    count_tokens
        Returns the number of tokens of a text.
    max_tokens
        Most tokens of a window. A sentence that is longer is a window of its own.

    Examples
    --------
    >>> note = Source("note", "One two. Three. Four five six. Seven.")
    >>> windows = split_sources([note], lambda text: len(text.split()), 6)
    >>> [[excerpt.source.text for excerpt in window] for window in windows]
    [['One two. Three.'], ['Three. Four five six.'], ['Four five six. Seven.']]
    """
    sentences = [(number, start, end) for number, source in enumerate(sources) for start, end in source.sentences]
    # One token more for what separates a sentence from the next.
    sizes = [count_tokens(sources[number].text[start:end]) + 1 for number, start, end in sentences]
    gaps = [_count_gap(sources, sentences, number, count_tokens) for number in range(len(sentences))]
    windows: list[list[Excerpt]] = []
    first = 0
    while first < len(sentences):
        last = first + 1
        total_tokens = sizes[first]
        while last < len(sentences) and total_tokens + gaps[last] + sizes[last] <= max_tokens:
            total_tokens += gaps[last] + sizes[last]
            last += 1
        windows.append(_cut_excerpts(sources, sentences[first:last]))
        if last == len(sentences):
            break
        first = max(last - OVERLAP_SENTENCES, first + 1)
    return windows


def _count_gap(
    sources: Sequence[Source],
    sentences: Sequence[tuple[int, int, int]],
    number: int,
    count_tokens: Callable[[str], int],
) -> int:
    """Return the number of tokens between a sentence and the one before it, such as blank lines and ruled lines."""
    source, start, _ = sentences[number]
    previous_source, _, previous_end = sentences[number - 1] if number else (-1, 0, 0)
    if source != previous_source or start - previous_end <= 1:
        return 0
    return count_tokens(sources[source].text[previous_end:start])


def _cut_excerpts(sources: Sequence[Source], sentences: Sequence[tuple[int, int, int]]) -> list[Excerpt]:
    excerpts: list[Excerpt] = []
    for number in dict.fromkeys(number for number, _, _ in sentences):
        spans = [(start, end) for source, start, end in sentences if source == number]
        start = min(start for start, _ in spans)
        end = max(end for _, end in spans)
        excerpts.append(Excerpt(sources[number].cut(start, end), start))
    return excerpts
