"""The documents that a library contains."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from keywise.errors import FormatError
from keywise.library.lance_errors import convert_lance_errors
from keywise.library.schema import read_encoder_id


def read_digests(path: str, dataset: Any) -> dict[str, str]:
    """Return the SHA-256 of each document's file, by its name.

    Parameters
    ----------
    path
        The library, for messages.
    dataset
        Its Lance dataset, whose files are verified; one with keys of the user's own has no documents.
    """
    if read_encoder_id(dataset.schema) is None:
        return {}
    with convert_lance_errors(path, "cannot be read"):
        table = dataset.scanner(columns=["document", "hash"], filter="sentence = 0").to_table()
    return dict(zip(table["document"].to_pylist(), table["hash"].to_pylist(), strict=True))


def match_documents(
    stored_names: Iterable[str], documents: Sequence[str | os.PathLike[str]], library_path: str
) -> list[str]:
    """Return the names of stored documents at some paths, or in folders at these paths.

    Parameters
    ----------
    stored_names
        Names of all documents in the library.
    documents
        Paths of documents and folders.
    library_path
        The library, for messages.

    Raises
    ------
    FormatError
        No stored document is at one of the paths.
    """
    stored_names = list(stored_names)
    matches: dict[str, None] = {}
    for document in documents:
        path = os.path.abspath(os.path.expanduser(os.fspath(document)))
        names = [name for name in stored_names if name == path or name.startswith(path + os.sep)]
        if not names:
            raise FormatError(
                "documents",
                f"must be in the library {library_path!r}",
                got=path,
                remedy="`keywise library list` shows its documents",
            )
        matches.update(dict.fromkeys(names))
    return list(matches)
