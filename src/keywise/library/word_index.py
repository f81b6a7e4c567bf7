"""The full-text index of a library: made with it, and updated after rows were added.

Lance's index splits words by ICU's dictionaries, which cover scripts without spaces, and reduces English words to their
stems. Rows that were added after its last update are searched without it and count as the others do.
"""

from __future__ import annotations

from typing import Any, Final

from keywise.library.dataset import open_dataset, verify_files
from keywise.library.schema import TEXT
from keywise.library.transactions import lock_writers

WORD_INDEX: Final = "words"
INDEX_OPTIONS: Final = {
    "index_type": "INVERTED",
    "base_tokenizer": "icu",
    "language": "English",
    "stem": True,
    "remove_stop_words": False,
    "ascii_folding": True,
    "with_position": False,
}

MIN_UNINDEXED_ROWS: Final = 1000
UNINDEXED_SHARE: Final = 0.05
MAX_UNINDEXED_ROWS: Final = 10_000
"""The index is updated when more than this share of the rows is not in it, within these limits."""


def create_word_index(path: str) -> None:
    """Create the index of a library that has none."""
    if has_word_index(open_dataset(path)):
        return
    with lock_writers(path):
        dataset = open_dataset(path)
        if not has_word_index(dataset):
            verify_files(path, dataset)
            dataset.create_scalar_index(TEXT, name=WORD_INDEX, **INDEX_OPTIONS)


def has_word_index(dataset: Any) -> bool:
    """Return whether a dataset has the index."""
    return any(index.name == WORD_INDEX for index in dataset.describe_indices())


def update_word_index(path: str) -> bool:
    """Add the rows that are not in the index to it, if there are many; return whether it was changed."""
    dataset = open_dataset(path)
    least = max(MIN_UNINDEXED_ROWS, int(UNINDEXED_SHARE * dataset.count_rows()))
    if _count_unindexed(dataset) <= min(least, MAX_UNINDEXED_ROWS):
        return False
    verify_files(path, dataset)
    with lock_writers(path):
        open_dataset(path).optimize.optimize_indices(index_names=[WORD_INDEX])
    return True


def _count_unindexed(dataset: Any) -> int:
    return int(dataset.stats.index_stats(WORD_INDEX)["num_unindexed_rows"])
