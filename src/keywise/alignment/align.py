"""Alignment of a source and its target by a model's attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from keywise.alignment.encoding import NO_WORD, EncodedPair, encode_pair, is_causal_model
from keywise.alignment.head_ranking import rank_heads
from keywise.alignment.heads import (
    BACKWARD,
    BOTH,
    FORWARD,
    INPUT,
    OUTPUT,
    AlignmentHead,
    AlignmentHeads,
    check_heads,
    find_tuned_heads,
)
from keywise.alignment.links import (
    SYMMETRISATIONS,
    Matrix,
    list_links,
    score_words,
    select_links,
)
from keywise.alignment.links import (
    symmetrise as combine_links,
)
from keywise.alignment.result import Alignment
from keywise.alignment.word_weights import PACKED_TOKENS, record_packed_weights, record_word_weights
from keywise.alignment.words import SPACE, Words, split_words
from keywise.errors import ModelError, OptionError
from keywise.hf.plugin import use_temporarily
from keywise.models.loading import LoadedModel

RANKED_WORDS: Final = 64
"""Words of each text from which untuned heads are ranked."""


class PairReader:
    """Read pairs of texts with a model, in one direction or both.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        An encoder-decoder for text, or a causal language model.
    tokenizer : transformers tokenizer
        Its tokenizer; one with several languages has source and target language set.
    languages : (str, str), optional
        Names of the languages, for the template of a causal language model.
    template : str, optional
        See `keywise.alignment.encoding.encode_pair`.
    reverse : True or (model, tokenizer), optional
        How the target is read as a source: by the same causal language model, or by another translation model.

    Raises
    ------
    ModelError
        ``reverse=True`` with an encoder-decoder.
    OptionError
        `languages` are not two names.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        languages: tuple[str, str] | None = None,
        template: str | None = None,
        reverse: Any = None,
    ) -> None:
        if languages is not None and (isinstance(languages, str) or len(languages) != 2):
            raise OptionError("languages", "must be two names, such as ('English', 'French')", got=languages)
        self.model = model
        self.languages = languages
        self.template = template
        self._forward = (model, tokenizer, languages)
        self._backward: tuple[Any, Any, Any] | None = None
        if reverse is True:
            if not is_causal_model(model):
                raise ModelError(
                    "reverse",
                    "must be a model and its tokenizer for an encoder-decoder",
                    remedy="pass the model that translates in the other direction",
                )
            self._backward = (model, tokenizer, None if languages is None else languages[::-1])
        elif reverse not in (None, False):
            other_model, other_tokenizer = reverse
            self._backward = (other_model, other_tokenizer, None if languages is None else languages[::-1])

    @property
    def goes_both_ways(self) -> bool:
        """Whether pairs are also read from target to source."""
        return self._backward is not None

    def find_known_heads(self, heads: Any) -> AlignmentHeads | None:
        """Return the heads that were passed, or those that the model names, or None.

        Parameters
        ----------
        heads : AlignmentHeads, iterable or None
            As in `align`; None for the ``alignment_heads`` of the model's generation config.

        Raises
        ------
        OptionError
            A head is out of range, or there are none for the other direction.
        """
        argument = "heads"
        if heads is None:
            argument, heads = "alignment_heads", getattr(self.model.generation_config, "alignment_heads", None)
        if heads is None:
            return None
        backward_sizes = None if self._backward is None else get_sizes(self._backward[0])
        known = check_heads(argument, heads, get_sizes(self.model), backward_sizes)
        if self.goes_both_ways and not known.backward:
            raise OptionError("heads", "must have backward heads for reverse", remedy="tune them in both directions")
        return known

    def encode(self, source: Words, target: Words) -> list[EncodedPair]:
        """Return the tokens of a pair, in one direction or both.

        Parameters
        ----------
        source, target : Words
            The words.
        """
        model, tokenizer, languages = self._forward
        pairs = [encode_pair(model, tokenizer, source, target, languages=languages, template=self.template)]
        if self._backward is not None:
            model, tokenizer, languages = self._backward
            pairs.append(encode_pair(model, tokenizer, target, source, languages=languages, template=self.template))
        return pairs

    def read(self, source: Words, target: Words, heads: AlignmentHeads) -> tuple[Matrix, Matrix | None]:
        """Return the weights of a pair's words in each direction.

        Parameters
        ----------
        source, target : Words
            The words.
        heads : AlignmentHeads
            The heads of each direction.

        Returns
        -------
        forward : float32 array [heads, target words, source words]
        backward : float32 array [heads, source words, target words], or None
        """
        encoded = self.encode(source, target)
        packed = self._read_packed(source, target, encoded, heads)
        if packed is not None:
            return packed[0], packed[1]
        counts = {"source_words": len(source.spans), "target_words": len(target.spans)}
        with use_temporarily(self.model):
            forward = record_word_weights(self.model, encoded[0], heads.forward, **counts)
        if self._backward is None:
            return forward, None
        counts = {"source_words": len(target.spans), "target_words": len(source.spans)}
        other = self._backward[0]
        with use_temporarily(other):
            return forward, record_word_weights(other, encoded[1], heads.backward, **counts)

    def _read_packed(
        self, source: Words, target: Words, encoded: list[EncodedPair], heads: AlignmentHeads
    ) -> list[Matrix] | None:
        """Read both directions in one pass, where one model reads both and they are short; None otherwise."""
        is_one_model = self._backward is not None and self._backward[0] is self.model and is_causal_model(self.model)
        if not is_one_model or sum(len(pair.decoder_ids) for pair in encoded) > PACKED_TOKENS:
            return None
        words = [(len(source.spans), len(target.spans)), (len(target.spans), len(source.spans))]
        with use_temporarily(self.model):
            return record_packed_weights(self.model, encoded, [heads.forward, heads.backward], words)

    def list_all_heads(self) -> AlignmentHeads:
        """Return all heads and rows of each direction."""
        backward = () if self._backward is None else _list_heads(self._backward[0])
        return AlignmentHeads(_list_heads(self.model), backward)


