"""Make small random inputs for a transformers model."""

# ruff: noqa: PLC0415  (torch is slow to import, or absent: only calls need it)

from __future__ import annotations

import inspect
from typing import Any

from keywise.errors import ModelError

TOKENS = 24
PADDING_TOKENS = 5
DECODER_TOKENS = 9
AUDIO_SAMPLES = 8000
"""Length of the sound for models of sound: half a second at 16 kHz."""
MAX_WINDOW = 256
"""Windows up to this many tokens are tested with inputs that exceed them."""


class ModelInputs:
    """Make inputs for one model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.

    Attributes
    ----------
    kind : str
        ``"decoder"``, ``"encoder"``, ``"encoder-decoder"`` (text in, text out) or ``"other"``.
    parameters : frozenset of str
        Names that the model's `forward` accepts.
    takes_text : bool
        Whether its main input is token ids.
    window : int or None
        Its sliding window, None if there is none or it is longer than `MAX_WINDOW`.
    tokens : int
        Number of tokens of the inputs.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.parameters = frozenset(inspect.signature(model.forward).parameters)
        self.takes_text = model.main_input_name == "input_ids"
        if not self.takes_text:
            self.kind = "other"
        elif model.config.is_encoder_decoder:
            self.kind = "encoder-decoder"
        else:
            self.kind = "decoder" if model.can_generate() else "encoder"
        window = getattr(self.text_config, "sliding_window", None)
        self.window = window if isinstance(window, int) and window <= MAX_WINDOW else None
        tokens = TOKENS if self.window is None else max(TOKENS, self.window + 8)
        self.tokens = min(tokens, self.max_tokens)

    @property
    def text_config(self) -> Any:
        """Return the configuration of the model's text part."""
        return self.model.config.get_text_config()

    @property
    def layer_count(self) -> int:
        """Return the number of layers, 1 if the configuration does not say."""
        return int(getattr(self.text_config, "num_hidden_layers", 1))

    @property
    def vocabulary_size(self) -> int:
        """Return the number of token ids."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @property
    def max_tokens(self) -> int:
        """Return the number of tokens that the model has positions for."""
        limits = (getattr(self.text_config, name, None) for name in ("max_position_embeddings", "n_positions"))
        return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=1 << 20)

    @property
    def output_name(self) -> str:
        """Return the name of the input whose tokens have outputs."""
        return "decoder_input_ids" if self.kind == "encoder-decoder" else "input_ids"

    def draw_ids(self, batch: int = 1, tokens: int | None = None, seed: int = 3) -> Any:
        """Return random token ids [batch, tokens], none of them special."""
        import torch

        vocabulary = self.vocabulary_size
        special = {getattr(self.text_config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, vocabulary, (batch, self.tokens if tokens is None else tokens), generator=generator)
        replacement = next(token for token in range(vocabulary) if token not in special)
        for token in special:
            if isinstance(token, int):
                ids[ids == token] = replacement
        return ids

    def make_plain(self, ids: Any = None) -> dict[str, Any]:
        """Return an input without padding; without `ids` it is random."""
        if self.kind == "other":
            return self._make_image_or_sound()
        inputs = {"input_ids": self.draw_ids() if ids is None else ids}
        if self.kind == "encoder-decoder":
            inputs["decoder_input_ids"] = self.draw_ids(int(inputs["input_ids"].shape[0]), DECODER_TOKENS, seed=4)
        return inputs

    def make_padded(self, ids: Any, *, padding: Any = None) -> dict[str, Any]:
        """Return a batch of `ids` [1, N] with padding and of an input without any.

        Padding is on the left for decoders and on the right for encoders; `padding` holds its token ids.
        """
        import torch

        left = self.kind == "decoder"
        padding = self.draw_ids(1, PADDING_TOKENS, seed=5) if padding is None else padding
        parts = [(ids, torch.ones_like(ids)), (padding, torch.zeros_like(padding))]
        if left:
            parts.reverse()
        inputs = {
            "input_ids": torch.cat([part for part, _ in parts], dim=1),
            "attention_mask": torch.cat([mask for _, mask in parts], dim=1),
        }
        unpadded = self.draw_ids(1, int(inputs["input_ids"].shape[1]), seed=6)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], unpadded])
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(unpadded)])
        if left and "position_ids" in self.parameters:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        if self.kind == "encoder-decoder":
            inputs["decoder_input_ids"] = self.draw_ids(1, DECODER_TOKENS, seed=4).expand(2, -1)
        return inputs

    def make_packed(self) -> tuple[dict[str, Any], int]:
        """Return two packed documents, positions restarting at the second, and the length of the first."""
        import torch

        first_tokens = self.tokens // 2
        first, second = self.draw_ids(1, first_tokens), self.draw_ids(1, self.tokens - first_tokens, seed=8)
        positions = [torch.arange(ids.shape[1])[None] for ids in (first, second)]
        inputs = {
            "input_ids": torch.cat([first, second], dim=1),
            "position_ids": torch.cat(positions, dim=1),
            "use_cache": False,
        }
        return inputs, first_tokens

    def limit_logits(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Request the logits of the last token only, if the model supports it.

        Over long texts the logits of all tokens exceed the model's size.
        """
        return {**inputs, "logits_to_keep": 1} if "logits_to_keep" in self.parameters else inputs

    def _make_image_or_sound(self) -> dict[str, Any]:
        import torch

        generator = torch.Generator().manual_seed(3)
        config, dtype = self.model.config, self.model.dtype
        name = self.model.main_input_name
        if name == "pixel_values":
            size = config.image_size
            sides = (size, size) if isinstance(size, int) else tuple(size)
            return {name: torch.randn(1, config.num_channels, *sides, generator=generator).to(dtype)}
        if name == "input_features" and hasattr(config, "num_mel_bins"):
            frames = 2 * config.max_source_positions
            features = torch.randn(1, config.num_mel_bins, frames, generator=generator).to(dtype)
            return {name: features, "decoder_input_ids": self.draw_ids(1, DECODER_TOKENS, seed=4)}
        if name == "input_values" and hasattr(config, "conv_dim"):
            return {name: torch.randn(1, AUDIO_SAMPLES, generator=generator).to(dtype)}
        raise ModelError(
            "inputs",
            f"must be given for {type(self.model).__name__}, whose {name!r} cannot be generated",
            remedy="pass a dictionary of the model's inputs",
        )
