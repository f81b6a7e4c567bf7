"""Inputs to examine a model with: the user's text, and small random ones made for one question each."""

# ruff: noqa: PLC0415  (torch is slow to import, or absent: only calls need it)

from __future__ import annotations

import inspect
from typing import Any

from keywise.errors import ModelError

TOKENS = 24
PADDING = 5
ANSWER_TOKENS = 9
SAMPLES = 8000
"""Length of a sound, half a second at 16 kHz."""
LARGEST_WINDOW = 256
"""Windows up to this many tokens are tried with inputs that exceed them."""


class Inputs:
    """Makes a model's inputs.

    Attributes
    ----------
    kind : str
        ``"decoder"``, ``"encoder"``, ``"encoder-decoder"`` (text in, text out) or ``"other"``.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.takes = frozenset(inspect.signature(model.forward).parameters)
        self.text = model.main_input_name == "input_ids"
        config = model.config.get_text_config()
        if not self.text:
            self.kind = "other"
        elif model.config.is_encoder_decoder:
            self.kind = "encoder-decoder"
        else:
            self.kind = "decoder" if model.can_generate() else "encoder"
        window = getattr(config, "sliding_window", None)
        self.window = window if isinstance(window, int) and window <= LARGEST_WINDOW else None
        self.tokens = min(max(TOKENS, 0 if self.window is None else self.window + 8), self.most_tokens(config))

    @staticmethod
    def most_tokens(config: Any) -> int:
        """Give the number of tokens that a model has positions for."""
        known = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
        return min((count for count in known if isinstance(count, int) and count > 0), default=1 << 20)

    def ids(self, batch: int = 1, tokens: int | None = None, seed: int = 3) -> Any:
        """Draw token ids [batch, tokens], none of them special."""
        import torch

        embeddings = self.model.get_input_embeddings()
        vocabulary = int(embeddings.num_embeddings)
        special = {
            getattr(self.model.config.get_text_config(), f"{name}_token_id", None) for name in ("pad", "bos", "eos")
        }
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, vocabulary, (batch, self.tokens if tokens is None else tokens), generator=generator)
        allowed = next(token for token in range(vocabulary) if token not in special)
        for token in special:
            if isinstance(token, int):
                ids[ids == token] = allowed
        return ids

    def plain(self, ids: Any = None) -> dict[str, Any]:
        """Give an input without padding: these token ids, or random numbers for a model of images or sound."""
        if self.kind == "other":
            return self._not_text()
        given = {"input_ids": self.ids() if ids is None else ids}
        if self.kind == "encoder-decoder":
            given["decoder_input_ids"] = self.ids(int(given["input_ids"].shape[0]), ANSWER_TOKENS, seed=4)
        return given

    def padded(self, ids: Any, *, filling: Any = None) -> dict[str, Any]:
        """Put padding beside `ids` [1, N]: left for decoders, right for encoders; item 1 is one token longer."""
        import torch

        left = self.kind == "decoder"
        filling = self.ids(1, PADDING, seed=5) if filling is None else filling
        real = torch.ones_like(ids), torch.zeros_like(filling)
        order = (lambda pair: (pair[1], pair[0])) if left else (lambda pair: pair)
        given = {
            "input_ids": torch.cat(order((ids, filling)), dim=1),
            "attention_mask": torch.cat(order(real), dim=1),
        }
        whole = self.ids(1, int(given["input_ids"].shape[1]), seed=6)
        given["input_ids"] = torch.cat([given["input_ids"], whole])
        given["attention_mask"] = torch.cat([given["attention_mask"], torch.ones_like(whole)])
        if left and "position_ids" in self.takes:
            given["position_ids"] = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        if self.kind == "encoder-decoder":
            given["decoder_input_ids"] = self.ids(1, ANSWER_TOKENS, seed=4).expand(2, -1)
        return given

    def packed(self, first: Any, second: Any) -> dict[str, Any]:
        """Put two documents [1, N] behind one another, positions starting anew."""
        import torch

        positions = [torch.arange(ids.shape[1])[None] for ids in (first, second)]
        return {
            "input_ids": torch.cat([first, second], dim=1),
            "position_ids": torch.cat(positions, dim=1),
            "use_cache": False,
        }

    def frugal(self, given: dict[str, Any]) -> dict[str, Any]:
        """Ask for the last token's logits alone, where a model can: over long texts they are larger than the model."""
        return {**given, "logits_to_keep": 1} if "logits_to_keep" in self.takes else given

    def _not_text(self) -> dict[str, Any]:
        import torch

        generator = torch.Generator().manual_seed(3)
        config = self.model.config
        name = self.model.main_input_name
        if name == "pixel_values":
            size = config.image_size
            sides = (size, size) if isinstance(size, int) else tuple(size)
            return {name: torch.randn(1, config.num_channels, *sides, generator=generator).to(self.model.dtype)}
        if name == "input_features" and hasattr(config, "num_mel_bins"):
            frames = 2 * config.max_source_positions
            sound = torch.randn(1, config.num_mel_bins, frames, generator=generator).to(self.model.dtype)
            return {name: sound, "decoder_input_ids": self.ids(1, ANSWER_TOKENS, seed=4)}
        if name == "input_values" and hasattr(config, "conv_dim"):
            return {name: torch.randn(1, SAMPLES, generator=generator).to(self.model.dtype)}
        raise ModelError(
            f"model={type(self.model).__name__} takes {name!r}, which cannot be made up: pass inputs=, a dictionary of "
            "what the model takes"
        )
