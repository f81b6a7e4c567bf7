"""A language model with its prompt and its evidence heads, and forward passes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keywise.errors import ModelError, OptionError
from keywise.util.foreign_errors import translate_errors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from keywise.documents.heads import Heads
    from keywise.documents.prompt import Prompt
    from keywise.hf import LayerStats
    from keywise.models.loading import LoadedModel


@dataclass(frozen=True, eq=False)
class EvidenceModel:
    """A language model whose attention serves as evidence.

    Attributes
    ----------
    loaded
        The model and its tokenizer.
    prompt
        Its chat template.
    heads
        The heads whose attention is evidence.
    context_tokens
        Most tokens of the model's context; None if it has no limit.

    Raises
    ------
    OptionError
        A head does not exist in the model.
    ModelError
        The context is no number, or the chat template alone does not fit into it.
    """

    loaded: LoadedModel
    prompt: Prompt
    heads: Heads
    context_tokens: int | None

    def __post_init__(self) -> None:
        name = self.loaded.name
        config = self.loaded.model.config.get_text_config()
        bounds = config.num_hidden_layers, config.num_attention_heads
        for head in (*self.heads.matching, *self.heads.copying):
            if any(isinstance(bound, int) and number >= bound for number, bound in zip(head, bounds, strict=True)):
                rule = (
                    f"must be (layer, head) pairs of model {name!r}, which has {bounds[0]} layers of {bounds[1]} heads"
                )
                raise OptionError("heads", rule, got=head, remedy="choose them with `keywise tune`")
        if self.context_tokens is None:
            return
        template_tokens = len(self.prompt.encode_question("", start_answer=self.starts_answer).token_ids)
        template_tokens += len(self.prompt.before_ids)
        if type(self.context_tokens) is not int or self.context_tokens <= template_tokens:
            rule = f"must have a context that is longer than the {template_tokens:,} tokens of its chat template"
            raise ModelError("model", rule, got=self.context_tokens, remedy=f"choose another model than {name!r}")

    @property
    def starts_answer(self) -> bool:
        """Whether the beginning of an answer follows the question: the copying heads attend from there."""
        return bool(self.heads.copying)

    @property
    def max_document_tokens(self) -> int | None:
        """Most tokens of a document and a question; None if the model has no limit."""
        return None if self.context_tokens is None else self.context_tokens - len(self.prompt.before_ids)


def forward_batch(loaded: LoadedModel, cache: Any, token_ids: list[list[int]], *, last: int) -> Any:
    """Run tokens after those in a cache.

    Parameters
    ----------
    loaded
        The model.
    cache
        Holds the keys and values of the tokens before; those of the new tokens are appended.
    token_ids
        New tokens [batch, tokens].
    last
        For how many of the last tokens to return logits.

    Returns
    -------
    torch tensor [batch, last, vocabulary]
        Logits of the token after each of the last tokens.

    Raises
    ------
    ModelError
        The model's own code raises an error.
    """
    import torch  # noqa: PLC0415 - heavy

    def make_error(message: str) -> ModelError:
        remedy = "its configuration may be damaged; choose another model"
        return ModelError("model", f"{loaded.name!r} fails when it runs: {message}", remedy=remedy)

    # The settings in a model's files can be wrong in any way.
    with translate_errors(make_error), torch.inference_mode():
        output = loaded.model(torch.tensor(token_ids), past_key_values=cache, use_cache=True, logits_to_keep=last)
    return output.logits


def forward_tokens(loaded: LoadedModel, cache: Any, token_ids: list[int]) -> Any:
    """Return the logits of the token after some tokens: torch tensor [vocabulary]."""
    return forward_batch(loaded, cache, [token_ids], last=1)[0, -1]


def record_sentence_mass(
    model: EvidenceModel, cache: Any, token_ids: list[int], segment_ids: NDArray[Any], *, stop: bool
) -> tuple[Any, Sequence[LayerStats]]:
    """Run tokens after those in a cache and record the attention mass on each sentence.

    Parameters
    ----------
    model
        The model; the layers of its heads are recorded.
    cache
        Holds the document. With `stop` it is incomplete afterwards and must not be used again.
    token_ids
        New tokens.
    segment_ids
        int array [document tokens], the sentence of each token in the cache, -1 for none.
    stop
        Whether to leave the model after the last recorded layer.

    Returns
    -------
    logits : torch tensor [vocabulary] or None
        Logits of the next token; None if the model did not run to its end.
    records : sequence of LayerStats
        Statistics with `segment_mass`, one per layer.
    """
    import keywise.hf  # noqa: PLC0415 - importing this module must not load torch

    logits = None  # with `stop` the block ends before the assignment
    with keywise.hf.record_stats(
        model.loaded.model,
        segment_ids=segment_ids,
        layers=model.heads.layers,
        top_k=0,
        key_mass=False,
        kind="self",
        stop=stop,
    ) as records:
        logits = forward_tokens(model.loaded, cache, token_ids)
    return logits, records
