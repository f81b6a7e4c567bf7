"""Answers that no sentence supports, for clients that see only the text: it says so."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keywise.documents.shading import is_supported
from keywise.server.model_queue import Delta, Event, Finished

if TYPE_CHECKING:
    from keywise.documents import Answer

NOTE: Final = "No sentence of the documents supports an answer."
CLOSEST: Final = " The closest words are: "
WRITTEN: Final = "\n\n"


def add_note(answer: Answer) -> Answer:
    """Return an answer whose text says that no sentence supports it, if none does.

    A quoted answer begins with the note. A written one ends with it, because its words are streamed before the model
    is done.

    Parameters
    ----------
    answer
        The answer.

    Examples
    --------
    >>> from keywise.documents import Answer
    >>> quoted = Answer("Ann", [], "Who?", "m", True, 9, 2, no_answer_share=0.9, sentences=2)
    >>> add_note(quoted).text
    'No sentence of the documents supports an answer. The closest words are: Ann'
    """
    if is_supported(answer):
        return answer
    if not answer.text:
        text = NOTE
    elif answer.sentences:
        text = f"{NOTE}{CLOSEST}{answer.text}"
    else:
        text = f"{answer.text}{WRITTEN}{NOTE}"
    # Its words cite nothing, so their places in the text are not needed.
    return replace(answer, text=text, words=[])


def remove_note(text: str) -> str:
    """Return the text of an earlier answer without the note, which would be taken for words of a document.

    Parameters
    ----------
    text
        What a client calls an earlier answer.

    Examples
    --------
    >>> remove_note("No sentence of the documents supports an answer. The closest words are: Ann")
    'Ann'
    """
    text = text.removeprefix(NOTE + CLOSEST).removesuffix(WRITTEN + NOTE)
    return "" if text == NOTE else text


async def note_unsupported(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """Yield the events of an answer with the note; the parts of the text still add up to the whole.

    Parameters
    ----------
    events
        From a job whose result is a `keywise.server.answering.Reply`.
    """
    # A quoted answer is one part, which waits until it is known whether a sentence supports it.
    parts = 0
    waiting = shown = ""
    async with aclosing(events) as told:
        async for event in told:
            if isinstance(event, Delta):
                parts += 1
                waiting += event.text
                if parts > 1:
                    yield Delta(waiting)
                    shown += waiting
                    waiting = ""
            elif isinstance(event, Finished):
                answer = add_note(event.result.answer)
                rest = answer.text[len(shown) :]
                if rest:
                    yield Delta(rest)
                yield Finished(replace(event.result, answer=answer))
            else:
                yield event
