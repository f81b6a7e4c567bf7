"""Read documents once with a language model, then ask them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from keywise.documents.document import RESERVED_TOKENS, Document
from keywise.documents.files import CONVERTED_SUFFIXES, Source, has_words, read_file
from keywise.documents.heads import MEANING, Heads, find, untuned
from keywise.documents.meaning import Encode
from keywise.documents.prefilled_context import Progress
from keywise.documents.prompt import Encoded, Prompt
from keywise.documents.store import SENTENCE_OF, PrefillStore, Store
from keywise.documents.windows import WindowedDocument, windows
from keywise.errors import DtypeError, FormatError, OptionError
from keywise.models.loading import LoadedModel, load_model
from keywise.util.progress import Status

Readable = str | os.PathLike[str] | Source


class Reader:
    """A language model that reads documents and answers questions about them.

    Parameters
    ----------
    model
        A folder with safetensors, a ``.gguf`` file, a hub id, or a model that `keywise.models.loading.load_model` gave.
        None takes the default; see `keywise.models.find_model`. It must have a chat template.
    cache_dir
        Where what was read is kept, and a GGUF model after its conversion; default is ``KEYWISE_CACHE_DIR``, else
        keywise's folder in the user's cache.
    heads
        The heads to read evidence from; default those tuned for this model (see `keywise tune`), else a guess.
    encode
        Gives vectors of texts, such as ``keywise.library.SentenceEncoder().encode``: then sentences are ranked by
        meaning too. Default: by attention and words.
    keep
        Whether to keep what is read on disk, and to use what is kept: the same text is not read again, and of a text
        whose end was changed only the end is. False neither writes nor looks at any document there.
    status
        Called with a line of text before every slow step of loading, and when something could not be kept.

    Raises
    ------
    ModelError
        If no model is found, or it cannot be loaded, has no chat template, or keywise cannot be its attention.
    OptionError
        If `encode` is given, but the heads were tuned without meaning.

    Examples
    --------
    >>> from keywise.documents import Reader
    >>> reader = Reader()  # doctest: +SKIP
    >>> reader.heads.tuned_on is not None  # doctest: +SKIP
    True
    >>> document = reader.read("The lamp was lit in 1862. Its keeper was Ann Low.")  # doctest: +SKIP
    >>> document.evidence("Who was the keeper?")[0].text  # doctest: +SKIP
    'Its keeper was Ann Low.'
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        heads: Heads | None = None,
        encode: Encode | None = None,
        keep: bool = True,
        status: Status | None = None,
    ) -> None:
        import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

        loaded = model if isinstance(model, LoadedModel) else load_model(model, cache_dir=cache_dir, status=status)
        keywise.hf.use(loaded.model)
        self._loaded, self._say = loaded, status or _quiet
        self._prompt = Prompt(loaded)
        self._shelf = None
        made = keywise.models.fingerprint(loaded.model, loaded.tokenizer, folder=loaded.folder, cache_dir=cache_dir)
        config = loaded.model.config.get_text_config()
        guess = untuned(config.num_hidden_layers, config.num_attention_heads)
        self.heads, self._encode = heads or find(made, cache_dir) or guess, encode
        if encode is not None and MEANING not in self.heads.powers:
            raise OptionError(
                f"encode is given, but the heads of model {loaded.name!r} were tuned without meaning; tune them again "
                "with `keywise tune --meaning`"
            )
        if keep:
            self._shelf = PrefillStore(Store(cache_dir, status), made, loaded.name, status)

    def read(
        self, source: Readable | Sequence[Readable], *, progress: Progress | None = None
    ) -> Document | WindowedDocument:
        """Read a text, a file or several of them, once for all questions.

        Parameters
        ----------
        source
            A `pathlib.Path` (or other path object) is a file. A `str` is the text itself, never a file: text from
            strangers must not open one. A `Source` is a file or text read before. A sequence of these is read as one
            document, in order. What is longer than the model's context is read in windows that overlap.
        progress
            Called after every chunk with the number of tokens read so far and the number of all.

        Raises
        ------
        FormatError
            If a file cannot be read, a text is empty, or a `str` is the path of a file.
        OptionError
            If a single sentence is longer than the model's context.

        Examples
        --------
        >>> from pathlib import Path
        >>> from keywise.documents import Reader
        >>> document = Reader().read(Path("report.pdf"))  # doctest: +SKIP
        """
        sources = _sources(source)
        encoded = self._encoded(sources)
        if self._room is None or len(encoded.ids) <= self._room:
            return self._document(sources, encoded, progress)
        cut = windows(sources, lambda text: len(self._prompt.text_ids(text)[0]), self._room)
        self._say(f"Longer than the model's context: read in {len(cut)} windows that overlap")
        pieces = ([piece.source for piece in window] for window in cut)
        return WindowedDocument(sources, zip((self._whole(some, progress) for some in pieces), cut, strict=True))

    def read_whole(self, source: Readable | Sequence[Readable], *, progress: Progress | None = None) -> Document:
        """Read as `read` does, but only what the model can read at once.

        Parameters
        ----------
        source, progress
            As in `read`.

        Raises
        ------
        FormatError
            As `read` does.
        OptionError
            If the document is longer than the model's context.

        Examples
        --------
        >>> from keywise.documents import Reader
        >>> document = Reader().read_whole("The lamp was lit in 1862.")  # doctest: +SKIP
        """
        return self._whole(_sources(source), progress)

    def _whole(self, sources: Sequence[Source], progress: Progress | None) -> Document:
        return self._document(sources, self._encoded(sources), progress)

    def _encoded(self, sources: Sequence[Source]) -> Encoded:
        """Give the tokens of texts, from disk where the same ones were read before."""
        text_sha256 = self._prompt.text_sha256(sources)
        found = self._shelf.whole(text_sha256) if self._shelf else None
        if found is None:
            return self._prompt.document(sources)
        sentence_of = found.extra[SENTENCE_OF]
        return Encoded(found.token_ids[-sentence_of.size :].tolist(), sentence_of, text_sha256, found)

    def _document(self, sources: Sequence[Source], encoded: Encoded, progress: Progress | None) -> Document:
        return Document(
            self._loaded,
            self._prompt,
            self.heads,
            sources,
            encoded,
            encode=self._encode,
            shelf=self._shelf,
            progress=progress,
        )

    @property
    def _room(self) -> int | None:
        """The most tokens that a document may have; None if the model does not say."""
        context: int | None = getattr(self._loaded.model.config.get_text_config(), "max_position_embeddings", None)
        return None if context is None else context - len(self._prompt.before_ids) - RESERVED_TOKENS


