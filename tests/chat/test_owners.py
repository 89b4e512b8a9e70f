"""Chats of several people in one history: whatever one of them asks for, the others' chats are not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.chat.database import ChatStoreError
from core.chat.records import CopiedChat, CopiedMessage
from core.chat.store import ChatStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChatStore]:
    store = ChatStore(tmp_path / "chats.sqlite3")
    yield store
    store.close()


def add(store: ChatStore, title: str) -> tuple[int, int]:
    """A chat with one message; the numbers of both."""
    chat = store.add(CopiedChat((CopiedMessage(None, "user", f"a secret of {title}", 0.0),), title, True))
    return chat, store.read(chat).messages[0].id


def test_each_sees_and_finds_their_own(store: ChatStore) -> None:
    titles = {"": "From before", "ann": "Ann's", "bob": "Bob's"}
    for owner, title in titles.items():
        add(store.of(owner), title)
    for owner, title in titles.items():
        own = store.of(owner)
        assert [info.title for info in own.chats()] == [title] and own.count() == 1
        assert {hit.title for hit in own.search("secret")} == {title}
        assert len(own.search(title)) == 2  # its title and its message


ON_CHATS: list[Callable[[ChatStore, int], Any]] = [
    lambda store, chat: store.info(chat),
    lambda store, chat: store.read(chat),
    lambda store, chat: store.copy(chat),
    lambda store, chat: store.rename(chat, "mine"),
    lambda store, chat: store.pin(chat, True),
    lambda store, chat: store.set_mode(chat, "chat"),
    lambda store, chat: store.add_draft(chat, "x"),
    lambda store, chat: store.drop_draft(chat, ""),
    lambda store, chat: store.set_character(chat, "Ada"),
    lambda store, chat: store.set_members(chat, ["Ada"]),
    lambda store, chat: store.set_lorebooks(chat, ["Town"], []),
    lambda store, chat: store.draft_files(chat),
    lambda store, chat: store.greet(chat, None, ["x"], "ada"),
    lambda store, chat: store.change_settings(chat, lambda settings: settings),
    lambda store, chat: store.delete_chat(chat),
    lambda store, chat: store.restore_chat(chat),
    lambda store, chat: store.purge_chat(chat),
    lambda store, chat: store.append_text(chat, "x"),
    lambda store, chat: store.append_user(chat, "x", None),
    lambda store, chat: store.begin_answer(chat, None),
]
ON_MESSAGES: list[Callable[[ChatStore, int], Any]] = [
    lambda store, message: store.branch(message),
    lambda store, message: store.begin_version(message),
    lambda store, message: store.add_version(message, "x"),
    lambda store, message: store.reopen_answer(message),
    lambda store, message: store.grow_answer(message, "x"),
    lambda store, message: store.finish_answer(message, "x", "done", {}),
    lambda store, message: store.edit(message, "x"),
    lambda store, message: store.hide(message, True),
    lambda store, message: store.delete(message),
    lambda store, message: store.delete_from(message),
    lambda store, message: store.restore(message),
    lambda store, message: store.show(message),
]


@pytest.mark.parametrize("number", range(len(ON_CHATS) + len(ON_MESSAGES)))
def test_nothing_can_be_done_to_a_chat_of_another(store: ChatStore, number: int) -> None:
    chat, message = add(store.of("ann"), "Ann's")
    before = store.of("ann").copy(chat)
    step = [*ON_CHATS, *ON_MESSAGES][number]
    for owner in ("bob", ""):
        with pytest.raises(ChatStoreError) as caught:
            step(store.of(owner), chat if number < len(ON_CHATS) else message)
        assert caught.value.key in ("chat_gone", "message_gone")
    assert store.of("ann").copy(chat) == before and store.of("ann").count() == 1


def test_every_method_that_names_a_chat_or_a_message_was_tried() -> None:
    """A new one has to be added above, or it could leave the owner out."""
    free = {"close", "of", "of_all", "create", "add", "add_all", "chats", "count", "search"}
    free |= {"last_used", "recent", "deleted", "count_deleted", "empty_trash"}
    methods = {name for name in vars(ChatStore) if not name.startswith("_")}
    tried = {name for step in [*ON_CHATS, *ON_MESSAGES] for name in step.__code__.co_names}
    assert methods - free == tried


def test_a_branch_is_its_owners_and_a_deleted_chat_comes_back_to_them(store: ChatStore) -> None:
    ann = store.of("ann")
    chat, message = add(ann, "Ann's")
    assert ann.info(ann.branch(message)).id != chat
    ann.delete_chat(chat)
    ann.restore_chat(chat)
    assert ann.count() == 2 and store.count() == 0


def test_each_has_a_trash_of_their_own(store: ChatStore) -> None:
    ann, bob = store.of("ann"), store.of("bob")
    chat, _ = add(ann, "Ann's")
    ann.delete_chat(chat)
    assert ann.count_deleted() == 1 and [one.info.id for one in ann.deleted()] == [chat]
    for other in (bob, store, store.of_all()):
        other.empty_trash(until_s=float("inf"))
        assert other.count_deleted() == 0 and other.deleted() == []
    with pytest.raises(ChatStoreError):
        bob.purge_chat(chat)
    ann.restore_chat(chat)
    assert ann.info(chat).title == "Ann's"


def test_an_answer_is_written_whoever_asked_for_it(store: ChatStore) -> None:
    ann, everybody = store.of("ann"), store.of_all()
    chat, message = add(ann, "Ann's")
    answer = everybody.begin_answer(chat, message)
    everybody.grow_answer(answer, "so far")
    everybody.finish_answer(answer, "so far, so good", "done", {})
    assert ann.read(chat).messages[-1].text == "so far, so good"
    assert everybody.chats() == [] and everybody.search("so far") == []