def get_sizes(model: Any) -> tuple[int, int]:
    """Return the number of layers whose attention leads from target to source, and of their query heads.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        An encoder-decoder or a causal language model.
    """
    config = model.config if model.config.is_encoder_decoder else model.config.get_text_config()
    layers = [getattr(config, name, None) for name in ("decoder_layers", "num_decoder_layers", "num_hidden_layers")]
    heads = [getattr(config, name, None) for name in ("decoder_attention_heads", "num_attention_heads")]
    return next(int(count) for count in layers if count), next(int(count) for count in heads if count)


def find_heads(loaded: LoadedModel) -> AlignmentHeads | None:
    """Return the heads tuned for a loaded model, or None.

    Parameters
    ----------
    loaded : keywise.models.LoadedModel
        The model.

    Raises
    ------
    FormatError
        The file of tuned heads is damaged.

    Examples
    --------
    >>> from keywise.alignment import find_heads
    >>> find_heads(load_model("Qwen2.5-0.5B-Instruct.gguf")).is_tuned  # doctest: +SKIP
    True
    """
    return find_tuned_heads(loaded.fingerprint())


def align(
    model: Any,
    tokenizer: Any,
    source: str | Sequence[str],
    target: str | Sequence[str],
    *,
    heads: AlignmentHeads | Iterable[AlignmentHead | Sequence[int]] | None = None,
    languages: tuple[str, str] | None = None,
    reverse: Any = None,
    symmetrise: str = "score",
    words: str = SPACE,
    template: str | None = None,
) -> Alignment:
    """Align the words of a target with those of its source by a model's attention.

    An encoder-decoder's cross-attention is read, or the attention of a causal language model from the target to the
    source, which stands before it in a template. Only the target's rows of the heads are recorded, in memory linear in
    rows and words.

    Chen et al., "Accurate Word Alignment Induction from Neural Machine Translation" (2020), compares the two rows that
    may belong to a token.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        An encoder-decoder for text, or a causal language model.
    tokenizer : transformers tokenizer
        Its tokenizer; one with several languages has source and target language set.
    source, target : str or sequence of str
        Texts, or their words.
    heads : AlignmentHeads, or iterable of AlignmentHead or (int, int), optional
        The heads to read, as pairs of a layer and a head; `find_heads` returns tuned ones. Default: the
        ``alignment_heads`` of the model's generation config, else all heads are ranked on this pair without labels,
        and the result says that they are untuned.
    languages : (str, str), optional
        Names of the languages, such as ``("English", "French")``, for the template of a causal language model, or
        their codes for a tokenizer with several languages.
    reverse : True or (model, tokenizer), optional
        Also read the target as source: True for the same causal language model, or a model that translates in the
        other direction, whose heads are `heads.backward`.
    symmetrise : str
        How two directions are combined: ``"score"`` selects links by one score of both; ``"intersection"``,
        ``"union"``, ``"grow-diag"`` and ``"grow-diag-final"`` combine the links of each.
    words : str
        How texts are split: ``"space"`` or ``"unicode"``; see `keywise.alignment.words.split_words`.
    template : str, optional
        What a causal language model reads, with the fields ``{source_language} {source} {target_language} {target}``.

    Returns
    -------
    Alignment

    Raises
    ------
    OptionError
        A text is empty or too long, a head is out of range, or an option is unknown.
    ModelError
        The model has no attention from target to source, or keywise does not serve it.

    Examples
    --------
    >>> from keywise.alignment import align, find_heads
    >>> from keywise.models import load_model
    >>> loaded = load_model("Qwen2.5-0.5B-Instruct.gguf")  # doctest: +SKIP
    >>> names = ("English", "French")
    >>> heads = find_heads(loaded)  # doctest: +SKIP
    >>> align(loaded.model, loaded.tokenizer, "the red house", "la maison rouge",
    ...       heads=heads, languages=names, reverse=True).pharaoh()  # doctest: +SKIP
    '0-0 1-2 2-1'
    """
    reader = PairReader(model, tokenizer, languages=languages, template=template, reverse=reverse)
    check_symmetrisation(symmetrise, goes_both_ways=reader.goes_both_ways)
    source_words, target_words = split_words("source", source, words), split_words("target", target, words)
    chosen = choose_heads(reader, source_words, target_words, heads)
    weights = reader.read(source_words, target_words, chosen)
    return make_alignment(reader, source_words, target_words, chosen, weights, symmetrise=symmetrise)


