"""`keywise align`: which source words the words of a translation belong to."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from keywise.alignment import Alignment, AlignmentHeads, find_heads
from keywise.alignment.align import PairReader, check_symmetrisation, choose_heads, make_alignment
from keywise.alignment.encoding import is_causal_model
from keywise.alignment.pairs import load_pairs
from keywise.alignment.report import write_page
from keywise.alignment.words import SPACE, Words, split_words
from keywise.cli.command import rename_argument
from keywise.cli.options import AsJson, Dtype, Model, Threads, use_threads
from keywise.cli.output_file import check_output_file
from keywise.cli.terminal import show_progress, write, write_json, write_json_line
from keywise.errors import OptionError
from keywise.models.loading import LoadedModel, load_model
from keywise.util.atomic_write import atomic_write
from keywise.util.terminal_text import replace_controls

ALIGN_EXAMPLES = """
Examples:

  keywise align --model qwen.gguf --languages English,French "the red house" "la maison rouge"

  keywise align --model qwen.gguf --languages English,French --pairs pairs.txt --out links.txt

  keywise align --model opus-mt-en-fr --reverse-model opus-mt-fr-en "the red house" "la maison rouge" --html page.html
"""

Languages = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE,TARGET",
        help="Languages of the texts: names, such as English,French, or the codes of a translation model.",
    ),
]
ReverseModel = Annotated[
    str | None, typer.Option(metavar="MODEL", help="A model that translates in the other direction, read as well.")
]
OneWay = Annotated[
    bool, typer.Option("--one-way", help="Read one direction; by default a causal language model reads both.")
]
HeadsFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Heads from `keywise tune --alignments`. Default: this model's.")
]
WordRule = Annotated[str, typer.Option(metavar="RULE", help="How a text is split into words: space or unicode.")]


def align(  # noqa: PLR0917 - each is an option of the command
    source: Annotated[str | None, typer.Argument(help="The source text.")] = None,
    target: Annotated[str | None, typer.Argument(help="Its translation.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Pairs 'source ||| target', one a line, words separated by spaces."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write links here: 'i-j' from 0, one line a pair.")
    ] = None,
    model: Model = None,
    reverse_model: ReverseModel = None,
    languages: Languages = None,
    one_way: OneWay = False,
    symmetrise: Annotated[
        str,
        typer.Option(
            metavar="METHOD", help="How two directions are combined: score, intersection, union, grow-diag(-final)."
        ),
    ] = "score",
    heads: HeadsFile = None,
    words: WordRule = SPACE,
    dtype: Dtype = None,
    threads: Threads = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page that draws the alignments.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which source words each word of a translation belongs to, by a model's attention.

    The model is an encoder-decoder for translation, or any causal language model, which reads the source and then the
    target. With heads from `keywise tune --alignments`, scores are probabilities; otherwise heads are ranked without
    labels, and the output says "untuned".
    """
    inputs = [str(pairs)] if pairs is not None else []
    for name, path in (("out", out), ("html", html)):
        if path is not None:
            check_output_file(name, str(path), inputs=inputs)
    read = _list_pairs(source, target, pairs, words)
    own_heads = load_heads(heads)
    check_symmetrisation(symmetrise, goes_both_ways=not one_way)
    notices = Console(stderr=True)
    use_threads(threads)
    loaded, reader = load_reader(notices, model, reverse_model, languages, dtype, one_way=one_way)
    check_symmetrisation(symmetrise, goes_both_ways=reader.goes_both_ways)
    known = find_heads(loaded) if own_heads is None else own_heads
    alignments = []
    with show_progress(notices, "Aligning", "pairs", is_shown=len(read) > 1) as progress:
        for number, (source_words, target_words) in enumerate(read):
            chosen = choose_heads(reader, source_words, target_words, known)
            weights = reader.read(source_words, target_words, chosen)
            alignments.append(
                make_alignment(reader, source_words, target_words, chosen, weights, symmetrise=symmetrise)
            )
            progress(number + 1, len(read))
    tell_tuning(notices, alignments[0].heads)
    if html is not None:
        write_page(alignments, html)
    _write_alignments(alignments, out, as_json=as_json, as_lines=pairs is not None)


def load_heads(path: Path | None) -> AlignmentHeads | None:
    """Return the heads of a file that an option names, before a model is loaded; None without one."""
    if path is None:
        return None
    with rename_argument("path", "heads"):
        return AlignmentHeads.load(path)


def tell_tuning(notices: Console, heads: AlignmentHeads) -> None:
    """Print what the heads of a result were tuned on."""
    tuning = f"tuned on {heads.tuned_on}" if heads.is_tuned else "untuned; see `keywise tune --alignments`"
    notices.print(replace_controls(f"keywise: the heads are {tuning}"), markup=False, highlight=False)


def load_reader(
    notices: Console,
    model: str | None,
    reverse_model: str | None,
    languages: str | None,
    dtype: str | None,
    *,
    one_way: bool,
) -> tuple[LoadedModel, PairReader]:
    """Load the models that options name, and return the first and a reader of pairs."""

    def notify(line: str) -> None:
        notices.print(replace_controls(line), markup=False, highlight=False)

    if reverse_model is not None and one_way:
        raise OptionError("reverse_model", "cannot be combined with --one-way")
    names = parse_languages(languages)
    with rename_argument("source", "model"):
        loaded = load_model(model, dtype=dtype, status=notify)
    reverse: Any = None
    if reverse_model is not None:
        with rename_argument("source", "reverse_model"):
            other = load_model(reverse_model, dtype=dtype, status=notify)
        reverse = (other.model, other.tokenizer)
    elif not one_way and is_causal_model(loaded.model):
        reverse = True
    return loaded, PairReader(loaded.model, loaded.tokenizer, languages=names, reverse=reverse)


def parse_languages(languages: str | None) -> tuple[str, str] | None:
    """Return the two languages of an option, or raise."""
    if languages is None:
        return None
    names = [name.strip() for name in languages.split(",")]
    if len(names) != 2 or not all(names):
        raise OptionError("languages", "must be two languages with a comma between", got=languages)
    return names[0], names[1]


def _list_pairs(source: str | None, target: str | None, pairs: Path | None, words: str) -> list[tuple[Words, Words]]:
    if pairs is not None:
        if source is not None:
            raise OptionError("source", "cannot be combined with --pairs", got=source)
        return load_pairs(pairs)
    for name, other, text in (("source", "TARGET", source), ("target", "SOURCE", target)):
        if text is None:
            raise OptionError(name, f"must be given with {other}", remedy="or name a file with --pairs")
    return [(split_words("source", source or "", words), split_words("target", target or "", words))]


def _write_alignments(alignments: list[Alignment], out: Path | None, *, as_json: bool, as_lines: bool) -> None:
    lines = "".join(f"{alignment.pharaoh()}\n" for alignment in alignments)
    if out is not None:
        with atomic_write(out) as file:
            file.write(lines.encode())
    if as_json:
        for alignment in alignments:
            (write_json_line if as_lines else write_json)(alignment.to_json())
    elif not as_lines:
        Console().print(alignments[0].table())
    elif out is None:
        write(lines)
