"""Conversations of the page, kept on disk: questions, answers and their evidence."""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from keywise.documents.ablation import Ablation
from keywise.documents.answer import Answer, AnswerWord
from keywise.documents.blocks import BlockKind, Box
from keywise.documents.evidence import Evidence
from keywise.documents.files import Source
from keywise.documents.follow_up import Turn
from keywise.documents.page_images import Mark
from keywise.errors import OptionError
from keywise.server.api_errors import ApiError
from keywise.server.document_store import decode_source, encode_source
from keywise.util.atomic_write import atomic_write, sweep_unfinished

VERSION: Final = 1
KEPT_SENTENCES: Final = 50
MAX_TURNS: Final = 200
MAX_TITLE_CHARACTERS: Final = 80
_ID: Final = re.compile(r"conv-[0-9a-f]{32}")

PageMarks = dict[int, dict[int, tuple[Mark, ...]]]
"""For each document, by its number, the marks of each page."""


@dataclass(frozen=True)
class Conversation:
    """A conversation without its answers.

    Attributes
    ----------
    id
        Its identifier.
    title
        Its first question.
    created_at
        When it began, in seconds since 1970.
    documents
        Identifiers of its documents; empty for the library.
    titles
        Their names.
    turns
        Number of its questions.
    """

    id: str
    title: str
    created_at: int
    documents: tuple[str, ...]
    titles: tuple[str, ...]
    turns: int = 0


@dataclass(frozen=True)
class KeptTurn:
    """A question with its answer.

    Attributes
    ----------
    answer
        The answer with its best sentences, whose sources are `sources`, or the documents of the conversation.
    sources
        The passages of a library that were read; empty for documents.
    marks
        Places of the best sentences on pages.
    ablations
        Ranks, drops in nats and whether it is the control; empty before they are measured.
    """

    answer: Answer
    sources: tuple[Source, ...] = ()
    marks: PageMarks | None = None
    ablations: tuple[tuple[int, float, bool], ...] = ()

    def to_turn(self) -> Turn:
        """Return the turn for the questions that follow."""
        return Turn(self.answer.question, self.answer.text)


