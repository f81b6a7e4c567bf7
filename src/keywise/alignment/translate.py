"""Translation that tells which source words each word of the result belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from keywise.alignment.align import PairReader, choose_heads, make_alignment
from keywise.alignment.encoding import NO_WORD, EncodedPair, encode_source, is_causal_model
from keywise.alignment.heads import INPUT, AlignmentHead, AlignmentHeads
from keywise.alignment.result import Alignment
from keywise.alignment.word_weights import Weights
from keywise.alignment.words import SPACE, Words, split_words
from keywise.errors import OptionError
from keywise.hf.generated_rows import group_heads, select_beams, stack_steps
from keywise.hf.plugin import use_temporarily
from keywise.hf.recording import record_stats
from keywise.hf.stats_spec import StatsSpec
from keywise.util.checks import check_int
from keywise.util.optional_imports import require_modules

MAX_NEW_TOKENS: Final = 256
# A causal language model would go on with another pair.
_STOP: Final = "\n"


@dataclass(frozen=True, eq=False)
class Translation:
    """A sentence and its translation.

    Attributes
    ----------
    source : str
        The sentence.
    text : str
        Its translation.
    alignment : Alignment or None
        Which source words each of its words belongs to; None for an empty translation.
    complete : bool
        False if the translation reached the largest number of tokens.

    Examples
    --------
    >>> from keywise.alignment import Translation
    >>> Translation("the house", "la maison", None, True).text
    'la maison'
    """

    source: str
    text: str
    alignment: Alignment | None
    complete: bool


def translate(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    heads: AlignmentHeads | Iterable[AlignmentHead | Sequence[int]] | None = None,
    languages: tuple[str, str] | None = None,
    num_beams: int = 1,
    max_new_tokens: int = MAX_NEW_TOKENS,
    words: str = SPACE,
    template: str | None = None,
    by_sentence: bool = True,
) -> Iterator[Translation]:
    """Translate a text sentence by sentence and align each sentence while it is written.

    The rows of the heads are recorded in the steps of the generation; with beams, those of the beam that wins. Nothing
    is read again, except the first sentence where heads have to be ranked.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        An encoder-decoder for text, or a causal language model.
    tokenizer : transformers tokenizer
        Its tokenizer.
    text : str
        The text.
    heads : AlignmentHeads, or iterable of AlignmentHead or (int, int), optional
        As in `keywise.alignment.align`. Untuned heads are ranked on the first sentence.
    languages : (str, str), optional
        As in `keywise.alignment.align`; a causal language model needs them, or a template. The first, if it is a code
        of two letters, tells how sentences end.
    num_beams : int
        Beams of the search.
    max_new_tokens : int
        Longest translation of a sentence.
    words : str
        How texts are split into words: ``"space"`` or ``"unicode"``.
    template : str, optional
        As in `keywise.alignment.align`.
    by_sentence : bool
        Whether the text is split into sentences; otherwise it is one.

    Yields
    ------
    Translation
        One for each sentence, as soon as it is written.

    Raises
    ------
    OptionError
        The text is empty, a sentence is too long, a head is out of range, or an option cannot be used.
    ModelError
        The model has no attention from target to source, or keywise does not serve it.

    Examples
    --------
    >>> from keywise.alignment import translate
    >>> for sentence in translate(model, tokenizer, "The house is red. It is old."):  # doctest: +SKIP
    ...     print(sentence.text, sentence.alignment.pharaoh())
    La maison est rouge. 0-0 1-1 2-2 3-3
    Elle est vieille. 0-0 1-1 2-2
    """
    check_int("num_beams", num_beams, minimum=1)
    check_int("max_new_tokens", max_new_tokens, minimum=1)
    split_words("text", text, words)  # raises for an empty text before anything is written
    reader = PairReader(model, tokenizer, languages=languages, template=template)
    if languages is None and template is None and is_causal_model(model):
        rule = "must be given for a causal language model, which is not made for one pair of languages"
        raise OptionError("languages", rule, remedy="name both, such as English and French")
    options = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "do_sample": False}
    return _translate(reader, tokenizer, text, heads=heads, rule=words, options=options, by_sentence=by_sentence)


def _translate(
    reader: PairReader,
    tokenizer: Any,
    text: str,
    *,
    heads: Any,
    rule: str,
    options: dict[str, Any],
    by_sentence: bool,
) -> Iterator[Translation]:
    language = reader.languages[0] if reader.languages is not None else ""
    known = reader.find_known_heads(heads)
    for sentence in split_sentences(text, language) if by_sentence else [text.strip()]:
        source = split_words("text", sentence, rule)
        written = _write(reader, tokenizer, source, known, options)
        if not written.text.strip():
            yield Translation(sentence, "", None, written.complete)
            continue
        target = split_words("target", written.text, rule)
        if known is None:
            known = choose_heads(reader, source, target, None)
            weights = reader.read(source, target, known)[0]
        else:
            weights = _sum_rows(written, source, target, known)
        alignment = make_alignment(reader, source, target, known, (weights, None))
        yield Translation(sentence, written.text.strip(), alignment, written.complete)


def split_sentences(text: str, language: str) -> list[str]:
    """Return the sentences of a text; every line ends one.

    Parameters
    ----------
    text : str
        The text.
    language : str
        Code of its language; anything else than two letters means English.

    Raises
    ------
    ModelError
        sentencex is not installed.

    Examples
    --------
    >>> split_sentences("It rained. We went home.", "en")
    ['It rained.', 'We went home.']
    """
    require_modules("app", "sentencex")
    from sentencex import segment

    code = language.lower() if len(language) == 2 else "en"
    sentences = [sentence for line in text.splitlines() if line.strip() for sentence in segment(code, line)]
    return [sentence.strip() for sentence in sentences if sentence.strip()]


@dataclass(frozen=True, eq=False)
class _Written:
    """What a model wrote for a sentence, and the rows of each step.

    Attributes
    ----------
    text
        The text.
    tokens
        Its tokens, and those of its end.
    ends
        For each token the number of characters of the text up to its end.
    rows
        float array [heads, steps, source words]; None where no heads were known.
    complete
        Whether the text has an end.
    """

    text: str
    tokens: list[int]
    ends: list[int]
    rows: Any
    complete: bool


def _write(
    reader: PairReader, tokenizer: Any, source: Words, heads: AlignmentHeads | None, options: dict[str, Any]
) -> _Written:
    import torch

    model = reader.model
    start = encode_source(
        model, tokenizer, source, languages=reader.languages, template=reader.template, argument="text"
    )
    inputs = _make_inputs(model, start)
    if not model.config.is_encoder_decoder:
        options = {**options, "stopping_criteria": [_LineEnd(tokenizer, len(start.decoder_ids))]}
    rows = None
    with torch.no_grad(), use_temporarily(model):
        if heads is None:
            output = model.generate(**inputs, **options, return_dict_in_generate=True)
        else:
            with record_stats(model, _make_spec(model, start, heads)) as record:
                output = model.generate(**inputs, **options, return_dict_in_generate=True)
            pairs = [(each.layer, each.head) for each in heads.forward]
            rows = stack_steps(record, pairs, "segment_mass")
            beams = getattr(output, "beam_indices", None)
            rows = (rows if beams is None else select_beams(rows, beams))[0].float().numpy()
    tokens = output.sequences[0, len(start.decoder_ids) :].tolist()
    text, ends = _decode_steps(tokenizer, tokens)
    return _Written(text, tokens, ends, rows, len(tokens) < options["max_new_tokens"])


class _LineEnd:
    """Stop the generation of a text that has a line end.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        The model's.
    prompt : int
        Number of tokens in front of the text.
    """

    def __init__(self, tokenizer: Any, prompt: int) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt

    def __call__(self, input_ids: Any, _scores: Any, **_others: Any) -> Any:
        import torch

        texts = [self._tokenizer.decode(row[self._prompt :]) for row in input_ids]
        return torch.tensor([_STOP in text for text in texts], device=input_ids.device)


def _make_inputs(model: Any, start: EncodedPair) -> dict[str, Any]:
    import torch

    decoder_ids = torch.tensor([start.decoder_ids])
    if not model.config.is_encoder_decoder:
        return {"input_ids": decoder_ids, "attention_mask": torch.ones_like(decoder_ids)}
    encoder_ids = torch.tensor([start.encoder_ids])
    return {
        "input_ids": encoder_ids,
        "attention_mask": torch.ones_like(encoder_ids),
        "decoder_input_ids": decoder_ids,
    }


def _make_spec(model: Any, start: EncodedPair, heads: AlignmentHeads) -> StatsSpec:
    return StatsSpec(
        heads=group_heads((each.layer, each.head) for each in heads.forward),
        kind="cross" if model.config.is_encoder_decoder else None,
        queries=1,
        segment_ids=np.array(start.key_words),
        top_k=0,
        key_mass=False,
    )


def _decode_steps(tokenizer: Any, tokens: Sequence[int]) -> tuple[str, list[int]]:
    """Return the text of tokens up to the first line end, and its length after each token."""
    lengths = []
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(list(tokens[:count]), skip_special_tokens=True)
        lengths.append(len(text.split(_STOP)[0]))
    text = tokenizer.decode(list(tokens), skip_special_tokens=True).split(_STOP)[0] if tokens else ""
    return text, lengths


def _sum_rows(written: _Written, source: Words, target: Words, heads: AlignmentHeads) -> Weights:
    """Return the weights of the target's words from the rows of the steps: [heads, target words, source words]."""
    owners = _find_owners(written.ends, target)
    weights = np.zeros((len(heads.forward), len(target.spans), len(source.spans)), np.float32)
    counts = np.zeros((len(heads.forward), len(target.spans)), np.float32)
    for number, head in enumerate(heads.forward):
        # The row of step k predicts token k, and is that of token k - 1.
        offset = 1 if head.row == INPUT else 0
        for token, word in enumerate(owners):
            if word != NO_WORD and token + offset < written.rows.shape[1]:
                row = written.rows[number, token + offset]
                weights[number, word, : row.size] += row
                counts[number, word] += 1
    return np.asarray(weights / np.maximum(counts, 1)[:, :, None], np.float32)


def _find_owners(ends: Sequence[int], target: Words) -> list[int]:
    """Return the word of each token: the one with most of its characters, or none."""
    owners = []
    for begin, end in zip([0, *ends], ends, strict=False):
        shared = [min(end, last) - max(begin, first) for first, last in target.spans]
        best = int(np.argmax(shared))
        owners.append(best if shared[best] > 0 else NO_WORD)
    return owners
