"""`keywise tune`: choose the heads of a model that find evidence."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from keywise.cli.options import AsJson, Dtype, Model
from keywise.documents.heads import save
from keywise.documents.labelled import labelled_documents
from keywise.documents.reader import Reader
from keywise.documents.tune import choose, every_head, observe
from keywise.library.encoder import SentenceEncoder
from keywise.models import fingerprint
from keywise.models.loading import load_model

TUNE_EXAMPLES = """
Examples:

  keywise tune --data questions.json

  keywise tune --model ./my-model --data questions.json --answer-sentences 0

  keywise tune --data questions.json --meaning
"""


def tune(  # noqa: PLR0917 - each is an option of the command
    data: Annotated[
        Path, typer.Option(help="Questions with answers in SQuAD's JSON format, 10 at least, better hundreds.")
    ],
    model: Model = None,
    dtype: Dtype = None,
    paragraphs: Annotated[int, typer.Option(min=1, help="Consecutive paragraphs that make one document.")] = 6,
    answer_sentences: Annotated[
        int,
        typer.Option(min=0, help="Sentences that answers are quoted from; 0 lets the model write from the document."),
    ] = 1,
    meaning: Annotated[
        bool,
        typer.Option("--meaning", help="Also tune ranking by meaning, for `ask --meaning`; needs keywise[library]."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the heads here. Default: where keywise looks for this model's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the heads of a model that find evidence, from questions whose answers are known.

    Every head of every layer is read while the model reads each question about its document, and questions of other
    articles, which the document does not answer. Chosen are the heads that look most at the sentences that hold the
    answers, and with what power attention, words and meaning count. From then on every question to this model in this
    dtype uses them.
    """
    documents = labelled_documents(data, paragraphs)
    encode = SentenceEncoder().encode if meaning else None
    notices = Console(stderr=True)
    loaded = load_model(
        model, dtype=dtype, pack_linear=True, status=lambda line: notices.print(line, markup=False, highlight=False)
    )
    config = loaded.model.config.get_text_config()
    every = every_head(config.num_hidden_layers, config.num_attention_heads)
    strangers = sum(len(document.questions) for document in documents) // max(len(documents), 1)
    with Progress(console=notices, transient=True) as bar:
        task = bar.add_task("Reading documents", total=len(documents))
        observed = list(
            observe(
                Reader(loaded, heads=every, encode=encode, keep=False),
                documents,
                strangers=strangers,
                progress=lambda done, _: bar.update(task, completed=done),
            )
        )
    answered = sum(bool(one.gold) for one in observed)
    heads = choose(
        observed, every.matching, answer_sentences=answer_sentences, tuned_on=f"{data.name}, {answered} questions"
    )
    made = fingerprint(loaded.model, loaded.tokenizer, folder=loaded.folder)
    path = save(heads, made, loaded.name, path=out)
    if as_json:
        typer.echo(json.dumps({"file": str(path), "questions": answered, "heads": asdict(heads)}, indent=2))
        return
    named = {
        kind: ", ".join(f"{layer}.{head}" for layer, head in group)
        for kind, group in (("matching", heads.matching), ("copying", heads.copying))
    }
    typer.echo(f"matching heads  {named['matching']}\ncopying heads   {named['copying']}")
    typer.echo(f"rankings        {', '.join(heads.powers)}\nwritten to      {path}")