class ConversationStore:
    """Conversations in a folder: a record of each, and a file per answer.

    Parameters
    ----------
    folder
        The folder; it is created for its owner alone.
    limit
        Number of conversations that are kept; the oldest are removed.

    Raises
    ------
    OptionError
        The folder cannot be used.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sweep_unfinished(folder)
            records = [_read_record(path) for path in folder.glob("*.json")]
        except OSError as error:
            rule = "must be a folder that can be written"
            raise OptionError("data_dir", rule, got=str(folder), remedy=str(error.strerror)) from error
        self._conversations = {record.id: record for record in records if record is not None}

    def list_conversations(self) -> list[Conversation]:
        """Return all conversations, the newest first."""
        with self._lock:
            return sorted(self._conversations.values(), key=lambda each: -each.created_at)

    def get(self, conversation_id: str) -> Conversation:
        """Return a conversation.

        Raises
        ------
        ApiError
            There is none of this identifier.
        """
        with self._lock:
            conversation = self._conversations.get(conversation_id)
        if conversation is None:
            raise ApiError(404, "There is no such conversation here.", "conversation", "conversation_not_found")
        return conversation

    def create(self, documents: tuple[str, ...], titles: tuple[str, ...]) -> Conversation:
        """Begin a conversation; it is written with its first answer.

        Parameters
        ----------
        documents
            Identifiers of its documents.
        titles
            Their names.
        """
        conversation = Conversation(f"conv-{secrets.token_hex(16)}", "", int(time.time()), documents, titles)
        with self._lock:
            self._conversations[conversation.id] = conversation
            oldest = sorted(self._conversations.values(), key=lambda each: each.created_at)[: -self._limit]
        for each in oldest:
            self.remove(each.id)
        return conversation

    def add_turn(self, conversation_id: str, turn: KeptTurn) -> int:
        """Keep an answer and return its number, from 0.

        Raises
        ------
        ApiError
            There is no such conversation, or it has too many questions.
        """
        conversation = self.get(conversation_id)
        number = conversation.turns
        if number >= MAX_TURNS:
            raise ApiError(400, f"A conversation has at most {MAX_TURNS} questions: begin a new one.", "conversation")
        self.write_turn(conversation_id, number, turn)
        title = conversation.title or " ".join(turn.answer.question.split())[:MAX_TITLE_CHARACTERS]
        changed = replace(conversation, title=title, turns=number + 1)
        record = json.dumps({"version": VERSION, **asdict(changed)}).encode()
        with self._lock:
            with atomic_write(self._folder / f"{conversation_id}.json", private=True) as file:
                file.write(record)
            self._conversations[conversation_id] = changed
        return number

    def write_turn(self, conversation_id: str, number: int, turn: KeptTurn) -> None:
        """Write an answer, or replace it."""
        self.get(conversation_id)
        with atomic_write(self._folder / f"{conversation_id}-{number}.turn", private=True) as file:
            file.write(json.dumps(encode_turn(turn)).encode())

    def read_turn(self, conversation_id: str, number: int) -> KeptTurn:
        """Return an answer.

        Raises
        ------
        ApiError
            There is no such answer, or its file is damaged.
        """
        conversation = self.get(conversation_id)
        if not 0 <= number < conversation.turns:
            raise ApiError(404, "There is no such answer here.", "turn", "turn_not_found")
        try:
            return decode_turn(json.loads((self._folder / f"{conversation_id}-{number}.turn").read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ApiError(410, "The file of this answer is damaged: ask again.", "turn", "turn_damaged") from None

    def read_turns(self, conversation_id: str) -> list[KeptTurn]:
        """Return all answers of a conversation."""
        return [self.read_turn(conversation_id, number) for number in range(self.get(conversation_id).turns)]

    def remove(self, conversation_id: str) -> None:
        """Remove a conversation.

        Raises
        ------
        ApiError
            There is none of this identifier.
        """
        conversation = self.get(conversation_id)
        with self._lock:
            self._conversations.pop(conversation_id, None)
            (self._folder / f"{conversation_id}.json").unlink(missing_ok=True)
            for number in range(conversation.turns):
                (self._folder / f"{conversation_id}-{number}.turn").unlink(missing_ok=True)


def encode_turn(turn: KeptTurn) -> dict[str, Any]:
    """Return an answer as plain data for JSON, with its best sentences alone.

    Parameters
    ----------
    turn
        The answer.
    """
    cited = {rank for word in turn.answer.words for rank in word.sources}
    evidence = [item for item in turn.answer.evidence if item.rank <= KEPT_SENTENCES or item.rank in cited]
    return {
        "answer": asdict(replace(turn.answer, evidence=evidence)),
        "sources": [{"name": source.name, **encode_source(source)} for source in turn.sources],
        "marks": [
            [document, page, [asdict(mark) for mark in marks]]
            for document, pages in (turn.marks or {}).items()
            for page, marks in pages.items()
        ],
        "ablations": turn.ablations,
    }


def decode_turn(data: dict[str, Any]) -> KeptTurn:
    """Return the answer that `encode_turn` encoded.

    Parameters
    ----------
    data
        From JSON.
    """
    fields = dict(data["answer"])
    words = [AnswerWord(word["start"], word["end"], tuple(word["sources"])) for word in fields.pop("words")]
    evidence = [_decode_evidence(item) for item in fields.pop("evidence")]
    marks: PageMarks = {}
    for document, page, on_page in data["marks"]:
        marks.setdefault(document, {})[page] = tuple(Mark(**mark) for mark in on_page)
    return KeptTurn(
        Answer(**fields, words=words, evidence=evidence),
        tuple(decode_source(source, source["name"]) for source in data["sources"]),
        marks,
        tuple((rank, drop, control) for rank, drop, control in data["ablations"]),
    )


def list_ablations(ablations: list[Ablation]) -> tuple[tuple[int, float, bool], ...]:
    """Return ablations as they are kept."""
    return tuple((each.evidence.rank, each.drop_nats, each.control) for each in ablations)


def _decode_evidence(fields: dict[str, Any]) -> Evidence:
    boxes = tuple(Box(**box) for box in fields["boxes"])
    return Evidence(
        **{
            **fields,
            "boxes": boxes,
            "heading_path": tuple(fields["heading_path"]),
            "kind": BlockKind(fields["kind"]),
        }
    )


def _read_record(path: Path) -> Conversation | None:
    """Return the record of a conversation; None if it is damaged or of another version."""
    try:
        fields = json.loads(path.read_bytes())
        if fields.pop("version") != VERSION or not _ID.fullmatch(fields["id"]) or path.stem != fields["id"]:
            return None
        return Conversation(**{**fields, "documents": tuple(fields["documents"]), "titles": tuple(fields["titles"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
