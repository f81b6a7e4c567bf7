"""Token ids of a source and its target for a model, and where their words lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from keywise.alignment.words import Words, encode_text, encode_words, find_special_tokens
from keywise.errors import ModelError, OptionError

NO_WORD: Final = -1
DEFAULT_LANGUAGES: Final = ("Source", "Translation")
DEFAULT_TEMPLATE: Final = "{source_language}: {source}\n{target_language}: {target}"
"""What a causal language model reads."""

_SOURCE, _TARGET = "{source}", "{target}"


@dataclass(frozen=True)
class EncodedPair:
    """The tokens of a pair of texts.

    Attributes
    ----------
    encoder_ids
        Tokens of the encoder; empty for a causal language model.
    decoder_ids
        Tokens of the decoder, or all tokens of a causal language model.
    key_words
        The source word of each key that the target's queries attend to, -1 for none.
    query_words
        The target word of each token of `decoder_ids`, -1 for none.
    """

    encoder_ids: tuple[int, ...]
    decoder_ids: tuple[int, ...]
    key_words: tuple[int, ...]
    query_words: tuple[int, ...]

    @property
    def first_query(self) -> int:
        """Position of the token in front of the target's first token."""
        return next(position for position, word in enumerate(self.query_words) if word != NO_WORD) - 1


def encode_pair(
    model: Any,
    tokenizer: Any,
    source: Words,
    target: Words,
    *,
    languages: tuple[str, str] | None = None,
    template: str | None = None,
) -> EncodedPair:
    """Return the tokens of a pair of texts for a model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        An encoder-decoder for text, or a causal language model.
    tokenizer : transformers tokenizer
        Its tokenizer.
    source, target : Words
        The words.
    languages : (str, str), optional
        Names of the two languages for the template of a causal language model, or their codes for a tokenizer with
        several languages.
    template : str, optional
        What a causal language model reads, with ``{source}`` before ``{target}``; default `DEFAULT_TEMPLATE`.

    Raises
    ------
    ModelError
        The model has neither cross-attention nor causal attention.
    OptionError
        The tokenizer drops every word of a text or does not know a language, a text is longer than the model's
        positions, or the template lacks a place.
    """
    start = encode_source(model, tokenizer, source, languages=languages, template=template)
    if model.config.is_encoder_decoder:
        with use_languages(tokenizer, languages):
            tokens = encode_words(tokenizer, target, is_target=True)
    else:
        tokens = encode_words(tokenizer, target)
    if not tokens.ids:
        raise OptionError("target", "must have a word that the tokenizer keeps; it drops all of them")
    pair = replace(
        start, decoder_ids=(*start.decoder_ids, *tokens.ids), query_words=(*start.query_words, *tokens.owners)
    )
    _check_lengths(model, pair, "source")
    return pair


@contextmanager
def use_languages(tokenizer: Any, languages: tuple[str, str] | None) -> Iterator[None]:
    """Set the languages of a tokenizer that has several inside the block; others have none to set.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        The tokenizer.
    languages : (str, str) or None
        Codes of the source and the target language, as the tokenizer writes them; None for those that are set.

    Raises
    ------
    OptionError
        The tokenizer does not know a language.
    """
    if languages is None or not hasattr(tokenizer, "src_lang"):
        yield
        return
    previous = tokenizer.src_lang, tokenizer.tgt_lang
    try:
        for name, language in zip(("src_lang", "tgt_lang"), languages, strict=True):
            _set_language(tokenizer, name, language)
        yield
    finally:
        tokenizer.src_lang, tokenizer.tgt_lang = previous


def _set_language(tokenizer: Any, name: str, language: str) -> None:
    known = [token for token in tokenizer.all_special_tokens if language in (token, token.strip("_"))]
    if not known:
        raise OptionError(
            "languages",
            f"must be codes that {type(tokenizer).__name__} knows",
            got=language,
            remedy=_list_codes(tokenizer),
        )
    setattr(tokenizer, name, language)


def _list_codes(tokenizer: Any) -> str:
    """Return some codes of a tokenizer, as advice."""
    codes = [token.strip("_") for token in tokenizer.all_special_tokens if not token.startswith("<")]
    return f"such as {', '.join(codes[:6])}" if codes else ""