def _quiet(_line: str) -> None:
    """Take a status line when nobody wants to see it."""


def _sources(given: Readable | Sequence[Readable]) -> list[Source]:
    items = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not items:
        raise FormatError("source=[] names nothing to read; give at least one path or text")
    sources = [
        _source(item, "text" if len(items) == 1 else f"text {number}") for number, item in enumerate(items, start=1)
    ]
    names = [source.name for source in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise FormatError(f"source names {twice[0]!r} twice; evidence could not tell which one it means: name it once")
    return sources


def _source(item: Readable, name: str) -> Source:
    if isinstance(item, os.PathLike):
        return read_file(item)
    if not isinstance(item, str | Source):
        raise DtypeError(f"source={item!r} is neither a path nor a text; give a pathlib.Path, a str or a Source")
    if not has_words(item if isinstance(item, str) else item.text):
        raise FormatError(f"source={item!r} has no text in it; give a text, or a pathlib.Path for a file")
    if isinstance(item, Source):
        return item
    if _looks_like_path(item):
        raise FormatError(f"source={item!r} looks like a path, but a str is read as text; give pathlib.Path({item!r})")
    return Source(name, item)


def _looks_like_path(text: str) -> bool:
    if "\n" in text:
        return False
    suffix = os.path.splitext(text)[1].lower()
    named = os.sep in text or suffix in {*CONVERTED_SUFFIXES, ".txt", ".md", ".markdown"}
    return (named and len(text.split()) == 1) or os.path.exists(text)
