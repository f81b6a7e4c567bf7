"""`keywise check`: diagnose a model's attention."""

from typing import Annotated

import typer

import keywise
from keywise.cli.exits import FINDINGS
from keywise.cli.options import AsJson, Threads, use_threads
from keywise.cli.terminal import print_notice, write, write_json
from keywise.documents import read_file
from keywise.errors import ModelError, OptionError
from keywise.models.loading import load_model

CHECK_EXAMPLES = """
Examples:

  keywise check HuggingFaceTB/SmolLM2-135M-Instruct

  keywise check ./my-model --text contract.pdf --attention eager --json
"""

IMPLEMENTATIONS = ("eager", "sdpa", "keywise")
DEFAULT_TEXT = (
    "The lamp in the tower was lit for the first time on a cold evening in October. For years the keeper carried oil "
    "up the stairs twice a night, wrote down the wind and the ships he saw, and slept by day. When the harbour was "
    "moved, nobody needed the light any more; the glass went to a museum, and the tower became a place for birds."
)


def check(  # noqa: PLR0917 - each is an argument or option of the command
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Hub id, folder or .gguf file. Default: KEYWISE_MODEL, else the default model.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Run the model on this text, Markdown, HTML, PDF or DOCX file."),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Attention to check: eager, sdpa or keywise. Default: the model's own."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="Precision of the model: float32, which detects more, or bfloat16, which needs half the memory.",
        ),
    ] = "float32",
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Diagnose the attention of MODEL.

    Runs the model on a text and on small random inputs, compares every attention call with the definition of attention,
    and changes tokens that must not matter. Exit code 0: healthy; 3: errors or warnings were found.
    """
    if attention not in {None, *IMPLEMENTATIONS}:
        raise OptionError("attention", f"must be one of {', '.join(IMPLEMENTATIONS)}", got=attention)
    content = DEFAULT_TEXT if text is None else read_file(text).text
    use_threads(threads)
    loaded = load_model(model, dtype=dtype, status=print_notice)
    if attention is not None:
        keywise.hf.register()
        try:
            loaded.model.set_attn_implementation(attention)
        except ValueError as error:
            supporter = type(loaded.model).__name__
            raise ModelError("attention", f"must be supported by {supporter}", got=attention) from error
    diagnosis = keywise.diagnosis.check_model(loaded.model, loaded.tokenizer, content)
    if as_json:
        write_json({"model": loaded.name, **diagnosis.to_json()})
    else:
        write(f"{diagnosis}\n")
    if not diagnosis.healthy:
        raise typer.Exit(FINDINGS)
