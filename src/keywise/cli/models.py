"""`keywise models`: models on this machine, models to get, and what a model is."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from keywise.cli.options import AsJson, Dtype
from keywise.cli.terminal import print_notice, write, write_json
from keywise.documents.heads import describe_architecture, find_heads, find_related_heads
from keywise.models.loading import LoadedModel, load_model
from keywise.models.sources import HOW_TO_GET_THE_DEFAULT, find_model, list_models
from keywise.util.terminal_text import replace_controls

HELP = "Language models: what is here, what to get, what a model is."
EXAMPLES = """
Examples:

  keywise models list

  keywise models show qwen2.5-1.5b-instruct-q4_k_m.gguf

  hf download Qwen/Qwen2.5-1.5B-Instruct-GGUF qwen2.5-1.5b-instruct-q4_k_m.gguf --local-dir .
"""


@dataclass(frozen=True)
class RecommendedModel:
    """A model to get: repository on the hub, file there, rough size and estimated memory, licence and use."""

    repository: str
    file: str
    size: str
    memory: str
    licence: str
    use: str


RECOMMENDED = (
    RecommendedModel(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "model.safetensors", "0.3 GB", "1 GB", "Apache-2.0", "finds sentences"
    ),
    RecommendedModel(
        "Qwen/Qwen2.5-0.5B-Instruct-GGUF",
        "qwen2.5-0.5b-instruct-q4_k_m.gguf",
        "0.5 GB",
        "1.5 GB",
        "Apache-2.0",
        "finds sentences, after `keywise tune`",
    ),
    RecommendedModel(
        "Qwen/Qwen2.5-1.5B-Instruct-GGUF",
        "qwen2.5-1.5b-instruct-q4_k_m.gguf",
        "1.1 GB",
        "2.5 GB",
        "Apache-2.0",
        "words answers: --answer-model",
    ),
    RecommendedModel(
        "Qwen/Qwen2.5-3B-Instruct-GGUF",
        "qwen2.5-3b-instruct-q4_k_m.gguf",
        "2.1 GB",
        "4 GB",
        "Qwen Research",
        "words answers: --answer-model",
    ),
)


def list_all(as_json: AsJson = False) -> None:
    """List the models on this machine, the default first, and models to get."""
    models = list_models()
    if as_json:
        write_json(
            {"models": [asdict(model) for model in models], "recommended": [asdict(each) for each in RECOMMENDED]}
        )
        return
    write("here\n")
    for model in models:
        size = "on the hub" if model.size_bytes is None else f"{model.size_bytes / 1e6:,.0f} MB"
        write(f"  {replace_controls(model.name)}  ({model.origin}, {model.kind}, {size})\n")
    if not models:
        write(f"  none: {HOW_TO_GET_THE_DEFAULT}\n")
    write("to get: hf download REPOSITORY FILE --local-dir .\n")
    for each in RECOMMENDED:
        write(f"  {each.repository} {each.file}\n")
        write(f"      about {each.size}, about {each.memory} of memory, licence {each.licence}; {each.use}\n")


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a .gguf file or a hub id.")],
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Load a model and show its architecture, context, weights, memory and whether heads are tuned for it."""
    source = find_model(model)
    loaded = load_model(model, dtype=dtype, status=print_notice)
    facts = describe_model(loaded)
    facts = {"name": loaded.name, "path": source.path, **facts}
    if as_json:
        write_json(facts)
        return
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        write(f"{name.replace('_', ' '):<22} {replace_controls(shown)}\n")


def describe_model(loaded: LoadedModel) -> dict[str, Any]:
    """Return what a loaded model is."""
    config = loaded.model.config.get_text_config()
    heads = find_heads(loaded.fingerprint()) or find_related_heads(describe_architecture(config))
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    number_bytes = loaded.model.dtype.itemsize
    return {
        "architecture": config.model_type,
        "parameters": loaded.parameters,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "context_tokens": getattr(config, "max_position_embeddings", None),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "weights": _count_formats(loaded),
        "weights_bytes": _count_bytes(loaded),
        "cache_bytes_per_token": 2 * config.num_hidden_layers * key_heads * head_dim * number_bytes,
        "chat_template": bool(loaded.tokenizer.chat_template),
        "tuned_on": None if heads is None else heads.tuned_on,
    }


def _list_matrices(loaded: LoadedModel) -> list[Any]:
    return list(
        {id(layer.matrix): layer.matrix for layer in loaded.model.modules() if hasattr(layer, "matrix")}.values()
    )


def _count_formats(loaded: LoadedModel) -> str:
    """Return the forms of the weights with the number of matrices of each."""
    formats = Counter(matrix.block_format for matrix in _list_matrices(loaded))
    formats.update(str(each.dtype).removeprefix("torch.") for each in loaded.model.parameters() if each.ndim > 1)
    return ", ".join(f"{name} ({count})" for name, count in formats.most_common())


def _count_bytes(loaded: LoadedModel) -> int:
    in_blocks = sum(int(matrix.blocks.nbytes) for matrix in _list_matrices(loaded))
    return in_blocks + sum(int(each.numel() * each.itemsize) for each in loaded.model.parameters())


COMMANDS: dict[str, Callable[..., None]] = {"list": list_all, "show": show}
