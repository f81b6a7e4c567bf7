"""Attention weights of target words on source words, recorded while a model reads a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.alignment.encoding import NO_WORD, EncodedPair
from keywise.alignment.heads import INPUT, AlignmentHead
from keywise.hf.generated_rows import group_heads
from keywise.hf.recording import record_stats
from keywise.hf.stats_spec import StatsSpec

BLOCK_TOKENS: Final = 256
"""Target tokens that are read at once; it bounds the memory of the recorded rows."""

PACKED_TOKENS: Final = 1024
"""Tokens of pairs that are read in one pass."""

# Larger sums of weights across pairs are no rounding.
_LEAK: Final = 1e-6

Weights = NDArray[np.float32]


def record_word_weights(
    model: Any,
    pair: EncodedPair,
    heads: Sequence[AlignmentHead],
    *,
    source_words: int,
    target_words: int,
    block_tokens: int = BLOCK_TOKENS,
) -> Weights:
    """Return the weights of target words on source words in some heads.

    A weight is summed over the tokens of the source word and averaged over those of the target word, so that the
    weights of a target word sum to at most 1; the rest went to other tokens. Only the target's rows of these heads are
    recorded, and only layers up to the last of them run.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A model that attends with keywise.
    pair : EncodedPair
        The tokens.
    heads : sequence of AlignmentHead
        The heads.
    source_words, target_words : int
        Numbers of words.
    block_tokens : int
        Target tokens that are read at once.

    Returns
    -------
    float32 array [heads, target words, source words]
    """
    import torch

    sums = np.zeros((len(heads), target_words, source_words), np.float32)
    spec = _make_spec(model, pair, heads)
    ids = torch.tensor([pair.decoder_ids])
    first = pair.first_query
    options = _encode_source(model, pair)
    # A causal language model reads the source with the first block.
    starts = range(first + 1, len(pair.decoder_ids), block_tokens)
    done = 0
    for start in starts:
        stop = min(start + block_tokens, len(pair.decoder_ids))
        with torch.no_grad(), record_stats(model, spec) as record:
            _read_block(model, ids[:, done:stop], options)
        _add_rows(sums, record, heads, pair)
        done = stop
    return _average(sums, pair, target_words)


def record_packed_weights(
    model: Any, pairs: Sequence[EncodedPair], heads: Sequence[Sequence[AlignmentHead]], words: Sequence[tuple[int, int]]
) -> list[Weights] | None:
    """Return the weights of several pairs that a causal language model reads in one pass.

    The pairs stand behind each other as documents of a packed sequence: positions restart, and no token sees another
    pair. One pass reads the model's weights once.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model that attends with keywise.
    pairs : sequence of EncodedPair
        The tokens of each pair.
    heads : sequence of sequences of AlignmentHead
        The heads of each pair.
    words : sequence of (int, int)
        Numbers of source and target words of each pair.

    Returns
    -------
    list of float32 arrays [heads, target words, source words], or None
        None if the model's mask does not separate the pairs, which is seen in weights across them.
    """
    import torch

    offsets = np.cumsum([0, *(sources for sources, _ in words)])
    segment_ids = np.concatenate(
        [_number_segments(pair, int(offset)) for pair, offset in zip(pairs, offsets, strict=False)]
    )
    spec = StatsSpec(
        heads=group_heads((each.layer, each.head) for of_pair in heads for each in of_pair),
        segment_ids=segment_ids,
        top_k=0,
        key_mass=False,
        stop=True,
    )
    ids = torch.tensor([[token for pair in pairs for token in pair.decoder_ids]])
    positions = torch.cat([torch.arange(len(pair.decoder_ids)) for pair in pairs])[None]
    with torch.no_grad(), record_stats(model, spec) as record:
        model(ids, position_ids=positions, use_cache=False)
    layers = {each.layer: each for each in record}
    weights = []
    begin = 0
    for pair, of_pair, offset, (sources, targets) in zip(pairs, heads, offsets, words, strict=False):
        end = begin + len(pair.decoder_ids)
        sums = np.zeros((len(of_pair), targets, sources), np.float32)
        for number, each in enumerate(of_pair):
            layer = layers[each.layer]
            mass = layer.stats.segment_mass[0, layer.heads.index(each.head), begin:end].float().numpy()
            own = mass[:, offset : offset + sources]
            if float(mass[:, :offset].sum() + mass[:, offset + sources :].sum()) > _LEAK:
                return None
            _add_words(sums[number], own, 0, each, pair)
        weights.append(_average(sums, pair, targets))
        begin = end
    return weights


def _number_segments(pair: EncodedPair, offset: int) -> Any:
    """Return the segment of each token of a pair in a packed sequence."""
    keys = np.full(len(pair.decoder_ids), NO_WORD)
    owners = np.array(pair.key_words)
    keys[: owners.size] = np.where(owners == NO_WORD, NO_WORD, owners + offset)
    return keys


def _make_spec(model: Any, pair: EncodedPair, heads: Sequence[AlignmentHead]) -> StatsSpec:
    return StatsSpec(
        heads=group_heads((each.layer, each.head) for each in heads),
        queries=slice(pair.first_query, len(pair.decoder_ids)),
        segment_ids=np.array(pair.key_words),
        top_k=0,
        key_mass=False,
        kind="cross" if model.config.is_encoder_decoder else None,
        stop=True,
    )


def _encode_source(model: Any, pair: EncodedPair) -> dict[str, Any]:
    """Return the arguments that every block shares: the encoder's output, and a cache."""
    import torch
    from transformers import DynamicCache, EncoderDecoderCache

    if not model.config.is_encoder_decoder:
        return {"past_key_values": DynamicCache(config=model.config)}
    with torch.no_grad():
        encoded = model.get_encoder()(input_ids=torch.tensor([pair.encoder_ids]))
    return {"encoder_outputs": encoded, "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}


def _read_block(model: Any, ids: Any, options: dict[str, Any]) -> None:
    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    model(**{name: ids}, **options, use_cache=True)


def _add_rows(sums: Weights, record: Any, heads: Sequence[AlignmentHead], pair: EncodedPair) -> None:
    """Add the recorded rows of a block to the sums of their words."""
    rows = {each.layer: each for each in record}
    for number, each in enumerate(heads):
        layer = rows[each.layer]
        mass = layer.stats.segment_mass[0, layer.heads.index(each.head)].float().numpy()
        _add_words(sums[number], mass, layer.queries[0], each, pair)


def _add_words(sums: Weights, mass: Weights, begin: int, head: AlignmentHead, pair: EncodedPair) -> None:
    """Add rows to the sums of their target words; `begin` is the position of the first row."""
    # The row of a token is its own, or that of the token before it.
    offset = 0 if head.row == INPUT else 1
    positions = np.arange(begin + offset, min(begin + len(mass) + offset, len(pair.query_words)))
    words = np.array([pair.query_words[position] for position in positions])
    is_word = words != NO_WORD
    selected = mass[: positions.size][is_word]
    # The last source words may have no tokens, and then no segments.
    np.add.at(sums, words[is_word], np.pad(selected, ((0, 0), (0, sums.shape[1] - selected.shape[1]))))


def _average(sums: Weights, pair: EncodedPair, target_words: int) -> Weights:
    """Divide sums over the tokens of target words by their numbers, in place, and return them."""
    counts = np.bincount([word for word in pair.query_words if word != NO_WORD], minlength=target_words)
    sums /= np.maximum(counts, 1).astype(np.float32)[:, None]
    return sums
