"""Options that several commands share."""

from typing import Annotated

import typer

import keywise
from keywise.attention.targets import MAX_THREADS

AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON and nothing else: one object, or one on each line where there are several."
    ),
]
Model = Annotated[
    str | None, typer.Option(help="Hub id, folder or .gguf file. Default: KEYWISE_MODEL, else the default model.")
]
AnswerModelName = Annotated[
    str | None,
    typer.Option(
        "--answer-model",
        metavar="MODEL",
        help="A larger model that words answers from the best sentences, which --model finds. Default: "
        "KEYWISE_ANSWER_MODEL, else answers are quoted.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="Data type of the model: float32, or bfloat16, which is faster on CPUs with bfloat16 instructions. "
        "Default: bfloat16 on these CPUs, and for safetensors of over a billion parameters; else float32.",
    ),
]
Sentences = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Number of best sentences to quote the answer from; 0 writes it from the whole document. "
        "Default: as tuned.",
    ),
]
Top = Annotated[int, typer.Option(min=1, help="Number of sentences to show.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Threads = Annotated[int | None, typer.Option(min=1, max=MAX_THREADS, help="Number of CPU threads. Default: all.")]


def use_threads(threads: int | None) -> None:
    """Set the number of threads of keywise and torch; None leaves both unchanged."""
    if threads is not None:
        import torch  # noqa: PLC0415 - heavy

        torch.set_num_threads(threads)
        keywise.set_num_threads(threads)
