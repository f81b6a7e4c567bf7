"""Conversations on disk: the same after a restart, whole or not there, within limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from keywise.documents import Answer, AnswerWord, Evidence, Source
from keywise.documents.blocks import BlockKind, Box
from keywise.documents.page_images import Mark
from keywise.server.api_errors import ApiError
from keywise.server.conversation_store import ConversationStore, KeptTurn

BOX = Box(0, 4, 2, 72.0, 700.0, 96.0, 712.0)
SOURCE = Source("note", "It rains. It is dry.")


def make_turn(sentences: int = 2, *, source: Source | None = None) -> KeptTurn:
    scores = (0.5, 1.0, 1.0, 1.0, 0.4, 1.0, 1.0, None, 0.5)
    evidence = [
        Evidence("It rains.", 0, 9, "note", *scores, number, 2, (BOX,), ("A", "B"), BlockKind.LIST_ITEM)
        for number in range(1, sentences + 1)
    ]
    answer = Answer("rains", evidence, "What?", "m", True, 9, 2, words=[AnswerWord(0, 5, (1, sentences))])
    marks = {0: {2: (Mark(1, 10.0, 20.0, 30.0, 4.0),)}}
    return KeptTurn(answer, () if source is None else (source,), marks, ((1, 2.5, False), (2, 0.1, True)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "conversations"


def test_a_conversation_is_the_same_after_a_restart(folder: Path) -> None:
    store = ConversationStore(folder, 10)
    begun = store.create(("file-1",), ("note.txt",))
    turns = [make_turn(), make_turn(source=read_blocks(SOURCE))]
    assert [store.add_turn(begun.id, turn) for turn in turns] == [0, 1]
    again = ConversationStore(folder, 10)
    assert again.list_conversations() == store.list_conversations()
    assert (again.get(begun.id).title, again.get(begun.id).turns) == ("What?", 2)
    assert again.read_turns(begun.id) == turns
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def read_blocks(source: Source) -> Source:
    """Return a source whose blocks are known, as passages have them."""
    from keywise.documents.files import read_content

    return read_content(source.text.encode(), "note.txt", isolated=True)


def test_the_best_and_the_cited_sentences_are_kept(folder: Path) -> None:
    store = ConversationStore(folder, 10)
    begun = store.create((), ())
    store.add_turn(begun.id, make_turn(200))
    ranks = [item.rank for item in store.read_turn(begun.id, 0).answer.evidence]
    assert ranks == [*range(1, 51), 200]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b"[" * 5000])
def test_damaged_files_are_no_conversation_and_no_answer(folder: Path, content: bytes) -> None:
    store = ConversationStore(folder, 10)
    begun = store.create((), ())
    store.add_turn(begun.id, make_turn())
    (folder / f"{begun.id}-0.turn").write_bytes(content)
    with pytest.raises(ApiError) as caught:
        store.read_turn(begun.id, 0)
    assert caught.value.code == "turn_damaged"
    (folder / f"{begun.id}.json").write_bytes(content)
    assert ConversationStore(folder, 10).list_conversations() == []


def test_the_oldest_conversations_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ConversationStore(folder, 2)
    begun = []
    for number in range(4):
        monkeypatch.setattr("keywise.server.conversation_store.time.time", lambda n=number: 1000.0 + n)
        begun.append(store.create((), ()))
        store.add_turn(begun[-1].id, make_turn())
    assert [each.id for each in store.list_conversations()] == [begun[3].id, begun[2].id]
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("conversation_id", ["", "../x", f"conv-{0:032}", "/etc/passwd"])
def test_an_unknown_identifier_is_never_a_path(folder: Path, conversation_id: str) -> None:
    store = ConversationStore(folder, 2)
    for use in (store.get, store.read_turns, store.remove):
        with pytest.raises(ApiError) as caught:
            use(conversation_id)
        assert caught.value.status == 404
