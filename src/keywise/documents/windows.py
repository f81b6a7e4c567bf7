"""Windows of a document: runs of sentences that fit into a model's context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.rendering import separate_sentences

if TYPE_CHECKING:
    from keywise.documents.blocks import Quote
    from keywise.documents.files import Source
    from keywise.documents.prefill import PrefilledContext
    from keywise.util.progress import Progress

OVERLAP_SENTENCES: Final = 3


@dataclass(frozen=True, eq=False)
class Window:
    """Sentences of a document that a model reads together.

    Attributes
    ----------
    sentences
        int array [sentences], their numbers in the document, ascending.
    context
        Their keys and values.
    """

    sentences: NDArray[np.intp]
    context: PrefilledContext


def prefill_windows(windows: Sequence[Window], progress: Progress | None) -> Iterator[Window]:
    """Prefill windows one after the other, with one count of tokens over all, and yield each when it is done.

    Parameters
    ----------
    windows
        The windows.
    progress
        Called with the number of tokens done and of all.
    """
    total_tokens = sum(len(window.context.document.token_ids) for window in windows)
    done_tokens = 0
    for window in windows:
        end_tokens = done_tokens + len(window.context.document.token_ids)
        report = None if progress is None else _shift_progress(progress, done_tokens, end_tokens, total_tokens)
        window.context.prefill(report)
        done_tokens = end_tokens
        yield window
        if progress is not None:
            progress(done_tokens, total_tokens)


def split_sentences(sizes_tokens: Sequence[int], max_tokens: int) -> list[NDArray[np.intp]]:
    """Split a document into windows of whole sentences and of even length.

    Each window begins with the last three sentences of the one before.

    Parameters
    ----------
    sizes_tokens
        Length of each sentence.
    max_tokens
        Most tokens of a window. A sentence that is longer is a window of its own.

    Returns
    -------
    list of int arrays
        The numbers of each window's sentences.

    Examples
    --------
    >>> [window.tolist() for window in split_sentences([2, 1, 3, 1, 2, 2], 8)]
    [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    """
    ends = np.cumsum(sizes_tokens)
    total_tokens = int(ends[-1]) if len(ends) else 0
    even_tokens = max_tokens
    windows = _fill_windows(sizes_tokens, max_tokens)
    # The same number of windows, each as short as that allows, so that no window has only a few sentences.
    low = total_tokens // max(len(windows), 1)
    while low < even_tokens:
        middle = (low + even_tokens) // 2
        if len(_fill_windows(sizes_tokens, middle)) > len(windows):
            low = middle + 1
        else:
            even_tokens = middle
    return _fill_windows(sizes_tokens, even_tokens)


def _fill_windows(sizes_tokens: Sequence[int], max_tokens: int) -> list[NDArray[np.intp]]:
    windows: list[NDArray[np.intp]] = []
    first = 0
    while first < len(sizes_tokens):
        last = first + 1
        total_tokens = sizes_tokens[first]
        while last < len(sizes_tokens) and total_tokens + sizes_tokens[last] <= max_tokens:
            total_tokens += sizes_tokens[last]
            last += 1
        windows.append(np.arange(first, last))
        if last == len(sizes_tokens):
            break
        first = max(last - OVERLAP_SENTENCES, first + 1)
    return windows


def count_sentence_tokens(sources: Sequence[Source], count_tokens: Callable[[str], int]) -> list[int]:
    """Return the number of tokens of each sentence, with what separates it from the one before.

    Parameters
    ----------
    sources
        The texts, in order.
    count_tokens
        Returns the number of tokens of a text.
    """
    sizes_tokens: list[int] = []
    for source in sources:
        previous: Quote | None = None
        for quote in source.quotes:
            separator = "" if previous is None else separate_sentences(source, previous, quote)
            # Separately encoded, two sentences may have one token more or less than together.
            sizes_tokens.append(count_tokens(separator + quote.text) + 1)
            previous = quote
    return sizes_tokens


def cut_sources(sources: Sequence[Source], sentences: NDArray[np.intp]) -> list[Source]:
    """Return the parts of sources with some of their sentences, a part for every run of them.

    Parameters
    ----------
    sources
        The texts; their sentences are numbered in order.
    sentences
        Numbers of sentences, ascending.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.documents import Source
    >>> [part.text for part in cut_sources([Source("note", "One. Two. Three. Four.")], np.array([0, 1, 3]))]
    ['One. Two.', 'Four.']
    """
    parts: list[Source] = []
    first_number = 0
    for source in sources:
        count = len(source.quotes)
        own = sentences[(sentences >= first_number) & (sentences < first_number + count)] - first_number
        runs = np.split(own, np.flatnonzero(np.diff(own) > 1) + 1) if own.size else []
        parts += [source.cut(source.quotes[run[0]].begin, source.quotes[run[-1]].end) for run in runs]
        first_number += count
    return parts


def _shift_progress(progress: Progress, done_tokens: int, end_tokens: int, total_tokens: int) -> Progress:
    """Return a function that reports the tokens of a window among those of all windows."""

    def report(window_tokens: int, _: int) -> None:
        # The template's tokens are computed with each window, and are not counted.
        progress(min(done_tokens + window_tokens, end_tokens), total_tokens)

    return report