def encode_source(
    model: Any,
    tokenizer: Any,
    source: Words,
    *,
    languages: tuple[str, str] | None = None,
    template: str | None = None,
    argument: str = "source",
) -> EncodedPair:
    """Return the tokens in front of a target that a model shall write; no query belongs to a word yet.

    Parameters
    ----------
    model, tokenizer, source, languages, template
        As in `encode_pair`.
    argument : str
        Name of the argument that holds the source, for errors.

    Raises
    ------
    ModelError, OptionError
        As in `encode_pair`.
    """
    if not model.config.is_encoder_decoder and not is_causal_model(model):
        raise ModelError(
            "model",
            f"must be an encoder-decoder or a causal language model, got {type(model).__name__}",
            remedy="its attention does not lead from a target to a source",
        )
    if model.config.is_encoder_decoder:
        with use_languages(tokenizer, languages):
            before, after = find_special_tokens(tokenizer)
            tokens = encode_words(tokenizer, source)
            prefix = list_decoder_prefix(model, tokenizer)
        encoder_ids = (*before, *tokens.ids, *after)
        decoder_ids = tuple(prefix)
        key_words = (*_no_words(before), *tokens.owners, *_no_words(after))
    else:
        opening, between = _encode_template(tokenizer, languages, template)
        tokens = encode_words(tokenizer, source)
        encoder_ids, decoder_ids = (), (*opening, *tokens.ids, *between)
        key_words = (*_no_words(opening), *tokens.owners)
    if not tokens.ids:
        raise OptionError(argument, "must have a word that the tokenizer keeps; it drops all of them")
    pair = EncodedPair(encoder_ids, decoder_ids, key_words, _no_words(decoder_ids))
    _check_lengths(model, pair, argument)
    return pair


def is_causal_model(model: Any) -> bool:
    """Return whether a model is a causal language model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model.
    """
    return not model.config.is_encoder_decoder and bool(model.can_generate())


def list_decoder_prefix(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens in front of the target's first token in an encoder-decoder's decoder.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        An encoder-decoder.
    tokenizer : transformers tokenizer
        Its tokenizer, with the target language set if it has several.

    Raises
    ------
    ModelError
        The model's configuration names no start token.
    """
    start = getattr(model.generation_config, "decoder_start_token_id", None)
    if start is None:
        start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise ModelError("model", "must have decoder_start_token_id in its configuration")
    return [int(start), *find_special_tokens(tokenizer, is_target=True)[0]]


def _encode_template(
    tokenizer: Any, languages: tuple[str, str] | None, template: str | None
) -> tuple[list[int], list[int]]:
    """Return the tokens in front of the source, and those between source and target."""
    text = DEFAULT_TEMPLATE if template is None else template
    if text.count(_SOURCE) != 1 or text.count(_TARGET) != 1 or text.index(_SOURCE) > text.index(_TARGET):
        raise OptionError("template", f"must have {_SOURCE} once and {_TARGET} once behind it", got=template)
    names = DEFAULT_LANGUAGES if languages is None else languages
    for place, name in zip(("{source_language}", "{target_language}"), names, strict=True):
        text = text.replace(place, name)
    introduction, rest = text.split(_SOURCE)
    # Words bring the space in front of them.
    introduction, middle = introduction.removesuffix(" "), rest.split(_TARGET)[0].removesuffix(" ")
    before = find_special_tokens(tokenizer)[0] + encode_text(tokenizer, introduction)
    between = encode_text(tokenizer, middle)
    if not between:
        raise OptionError("template", "must have text between source and target", got=template)
    return before, between


def _no_words(tokens: Sequence[int]) -> tuple[int, ...]:
    return (NO_WORD,) * len(tokens)


def _check_lengths(model: Any, pair: EncodedPair, source_argument: str) -> None:
    # T5 has no such limit; Whisper's has another name and is checked where it hears.
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return
    has_target = any(word != NO_WORD for word in pair.query_words)
    decoder_argument = "target" if has_target else source_argument
    for argument, ids in ((source_argument, pair.encoder_ids), (decoder_argument, pair.decoder_ids)):
        if len(ids) > limit:
            raise OptionError(
                argument,
                f"must be at most {limit:,} tokens long for {type(model).__name__}",
                got=len(ids),
                remedy="align it sentence by sentence",
            )
