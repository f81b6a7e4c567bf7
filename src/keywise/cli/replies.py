"""Answers as `keywise ask` shows them: the answer, its sentence and place, doubts and ranked sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich.text import Text

import keywise
from keywise.cli.terminal import write
from keywise.documents.report import (
    describe_doubt,
    find_quoted_sentence,
    list_sources,
    make_evidence_table,
    make_quote,
    to_json,
)
from keywise.library.passages import Passage, locate_evidence
from keywise.util.terminal_text import replace_controls

if TYPE_CHECKING:
    from rich.console import Console

    from keywise.cli.session import AskOptions
    from keywise.documents import Ablation, Answer, Document, Evidence, Reader, Source


@dataclass(frozen=True)
class Reply:
    """An answer and the document that it was found in.

    Attributes
    ----------
    answer
        The answer.
    document
        The document.
    passages
        The passages of a library that the document consists of; empty for files.
    ablations
        How much the answer depends on its best sentences, if that was measured.
    """

    answer: Answer
    document: Document
    passages: Sequence[Passage] = ()
    ablations: Sequence[Ablation] = field(default=())

    @property
    def reported(self) -> Answer:
        """The answer with evidence that names the documents of a library."""
        if not self.passages:
            return self.answer
        return replace(self.answer, evidence=locate_evidence(self.answer.evidence, self.passages))

    @property
    def sources(self) -> Sequence[Source]:
        """The texts that places count in; none for a library."""
        return () if self.passages else self.document.sources

    @property
    def quoted(self) -> Evidence | None:
        """The sentence that the answer was quoted from."""
        return find_quoted_sentence(self.answer)

    def to_json(self, options: AskOptions) -> dict[str, Any]:
        """Return the answer as plain values, with how it was computed."""
        answer = to_json(self.reported, top=options.top, ablations=self.ablations, sources=self.sources)
        return {**answer, "computed_with": describe_computation(self.document.reader)}


def describe_computation(reader: Reader) -> dict[str, Any]:
    """Return the threads, and the dtype and the form of the weights of the models that were used.

    Parameters
    ----------
    reader
        The reader of the document.
    """
    models = [reader.evidence_model.loaded]
    if reader.has_answer_model and reader.answer_model is not None:
        models.append(reader.answer_model.loaded)
    return {
        "threads": keywise.get_num_threads(),
        "models": [
            {
                "name": loaded.name,
                "dtype": str(loaded.model.dtype).removeprefix("torch."),
                "weights": loaded.weights,
                "parameters": loaded.parameters,
            }
            for loaded in models
        ],
    }


def write_reply(
    reply: Reply, console: Console, options: AskOptions, *, has_table: bool = True, is_written: bool = False
) -> None:
    """Write an answer with its sentence, its place and the reason to doubt it.

    Parameters
    ----------
    reply
        The answer.
    console
        The terminal.
    options
        Those of the command.
    has_table
        Whether the ranked sentences follow.
    is_written
        Whether the answer's text was written already, token by token.
    """
    answer = reply.reported
    ellipsis = "" if answer.complete else " …"
    marks = "".join(f" [{rank}]" for rank in list_sources(answer, top=options.top)) if has_table else ""
    write(f"{'' if is_written else answer.text}{ellipsis}{marks}\n")
    quote = make_quote(answer, sources=reply.sources)
    if quote is not None:
        console.print(quote, soft_wrap=True, highlight=False)
    doubt = describe_doubt(answer)
    if doubt is not None:
        console.print(Text(replace_controls(doubt), style="bold yellow"), soft_wrap=True)
    write("\n")
    if has_table:
        write_sources(reply, console, top=options.top)
    write_ablations(reply.ablations)


def write_sources(reply: Reply, console: Console, *, top: int | None) -> None:
    """Write the ranked sentences with their places.

    Parameters
    ----------
    reply
        The answer.
    console
        The terminal.
    top
        Number of sentences; None for all.
    """
    console.print(make_evidence_table(reply.reported.evidence, top=top, sources=reply.sources))


def write_ablations(ablations: Sequence[Ablation]) -> None:
    """Write how much less likely the answer is without each sentence."""
    for ablation in ablations:
        control = " (control)" if ablation.control else ""
        write(f"without sentence {ablation.evidence.rank}{control} the answer loses {ablation.drop_nats:.1f} nats\n")