def check_symmetrisation(symmetrise: str, *, goes_both_ways: bool) -> None:
    """Raise an error unless two directions can be combined so.

    Parameters
    ----------
    symmetrise : str
        As in `align`.
    goes_both_ways : bool
        Whether there are two directions.

    Raises
    ------
    OptionError
        The way is unknown, or there is one direction only.
    """
    if symmetrise not in SYMMETRISATIONS:
        raise OptionError("symmetrise", f"must be one of {', '.join(SYMMETRISATIONS)}", got=symmetrise)
    if symmetrise != "score" and not goes_both_ways:
        rule = "must be 'score' where one direction is read"
        raise OptionError("symmetrise", rule, got=symmetrise, remedy="read the other direction as well")


def list_candidates(reader: PairReader) -> AlignmentHeads:
    """Return the heads that are ranked without labels.

    In one direction of an encoder-decoder, these are the rows of the tokens themselves: Chen et al. (2020) find that
    they align better than the rows that predict the tokens. Agreement of two directions decides by itself.

    Parameters
    ----------
    reader : PairReader
        The model, or two.
    """
    heads = reader.list_all_heads()
    if reader.goes_both_ways or not reader.model.config.is_encoder_decoder:
        return heads
    return AlignmentHeads(tuple(head for head in heads.forward if head.row == INPUT))


def choose_heads(
    reader: PairReader,
    source: Words,
    target: Words,
    heads: AlignmentHeads | Iterable[AlignmentHead | Sequence[int]] | None,
) -> AlignmentHeads:
    """Return the heads to read: those that were passed or that the model names, else the best of a ranking.

    Parameters
    ----------
    reader : PairReader
        The model, or two.
    source, target : Words
        The pair on which heads are ranked where there are none.
    heads : AlignmentHeads, iterable or None
        As in `align`.

    Raises
    ------
    OptionError
        A head is out of range, or there are none for the other direction.
    """
    known = reader.find_known_heads(heads)
    if known is not None:
        return known
    all_heads = list_candidates(reader)
    first_words = [Words(each.text, each.spans[:RANKED_WORDS]) for each in (source, target)]
    return rank_heads([reader.read(first_words[0], first_words[1], all_heads)], all_heads)


def make_alignment(
    reader: PairReader,
    source: Words,
    target: Words,
    heads: AlignmentHeads,
    weights: tuple[Matrix, Matrix | None],
    *,
    symmetrise: str = "score",
) -> Alignment:
    """Return the alignment of a pair from its weights.

    Parameters
    ----------
    reader : PairReader
        The model, or two.
    source, target : Words
        The words.
    heads : AlignmentHeads
        The heads of the weights.
    weights : (float32 array, float32 array or None)
        From `PairReader.read`.
    symmetrise : str
        As in `align`.
    """
    forward, backward = weights
    if backward is None or symmetrise == "score":
        rule = heads.get_rule(FORWARD if backward is None else BOTH)
        scores = score_words(forward, backward, rule)
        is_link = select_links(scores, rule.threshold, rule.mutual_threshold)
    else:
        rules = heads.get_rule(FORWARD), heads.get_rule(BACKWARD)
        each = [score_words(forward, None, rules[0]), score_words(None, backward, rules[1])]
        links = [
            select_links(scores, rule.threshold, rule.mutual_threshold)
            for scores, rule in zip(each, rules, strict=True)
        ]
        scores = np.asarray((each[0] + each[1]) / 2, np.float32)
        is_link = combine_links(links[0], links[1], symmetrise)
    encoded = reader.encode(source, target)[0]
    dropped_source = _find_dropped(encoded.key_words, len(source.spans))
    dropped_target = _find_dropped(encoded.query_words, len(target.spans))
    is_link[:, list(dropped_source)] = False
    is_link[list(dropped_target)] = False
    mean = np.asarray(forward.mean(0), np.float32)
    return Alignment(
        source=source.words,
        target=target.words,
        weights=mean,
        scores=scores,
        links=list_links(is_link),
        null=np.asarray(np.maximum(1 - mean.sum(1), 0), np.float32),
        heads=heads,
        dropped_source=dropped_source,
        dropped_target=dropped_target,
    )


def _find_dropped(owners: Sequence[int], words: int) -> tuple[int, ...]:
    present = set(owners) - {NO_WORD}
    return tuple(number for number in range(words) if number not in present)


def _list_heads(model: Any) -> tuple[AlignmentHead, ...]:
    layers, per_layer = get_sizes(model)
    rows = (INPUT, OUTPUT)
    return tuple(
        AlignmentHead(layer, head, row)  # type: ignore[arg-type]  # one of the two
        for layer in range(layers)
        for head in range(per_layer)
        for row in rows
    )
