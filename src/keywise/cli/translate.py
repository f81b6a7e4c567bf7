"""`keywise translate`: a translation with the source words of each of its words."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from keywise.alignment import Translation, find_heads
from keywise.alignment import translate as translate_text
from keywise.alignment.report import write_page
from keywise.alignment.words import SPACE, split_words
from keywise.cli.align import HeadsFile, Languages, WordRule, load_heads, parse_languages, tell_tuning
from keywise.cli.options import AsJson, Dtype, Model, Threads, use_threads
from keywise.cli.output_file import check_output_file
from keywise.cli.terminal import write, write_json_line
from keywise.models.loading import load_model
from keywise.util.terminal_text import replace_controls

TRANSLATE_EXAMPLES = """
Examples:

  keywise translate --model opus-mt-en-fr "The keeper lit the lamp."

  keywise translate --model qwen.gguf --languages English,French "The keeper lit the lamp." --html page.html

  keywise translate --model nllb-200-distilled-600M --languages eng_Latn,fra_Latn --beams 4 < text.txt
"""


def translate(  # noqa: PLR0917 - each is an option of the command
    text: Annotated[str | None, typer.Argument(help="The text. Default: standard input.")] = None,
    model: Model = None,
    languages: Languages = None,
    beams: Annotated[int, typer.Option(min=1, help="Beams of the search.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest translation of a sentence, in tokens.")] = 256,
    heads: HeadsFile = None,
    words: WordRule = SPACE,
    dtype: Dtype = None,
    threads: Threads = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page that draws the alignments.")] = None,
    as_json: AsJson = False,
) -> None:
    """Translate a text sentence by sentence, and show which source words each word belongs to.

    The model is an encoder-decoder for translation, or a causal language model, which continues a template with both
    languages.
    """
    if html is not None:
        check_output_file("html", str(html))
    notices = Console(stderr=True)
    use_threads(threads)

    def notify(line: str) -> None:
        notices.print(replace_controls(line), markup=False, highlight=False)

    names = parse_languages(languages)
    own_heads = load_heads(heads)
    text = sys.stdin.read() if text is None else text
    split_words("text", text, words)  # raises for an empty text before the model is loaded
    loaded = load_model(model, dtype=dtype, status=notify)
    sentences = translate_text(
        loaded.model,
        loaded.tokenizer,
        text,
        heads=find_heads(loaded) if own_heads is None else own_heads,
        languages=names,
        num_beams=beams,
        max_new_tokens=max_tokens,
        words=words,
    )
    alignments = []
    for sentence in sentences:
        _show(sentence, as_json=as_json)
        if sentence.alignment is not None:
            alignments.append(sentence.alignment)
    if alignments:
        tell_tuning(notices, alignments[0].heads)
    if html is not None:
        write_page(alignments, html)


def _show(sentence: Translation, *, as_json: bool) -> None:
    if as_json:
        alignment = None if sentence.alignment is None else sentence.alignment.to_json()
        fields = {"source": sentence.source, "text": sentence.text, "complete": sentence.complete}
        write_json_line({**fields, "alignment": alignment})
        return
    write(f"{sentence.text}{'' if sentence.complete else ' …'}\n")
    if sentence.alignment is not None:
        Console().print(sentence.alignment.table())
        write("\n")
