"""A small encoder-decoder whose cross-attention reports which source words each target word used."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

import keywise.torch as kt

PAD, BEGIN, END = 0, 1, 2
SPECIAL_TOKENS = 3


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the source, and a feed-forward network.

    Parameters
    ----------
    width, heads : int
        Size of the vectors, and number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attention = kt.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attention = kt.MultiheadAttention(width, heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, source: Tensor, padding: Tensor, *, needs_mass: bool) -> tuple[Tensor, Tensor | None]:
        """Return the output, and the weight of each target word on each source word [B, heads, target, source]."""
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        inner = self.norms[0](x)
        x = x + self.self_attention(inner, inner, inner, attn_mask=causal, is_causal=True)[0]
        # A segment for each source word. Longer segments, such as the tokens of a word, cost no more.
        stats = kt.StatsRequest(top_k=0, segment_bounds=torch.arange(source.shape[1] + 1), key_mass=False)
        attended, result = self.cross_attention(
            self.norms[1](x), source, source, key_padding_mask=padding, stats=stats if needs_mass else None
        )
        x = x + attended
        return x + self.feed_forward(self.norms[2](x)), None if result is None else result.segment_mass


class Translator(nn.Module):
    """Translate sequences of word numbers.

    Parameters
    ----------
    source_words, target_words : int
        Sizes of the two vocabularies.
    width, heads, layers : int
        Size of the vectors, number of heads, and layers of encoder and decoder each.
    max_words : int
        Most words of a sentence.
    """

    def __init__(
        self,
        source_words: int,
        target_words: int,
        *,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        max_words: int = 32,
    ) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(source_words + SPECIAL_TOKENS, width, padding_idx=PAD)
        self.target_embedding = nn.Embedding(target_words + SPECIAL_TOKENS, width, padding_idx=PAD)
        self.positions = nn.Parameter(torch.randn(2, max_words, width) * 0.1)
        encoder_layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(encoder_layer, layers, enable_nested_tensor=False)
        kt.replace_attention(self.encoder)
        self.decoder = nn.ModuleList(DecoderLayer(width, heads) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.output = nn.Linear(width, target_words + SPECIAL_TOKENS)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of the source words, and where there is padding."""
        padding = source == PAD
        x = self.source_embedding(source) + self.positions[0, : source.shape[1]]
        return self.norms[0](self.encoder(x, src_key_padding_mask=padding)), padding

    def decode(
        self, target: Tensor, source: Tensor, padding: Tensor, *, needs_mass: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits of the next words, and the last layer's weights on the source words."""
        x = self.target_embedding(target) + self.positions[1, : target.shape[1]]
        mass = None
        for layer, is_last in zip(self.decoder, itertools.chain([False] * (len(self.decoder) - 1), [True])):  # noqa: B905
            x, mass = layer(x, source, padding, needs_mass=needs_mass and is_last)
        return self.output(self.norms[1](x)), mass

    @torch.no_grad()
    def translate(self, source: Tensor, max_words: int = 24) -> tuple[Tensor, Tensor]:
        """Choose the likeliest next word until the sentence ends.

        Parameters
        ----------
        source : int tensor [B, S]
            Word numbers, padded on the right.
        max_words : int
            Most words of a translation.

        Returns
        -------
        int tensor [B, T], tensor [B, heads, T, S]
            Word numbers without the first mark, and the weights on the source words with which each was chosen.
        """
        encoded, padding = self.encode(source)
        target = torch.full((source.shape[0], 1), BEGIN)
        for _ in range(max_words):
            logits, mass = self.decode(target, encoded, padding, needs_mass=True)
            has_ended = (target == END).any(dim=1)
            words = logits[:, -1].argmax(dim=-1).masked_fill(has_ended, PAD)
            target = torch.cat([target, words[:, None]], dim=1)
            if bool((has_ended | (words == END)).all()):
                break
        assert mass is not None
        return target[:, 1:], mass
