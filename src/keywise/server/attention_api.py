"""Attention statistics of a prompt: `POST /v1/attention`. The matrix of weights is never made."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from keywise.server.api_errors import ApiError
from keywise.server.model_queue import Job
from keywise.server.request_parts import RequestModel
from keywise.server.service import Service, collect


class AttentionRequest(RequestModel):
    """A request for attention statistics.

    Attributes
    ----------
    prompt
        A text.
    layers, heads
        Numbers of the layers and query heads to report; None for all.
    queries
        Number of last tokens whose attention is reported; None for all tokens.
    top_k
        Number of heaviest keys.
    """

    model: str
    prompt: Annotated[str, Field(min_length=1)]
    layers: list[Annotated[int, Field(ge=0)]] | None = None
    heads: list[Annotated[int, Field(ge=0)]] | None = None
    queries: Annotated[int, Field(ge=1)] | None = 1
    top_k: Annotated[int, Field(ge=0, le=64)] = 8


def make_router(service: Service) -> APIRouter:
    """Return the endpoint of attention statistics.

    Parameters
    ----------
    service
        The state of the server.
    """
    router = APIRouter()

    @router.post("/v1/attention")
    async def report_attention(request: Request, body: AttentionRequest) -> Any:
        service.check_model(body.model)
        return await collect(request, service.run(lambda job: compute_attention(service, body, job)))

    return router


def compute_attention(service: Service, body: AttentionRequest, job: Job) -> dict[str, Any]:
    """Run a prompt through the model and return its statistics as plain values.

    Parameters
    ----------
    service
        The state of the server.
    body
        The request.
    job
        Whether anybody still waits.

    Raises
    ------
    ApiError
        The prompt is too long, or so is the answer.
    KeywiseError
        The model has no such layer or head.
    """
    import torch  # noqa: PLC0415 - heavy

    import keywise.hf  # noqa: PLC0415

    loaded = service.answering.reader.evidence_model.loaded
    prompt = service.answering.reader.evidence_model.prompt
    token_ids, offsets = prompt.encode_text(body.prompt)
    tokens = len(token_ids)
    limits = service.settings.limits
    if not 1 <= tokens <= limits.attention_tokens:
        message = f"The prompt must have 1 to {limits.attention_tokens:,} tokens, got {tokens:,}."
        raise ApiError(400, message, "prompt", "context_length_exceeded")
    config = loaded.model.config.get_text_config()
    layers = config.num_hidden_layers if body.layers is None else len(set(body.layers))
    heads = config.num_attention_heads if body.heads is None else len(set(body.heads))
    queries = tokens if body.queries is None else min(body.queries, tokens)
    numbers = layers * heads * (tokens + queries * (1 + 2 * body.top_k))
    if numbers > limits.attention_numbers:
        rule = f"The answer must have at most {limits.attention_numbers:,} numbers, not {numbers:,}"
        message = f"{rule}: choose layers, heads or fewer queries."
        raise ApiError(400, message, "queries", "answer_too_long")
    job.check()
    with (
        torch.inference_mode(),
        keywise.hf.record_stats(
            loaded.model, layers=body.layers, heads=body.heads, queries=queries, top_k=body.top_k, kind="self"
        ) as record,
    ):
        loaded.model(torch.tensor([token_ids]), use_cache=False, logits_to_keep=1)
    return {
        "object": "attention",
        "model": loaded.name,
        "tokens": [{"text": body.prompt[start:end], "start": start, "end": end} for start, end in offsets],
        "queries": [tokens - queries, tokens],
        "layers": [_describe_layer(layer) for layer in record],
    }


def _describe_layer(layer: Any) -> dict[str, Any]:
    stats = layer.stats
    key_mass, entropy = stats.key_mass[0].tolist(), stats.entropy[0].tolist()
    keys, weights = stats.top_keys[0].tolist(), stats.top_weights[0].tolist()
    heads = [
        {"head": head, "key_mass": key_mass[i], "entropy": entropy[i], "top_keys": keys[i], "top_weights": weights[i]}
        for i, head in enumerate(layer.heads)
    ]
    return {"layer": layer.layer, "name": layer.name, "heads": heads}
