"""`keywise tune`: choose the evidence heads of a model, or its alignment heads."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from keywise.cli.align import Languages, OneWay, ReverseModel
from keywise.cli.options import AsJson, Dtype, Model
from keywise.cli.output_file import check_output_file
from keywise.cli.terminal import show_progress, write, write_json
from keywise.cli.tune_alignments import tune_alignments
from keywise.documents import Reader
from keywise.documents.heads import describe_architecture, locate_own_heads
from keywise.documents.squad import load_squad
from keywise.documents.tune import choose_heads, observe_questions, select_all_heads
from keywise.documents.tune_answers import measure_moves
from keywise.errors import OptionError
from keywise.models.loading import load_model
from keywise.models.sentence_encoder import SentenceEncoder
from keywise.util.terminal_text import replace_controls

TUNE_EXAMPLES = """
Examples:

  keywise tune --data questions.json

  keywise tune --model ./my-model --data questions.json --answer-sentences 0

  keywise tune --data questions.json --semantic

  keywise tune --alignments pairs.txt --gold links.txt --model qwen.gguf --languages English,French
"""


def tune(  # noqa: PLR0917 - each is an option of the command
    data: Annotated[
        Path | None, typer.Option(help="Questions with answers in SQuAD's JSON format: at least 10, better hundreds.")
    ] = None,
    alignments: Annotated[
        Path | None,
        typer.Option(
            metavar="PAIRS",
            help="Tune word alignment instead: pairs 'source ||| target', one a line, words separated by spaces.",
        ),
    ] = None,
    gold: Annotated[
        Path | None,
        typer.Option(
            metavar="LINKS",
            help="Hand-made links of the pairs: 'i-j' sure, 'ipj' possible, from 1. Without them, heads are ranked by "
            "agreement of both directions.",
        ),
    ] = None,
    reverse_model: ReverseModel = None,
    languages: Languages = None,
    one_way: OneWay = False,
    model: Model = None,
    dtype: Dtype = None,
    paragraphs: Annotated[int, typer.Option(min=1, help="Consecutive paragraphs that make one document.")] = 6,
    answer_sentences: Annotated[
        int,
        typer.Option(min=0, help="Sentences that answers are quoted from; 0 writes them from the whole document."),
    ] = 1,
    semantic: Annotated[
        bool,
        typer.Option("--semantic", help="Also tune the ranking by a sentence encoder; without it, questions use none."),
    ] = False,
    moves: Annotated[
        int,
        typer.Option(
            min=0,
            help="Questions on which it is measured whether this model's answers may change the order of sentences "
            "when it is the --answer-model; 0 for none, fewer than 10 decide nothing.",
        ),
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write the heads here. Default: where keywise looks for this model's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the evidence heads of a model, from questions whose answers are known.

    The attention of all heads is recorded for each document's own questions and for questions of other articles, which
    the document does not answer. The heads that attend most to the sentences with the answers are chosen, and the
    weights of attention, words and, with --semantic, embeddings are fitted. Later questions to this model in this dtype
    use them. With --alignments, the heads are chosen that align words, for `keywise align` and
    `keywise translate`.
    """
    if alignments is not None:
        if data is not None:
            raise OptionError("data", "cannot be combined with --alignments", got=str(data))
        tune_alignments(
            alignments,
            gold,
            model=model,
            reverse_model=reverse_model,
            languages=languages,
            dtype=dtype,
            one_way=one_way,
            out=out,
            as_json=as_json,
        )
        return
    if data is None:
        raise OptionError("data", "must name a file", remedy="or name pairs with --alignments")
    if out is not None:
        check_output_file("out", str(out), inputs=[str(data)])
    documents = load_squad(data, paragraphs)
    notices = Console(stderr=True)

    def notify(line: str) -> None:
        notices.print(replace_controls(line), markup=False, highlight=False)

    encode = SentenceEncoder().encode if semantic else False
    loaded = load_model(model, dtype=dtype, pack_linear=True, status=notify)
    config = loaded.model.config.get_text_config()
    all_heads = select_all_heads(config.num_hidden_layers, config.num_attention_heads)
    reader = Reader(loaded, keep=False, encode=encode, heads=all_heads)
    unanswerable = sum(len(document.questions) for document in documents) // max(len(documents), 1)
    with show_progress(notices, "Reading", "documents") as progress:
        observations = list(observe_questions(reader, documents, unanswerable=unanswerable, progress=progress))
    answered = sum(bool(each.gold) for each in observations)
    heads = choose_heads(
        observations,
        all_heads.matching,
        answer_sentences=answer_sentences,
        tuned_on=f"{data.name}, {answered} questions",
    )
    moved = None
    if moves:
        moving = replace(heads, moves_sentences=True)
        answering = Reader(loaded, keep=False, encode=encode, heads=moving, answer_model=loaded)
        with show_progress(notices, "Answering", "questions") as progress:
            moved = measure_moves(answering, documents, max_questions=moves, progress=progress)
        heads = replace(heads, moves_sentences=moved.is_gain)
    model_fingerprint = loaded.fingerprint()
    path = out
    if path is None:
        path = locate_own_heads(model_fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
    heads.save(
        path, model=loaded.name, weights=model_fingerprint["weights"], architecture=describe_architecture(config)
    )
    if as_json:
        facts = {"file": str(path), "questions": answered, "heads": asdict(heads)}
        write_json(facts if moved is None else {**facts, "moves": asdict(moved)})
        return
    for kind, chosen in (("matching", heads.matching), ("copying", heads.copying)):
        label = f"{kind} heads"
        names = ", ".join(f"{layer}.{head}" for layer, head in chosen)
        write(f"{label:<16}{names}\n")
    write(f"{'rankings':<16}{', '.join(heads.powers)}\n")
    if moved is not None:
        counts = f"{moved.before} of {moved.questions}, with its answers {moved.after}"
        write(f"{'first sentence':<16}{counts}\n")
    write(f"{'written to':<16}{path}\n")
