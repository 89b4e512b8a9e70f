"""The chat history: everything a person does to a chat, kept; a stale page changes nothing."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.chat.database import ChatStoreError
from core.chat.store import KEEP_DELETED_S, ChatStore


class Clock:
    """A time that passes by itself, and jumps when told."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "chats.sqlite3"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[ChatStore]:
    store = ChatStore(path, now=clock)
    yield store
    store.close()


def say(store: ChatStore, chat: int, *texts: str) -> list[int]:
    """Questions and answers in turn, after what is there; their ids."""
    ids = []
    for text in texts:
        shown = store.read(chat).messages
        after = shown[-1].id if shown else None
        if shown and shown[-1].role == "user":
            ids.append(store.begin_answer(chat, after))
            store.finish_answer(ids[-1], text, "done", {})
        else:
            ids.append(store.append_user(chat, text, after))
    return ids


def texts(store: ChatStore, chat: int) -> list[str]:
    return [message.text for message in store.read(chat).messages]


def refusal(caught: pytest.ExceptionInfo[ChatStoreError]) -> str:
    assert caught.value.sentence("zh") != caught.value.sentence("en")
    return caught.value.key


# Messages -----------------------------------------------------------------------------------------------------------


def test_what_was_said_is_there_after_a_restart(path: Path) -> None:
    store = ChatStore(path)
    chat = store.create("chat", "Ada", {"preset": "precise"}, ["Hello, I am Ada.", "Hi."])
    say(store, chat, "Who are you? 你是谁？")
    answer = store.begin_answer(chat, store.read(chat).messages[-1].id, "Well")
    store.grow_answer(answer, "Well, I am")
    store.finish_answer(answer, "Well, I am Ada.", "done", {"tokens": 5, "tokens_per_s": 49.5})
    before = store.read(chat)
    store.close()
    again = ChatStore(path)
    assert again.read(chat) == before
    assert [message.text for message in before.messages] == [
        "Hello, I am Ada.",
        "Who are you? 你是谁？",
        "Well, I am Ada.",
    ]
    assert before.messages[2].stats == {"tokens": 5, "tokens_per_s": 49.5}
    assert (before.info.mode, before.info.character, before.info.settings) == ("chat", "Ada", {"preset": "precise"})
    again.close()


def test_greetings_are_versions_of_the_first_message(store: ChatStore) -> None:
    chat = store.create("chat", greetings=["one", "two", "three"])
    (first,) = store.read(chat).messages
    assert first.text == "one" and len(first.versions) == 3
    store.show(first.versions[2])
    assert texts(store, chat) == ["three"]


def test_regenerate_keeps_the_old_answer_with_what_followed_it(store: ChatStore) -> None:
    chat = store.create("instruct")
    _, old, _, _ = say(store, chat, "q1", "a1", "q2", "a2")
    new = store.begin_version(old)
    store.finish_answer(new, "a1 anew", "done", {})
    assert texts(store, chat) == ["q1", "a1 anew"]
    assert store.read(chat).messages[1].versions == (old, new)
    store.show(old)
    assert texts(store, chat) == ["q1", "a1", "q2", "a2"]


def test_an_edit_keeps_what_follows_and_the_old_words(store: ChatStore) -> None:
    chat = store.create("instruct")
    question, *_ = say(store, chat, "q1", "a1", "q2")
    edited = store.edit(question, "q1, better")
    assert texts(store, chat) == ["q1, better", "a1", "q2"]
    assert store.read(chat).messages[0].versions == (question, edited)
    store.show(question)
    assert texts(store, chat) == ["q1"]
    store.show(edited)
    assert texts(store, chat) == ["q1, better", "a1", "q2"]
    assert store.edit(edited, "q1, better") == edited


def test_asking_something_else_begins_a_way_of_its_own(store: ChatStore) -> None:
    chat = store.create("instruct")
    question, *_ = say(store, chat, "q1", "a1")
    other = store.add_version(question, "other")
    assert texts(store, chat) == ["other"]
    say(store, chat, "its answer")
    store.show(question)
    assert texts(store, chat) == ["q1", "a1"]
    store.show(other)
    assert texts(store, chat) == ["other", "its answer"]


def test_a_message_taken_out_leaves_what_follows_and_comes_back(store: ChatStore) -> None:
    chat = store.create("instruct")
    ids = say(store, chat, "q1", "a1", "q2", "a2")
    store.delete(ids[1])
    assert texts(store, chat) == ["q1", "q2", "a2"]
    store.restore(ids[1])
    assert texts(store, chat) == ["q1", "a1", "q2", "a2"]


def test_deleting_one_version_shows_its_neighbour(store: ChatStore) -> None:
    chat = store.create("instruct")
    _, first = say(store, chat, "q", "a1")
    second = store.begin_version(first)
    store.finish_answer(second, "a2", "done", {})
    third = store.begin_version(second)
    store.finish_answer(third, "a3", "done", {})
    store.delete(third)
    assert texts(store, chat) == ["q", "a2"]
    store.restore(third)
    store.show(second)
    store.delete(second)
    assert texts(store, chat) == ["q", "a1"] and store.read(chat).messages[1].versions == (first, third)
    store.delete(first)
    assert texts(store, chat) == ["q", "a3"]
    store.delete(third)
    assert texts(store, chat) == ["q"]
    store.restore(second)
    assert texts(store, chat) == ["q", "a2"] and store.read(chat).messages[1].versions == (second,)


def test_a_chat_cut_short_comes_back_with_all_versions(store: ChatStore) -> None:
    chat = store.create("instruct")
    ids = say(store, chat, "q1", "a1", "q2", "a2")
    version = store.edit(ids[1], "a1 edited")
    store.delete_from(version)
    assert texts(store, chat) == ["q1"]
    later = say(store, chat, "another answer")[0]
    store.restore(version)
    assert texts(store, chat) == ["q1", "a1 edited", "q2", "a2"]
    assert store.read(chat).messages[1].versions == (ids[1], version, later)


def test_a_branch_copies_the_way_up_to_a_message(store: ChatStore) -> None:
    chat = store.create("chat", "Ada", {"preset": "x"})
    ids = say(store, chat, "q1", "a1", "q2")
    store.add_draft(chat, "typed")
    branch = store.branch(ids[1])
    say(store, branch, "elsewhere")
    assert texts(store, branch) == ["q1", "a1", "elsewhere"] and texts(store, chat) == ["q1", "a1", "q2"]
    info = store.info(branch)
    assert (info.mode, info.character, info.settings, info.draft) == ("chat", "Ada", {"preset": "x"}, "")


def test_a_branch_can_have_a_title_of_its_own(store: ChatStore) -> None:
    chat = store.create("instruct")
    ids = say(store, chat, "q1", "a1")
    branch = store.branch(ids[1], "q1 (branch)")
    say(store, branch, "elsewhere")
    assert (store.info(branch).title, store.info(chat).title) == ("q1 (branch)", "q1")


def test_the_title_is_that_of_the_version_that_is_shown(store: ChatStore) -> None:
    chat = store.create("instruct")
    first = say(store, chat, "Why is the sky blue?", "a1")[0]
    second = store.add_version(first, "Why is the grass green?")
    assert store.info(chat).title == "Why is the grass green?"
    store.show(first)
    assert store.info(chat).title == "Why is the sky blue?"
    store.rename(chat, "My own")
    store.show(second)
    assert store.info(chat).title == "My own"


@pytest.mark.parametrize(("asked", "left"), [("one", ""), ("one\n\ntwo", ""), ("on", "one"), ("onely", "one")])
def test_a_draft_that_is_asked_waits_no_longer(store: ChatStore, asked: str, left: str) -> None:
    chat = store.create("instruct")
    store.add_draft(chat, "one")
    store.append_user(chat, asked, None)
    assert store.info(chat).draft == left


def test_an_answer_goes_on_where_it_ended(store: ChatStore) -> None:
    chat = store.create("instruct")
    answer = say(store, chat, "q", "Once")[1]
    store.reopen_answer(answer)
    assert store.read(chat).messages[1].state == "writing"
    store.finish_answer(answer, "Once upon a time", "stopped", {"reason": "cancelled"})
    assert texts(store, chat) == ["q", "Once upon a time"] and store.read(chat).messages[1].state == "stopped"


def test_an_answer_that_went_on_without_a_word_keeps_its_figures(store: ChatStore) -> None:
    """A continuation that failed at once replaced the model and the speed under an answer with its own nothing."""
    chat = store.create("instruct")
    answer = say(store, chat, "q", "Once")[1]
    store.reopen_answer(answer)
    figures = {"model": "first", "tokens": 5, "tokens_per_s": 9.5}
    store.finish_answer(answer, "Once", "done", {**figures, "reason": "length"})
    fault = {"reason": "failed", "error": {"key": "gone", "params": {}}}
    for state, ended in (("failed", fault), ("stopped", {"reason": "cancelled"})):
        store.reopen_answer(answer)
        store.finish_answer(answer, "Once", state, {"model": "other", "tokens": 0, **ended})
        assert store.read(chat).messages[1].stats == {**figures, **ended}
    store.reopen_answer(answer)
    store.finish_answer(answer, "Once upon", "done", {"model": "other", "tokens": 1, "reason": "stop"})
    assert store.read(chat).messages[1].stats == {"model": "other", "tokens": 1, "reason": "stop"}


def test_a_notebook_is_one_text_with_its_former_states(store: ChatStore) -> None:
    chat = store.create("notebook")
    first = store.append_text(chat, "Once")
    second = store.edit(first, "Once upon")
    store.reopen_answer(second)
    store.finish_answer(second, "Once upon a time", "done", {})
    assert texts(store, chat) == ["Once upon a time"]
    store.show(first)
    assert texts(store, chat) == ["Once"]


def test_half_characters_are_kept_as_a_mark(store: ChatStore) -> None:
    chat = store.create("chat", "A\ud800")
    say(store, chat, "broken \ud800 text", "and\x00null")
    store.rename(chat, "\udfff")
    assert texts(store, chat) == ["broken ? text", "and\x00null"]


# Pages that are behind ----------------------------------------------------------------------------------------------


def test_a_stale_page_cannot_send_into_a_chat_that_went_on(store: ChatStore) -> None:
    chat = store.create("instruct")
    ids = say(store, chat, "q1", "a1", "q2", "a2")
    for after in (None, *ids[:-1]):
        with pytest.raises(ChatStoreError) as caught:
            store.append_user(chat, "late", after)
        assert refusal(caught) == "chat_moved_on"
    assert texts(store, chat) == ["q1", "a1", "q2", "a2"]


def test_what_is_not_shown_any_more_cannot_be_changed(store: ChatStore) -> None:
    chat = store.create("instruct")
    ids = say(store, chat, "q1", "a1")
    store.edit(ids[1], "a1 edited")
    operations = [
        lambda: store.edit(ids[1], "late"),
        lambda: store.add_version(ids[1], "late"),
        lambda: store.begin_version(ids[1]),
        lambda: store.delete(ids[1]),
        lambda: store.delete_from(ids[1]),
        lambda: store.branch(ids[1]),
        lambda: store.reopen_answer(ids[1]),
    ]
    before = store.read(chat)
    for operation in operations:
        with pytest.raises(ChatStoreError) as caught:
            operation()
        assert refusal(caught) == "message_changed"
    assert store.read(chat) == before


def test_nothing_is_done_to_messages_that_never_were(store: ChatStore) -> None:
    chat = store.create("instruct")
    operations = [
        lambda: store.edit(99, "x"),
        lambda: store.delete(99),
        lambda: store.restore(99),
        lambda: store.show(99),
        lambda: store.grow_answer(99, "x"),
        lambda: store.finish_answer(99, "x", "done", {}),
    ]
    for operation in operations:
        with pytest.raises(ChatStoreError) as caught:
            operation()
        assert refusal(caught) == "message_gone"
    ids = say(store, chat, "q")
    with pytest.raises(ChatStoreError) as caught:
        store.restore(ids[0])
    assert refusal(caught) == "message_gone"
    store.delete(ids[0])
    with pytest.raises(ChatStoreError):
        store.show(ids[0])


def test_a_deleted_chat_takes_nothing_until_it_is_back(store: ChatStore) -> None:
    chat = store.create("instruct")
    ids = say(store, chat, "q", "a")
    store.delete_chat(chat)
    operations = [
        lambda: store.append_user(chat, "x", ids[-1]),
        lambda: store.edit(ids[0], "x"),
        lambda: store.rename(chat, "x"),
        lambda: store.add_draft(chat, "x"),
        lambda: store.delete_chat(chat),
        lambda: store.read(chat),
        lambda: store.info(chat),
        lambda: store.copy(chat),
        lambda: store.read(999),
        lambda: store.restore_chat(999),
    ]
    for operation in operations:
        with pytest.raises(ChatStoreError) as caught:
            operation()
        assert refusal(caught) == "chat_gone"
    assert store.chats() == [] and store.count() == 0
    store.restore_chat(chat)
    assert texts(store, chat) == ["q", "a"]


def test_while_an_answer_is_written_its_chat_waits(store: ChatStore) -> None:
    chat = store.create("instruct")
    question = say(store, chat, "q")[0]
    answer = store.begin_answer(chat, question)
    operations = [
        lambda: store.append_user(chat, "x", answer),
        lambda: store.begin_version(answer),
        lambda: store.edit(answer, "x"),
        lambda: store.delete(answer),
        lambda: store.delete_from(question),
        lambda: store.reopen_answer(answer),
    ]
    for operation in operations:
        with pytest.raises(ChatStoreError) as caught:
            operation()
        assert refusal(caught) == "chat_is_writing"
    store.finish_answer(answer, "a", "done", {})
    with pytest.raises(ChatStoreError):
        store.grow_answer(answer, "late")
    assert texts(store, chat) == ["q", "a"]


def test_an_answer_of_a_deleted_chat_is_written_on_for_its_undo(store: ChatStore) -> None:
    chat = store.create("instruct")
    answer = store.begin_answer(chat, say(store, chat, "q")[0])
    store.delete_chat(chat)
    store.finish_answer(answer, "all of it", "done", {})
    store.restore_chat(chat)
    assert texts(store, chat) == ["q", "all of it"]


def test_of_tabs_that_send_at_once_one_is_told_that_it_is_late(store: ChatStore) -> None:
    chat = store.create("instruct")
    start, outcomes = threading.Barrier(8), []

    def send(number: int) -> None:
        start.wait()
        try:
            outcomes.append(store.append_user(chat, f"from {number}", None) > 0)
        except ChatStoreError as error:
            outcomes.append(error.key == "chat_moved_on" and None)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 1 and outcomes.count(None) == 7 and len(texts(store, chat)) == 1


# Chats --------------------------------------------------------------------------------------------------------------


def test_pinned_chats_come_first_then_those_that_changed_last(store: ChatStore) -> None:
    chats = [store.create("instruct") for _ in range(5)]
    say(store, chats[1], "news")
    store.pin(chats[0], True)
    assert [chat.id for chat in store.chats()] == [chats[0], chats[1], chats[4], chats[3], chats[2]]
    assert [chat.id for chat in store.chats(limit=2, offset=2)] == [chats[4], chats[3]]
    store.rename(chats[2], "a name moves nothing")
    store.pin(chats[0], False)
    assert [chat.id for chat in store.chats()] == [chats[1], chats[4], chats[3], chats[2], chats[0]]
    assert store.count() == 5


def test_a_title_is_proposed_once_and_a_persons_own_stays(store: ChatStore) -> None:
    chat = store.create("instruct")
    say(store, chat, "What is the capital\nof France?", "Paris", "And of Spain?")
    assert store.info(chat).title == "What is the capital of France?" and not store.info(chat).title_is_own
    store.rename(chat, "  Capitals\n ")
    assert store.info(chat).title == "Capitals" and store.info(chat).title_is_own
    store.rename(chat, "")
    assert store.info(chat).title == "What is the capital of France?"


def test_a_proposed_title_follows_what_is_shown(store: ChatStore) -> None:
    """The words of a message that was deleted stood on in the title."""
    chat = store.create("chat", greetings=["Hello."])
    first, _, second = say(store, chat, "A secret of mine", "I see", "And what of the weather?")
    store.delete(first)
    assert store.info(chat).title == "And what of the weather?"
    store.restore(first)
    assert store.info(chat).title == "A secret of mine"
    store.edit(first, "Nothing of that kind")
    assert store.info(chat).title == "Nothing of that kind"
    store.delete_from(store.read(chat).messages[1].id)
    assert store.info(chat).title == ""


def test_settings_and_drafts_are_each_kept(store: ChatStore) -> None:
    chat = store.create("instruct")
    store.change_settings(chat, lambda _: {"sampling": {"temperature": 0.1}})
    store.set_character(chat, "Ada")
    store.add_draft(chat, "not sent yet")
    info = store.info(chat)
    assert info.settings == {"sampling": {"temperature": 0.1}} and info.draft == "not sent yet"
    assert (info.mode, info.character) == ("chat-instruct", "Ada")


def test_the_trash_holds_what_was_deleted_until_it_is_restored_or_emptied(path: Path, clock: Clock) -> None:
    store = ChatStore(path, now=clock)
    first, second, third, kept = (store.create("instruct") for _ in range(4))
    for chat in (first, second, third):
        clock.now_s += 1
        say(store, chat, f"question {chat}", "answer")
        store.delete_chat(chat)
    whole = [(one.info.id, one.info.title) for one in store.deleted()]
    assert whole == [(chat, f"question {chat}") for chat in (third, second, first)]
    assert [one.info.id for one in store.deleted(limit=1)] == [third] and store.count_deleted() == 3
    store.restore_chat(second)
    assert texts(store, second) == ["question 2", "answer"] and store.count_deleted() == 2
    with pytest.raises(ChatStoreError) as caught:
        store.purge_chat(second)  # Another tab has restored it.
    assert refusal(caught) == "chat_gone"
    store.purge_chat(first)
    for step in (store.purge_chat, store.restore_chat):
        with pytest.raises(ChatStoreError):
            step(first)
    seen = store.deleted()
    store.delete_chat(second)
    store.empty_trash(until_s=seen[0].deleted_s)
    assert [one.info.id for one in store.deleted()] == [second], "what was deleted after that stays"
    store.empty_trash(until_s=store.deleted()[0].deleted_s)
    assert store.count_deleted() == 0 and [info.id for info in store.chats()] == [kept]
    store.close()


def test_old_deletions_go_while_the_store_stays_open(path: Path, clock: Clock) -> None:
    store = ChatStore(path, now=clock)
    old, young = store.create("instruct"), store.create("instruct")
    store.delete_chat(old)
    clock.now_s += KEEP_DELETED_S + 1
    assert store.deleted() == [] and store.count_deleted() == 0
    store.delete_chat(young)
    with pytest.raises(ChatStoreError):
        store.restore_chat(old)
    assert [one.info.id for one in store.deleted()] == [young]
    store.close()


def test_recent_chats_are_the_last_ones_pinned_or_not(path: Path, clock: Clock) -> None:
    store = ChatStore(path, now=clock)
    chats = []
    for _ in range(3):
        clock.now_s += 1
        chats.append(store.create("instruct"))
    store.pin(chats[0], True)
    assert [info.id for info in store.recent(2)] == [chats[2], chats[1]]
    store.close()


def test_a_deleted_chat_is_gone_for_good_after_a_while(path: Path, clock: Clock) -> None:
    store = ChatStore(path, now=clock)
    old, young = store.create("instruct"), store.create("instruct")
    for number in range(30):
        say(store, old, f"message {number}")
    store.delete_chat(old)
    clock.now_s += KEEP_DELETED_S - 100
    store.delete_chat(young)
    store.close()
    clock.now_s += 200
    again = ChatStore(path, now=clock)
    with pytest.raises(ChatStoreError):
        again.restore_chat(old)
    again.restore_chat(young)
    again.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM messages WHERE chat = ?", (old,)).fetchone() == (0,)


def test_answers_that_a_killed_process_left_are_stopped(path: Path) -> None:
    killed = ChatStore(path)
    chat = killed.create("instruct")
    answer = killed.begin_answer(chat, say(killed, chat, "q")[0])
    killed.grow_answer(answer, "half of")
    second = ChatStore(path)
    assert second.read(chat).messages[-1].state == "writing", "the first process is still at work"
    killed.grow_answer(answer, "half of it")
    second.close()
    killed.close()
    again = ChatStore(path)
    message = again.read(chat).messages[-1]
    assert (message.state, message.text) == ("stopped", "half of it")
    again.close()


# Search -------------------------------------------------------------------------------------------------------------


def test_a_search_finds_words_in_any_language_and_case(store: ChatStore) -> None:
    chat = store.create("instruct")
    ids = say(store, chat, "今天天气很好", "Die STRASSE ist lang, die Straße ist schmal.", "Ünïcode")
    assert [hit.message for hit in store.search("天气") if hit.message] == [ids[0]]
    assert [hit.message for hit in store.search("straße")] == [ids[1]]
    assert [hit.message for hit in store.search("schmal strasse")] == [ids[1]]
    assert [hit.message for hit in store.search("üNÏ")] == [ids[2]]
    assert store.search("schmal 天气") == [] and store.search("  ") == [] and store.search("%") == []


def test_a_hit_shows_the_words_around_it(store: ChatStore) -> None:
    chat = store.create("instruct")
    say(store, chat, "first question", "x " * 200 + "the\nNEEDLE is here " + "y " * 200)
    (hit,) = store.search("needle")
    assert hit.snippet[hit.begin : hit.end] == "NEEDLE" and len(hit.snippet) < 200
    assert hit.snippet.startswith("…") and hit.snippet.endswith("…") and "the NEEDLE is here" in hit.snippet
    assert (hit.chat, hit.title, hit.role) == (chat, "first question", "assistant")


def test_a_search_finds_titles_and_versions_but_nothing_deleted(store: ChatStore) -> None:
    chat, other = store.create("instruct"), store.create("instruct")
    store.rename(chat, "about needles")
    ids = say(store, chat, "a needle", "no", "a needle again", "an answer")
    edited = store.edit(ids[0], "a pin")
    hits = store.search("needle")
    assert [hit.message for hit in hits] == [None, ids[2], ids[0]]
    store.show(ids[0])
    assert texts(store, chat) == ["a needle"]
    store.show(edited)
    store.delete_from(store.read(chat).messages[1].id)
    assert [hit.message for hit in store.search("needle")] == [None, ids[0]]
    store.delete_chat(chat)
    say(store, other, "one needle", "two needles", "three needles")
    assert len(store.search("needle", limit=2)) == 2
    assert all(hit.chat == other for hit in store.search("needle"))


# Any sequence of changes --------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Version:
    """One version in the plain model of a chat: places one after the other, each with versions."""

    id: int
    text: str
    place: Place
    next: Place = field(default_factory=lambda: Place())
    is_alone: bool = False
    cut_by: int | None = None


@dataclass(eq=False)
class Place:
    versions: list[Version] = field(default_factory=list)
    shown: Version | None = None

    def living(self) -> list[Version]:
        return [version for version in self.versions if not version.is_alone and version.cut_by is None]

    def add(self, version: Version) -> None:
        self.versions.append(version)
        self.versions.sort(key=lambda version: version.id)
        self.shown = version


class Changes(RuleBasedStateMachine):
    """The store does what the plain model does, also when it is closed and opened in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "chats.sqlite3"
        self.store = ChatStore(self.path)
        self.chat = self.store.create("instruct")
        self.first = Place()
        self.all: list[Version] = []
        self.removed: list[Version] = []
        self.count = 0

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def walk(self) -> tuple[list[Version], Place]:
        path, place = [], self.first
        while place.shown is not None:
            if not place.shown.is_alone:
                path.append(place.shown)
            place = place.shown.next
        return path, place

    def text(self) -> str:
        self.count += 1
        return f"text {self.count}"

    def keep(self, number: int, text: str, place: Place) -> Version:
        version = Version(number, text, place)
        place.add(version)
        self.all.append(version)
        return version

    @rule()
    def append(self) -> None:
        path, place = self.walk()
        text = self.text()
        self.keep(self.store.append_user(self.chat, text, path[-1].id if path else None), text, place)

    @precondition(lambda self: self.walk()[0])
    @rule(data=st.data())
    def add_version(self, data: st.DataObject) -> None:
        old, text = data.draw(st.sampled_from(self.walk()[0])), self.text()
        self.keep(self.store.add_version(old.id, text), text, old.place)

    @precondition(lambda self: self.walk()[0])
    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        old, text = data.draw(st.sampled_from(self.walk()[0])), self.text()
        new = self.keep(self.store.edit(old.id, text), text, old.place)
        new.next, old.next = old.next, new.next

    @precondition(lambda self: self.walk()[0])
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.walk()[0]))
        self.store.delete(gone.id)
        if any(version.cut_by is None for version in gone.next.versions):
            gone.is_alone = True
        else:
            gone.cut_by = gone.id
            before = [version for version in gone.place.living() if version.id < gone.id]
            gone.place.shown = (before[-1:] or gone.place.living()[:1] or [None])[0]
        self.removed.append(gone)

    @precondition(lambda self: self.walk()[0])
    @rule(data=st.data())
    def delete_from(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.walk()[0]))
        self.store.delete_from(gone.id)
        for version in gone.place.living():
            version.cut_by = gone.id
        gone.place.shown = None
        self.removed.append(gone)

    @precondition(lambda self: self.removed)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        back = data.draw(st.sampled_from(self.removed))
        self.removed.remove(back)
        self.store.restore(back.id)
        back.is_alone = False
        for version in back.place.versions:
            if version.cut_by == back.id:
                version.cut_by = None
        back.place.shown = back

    @precondition(lambda self: self.walk()[0])
    @rule(data=st.data())
    def choose(self, data: st.DataObject) -> None:
        wanted = data.draw(st.sampled_from(data.draw(st.sampled_from(self.walk()[0])).place.living()))
        self.store.show(wanted.id)
        wanted.place.shown = wanted

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = ChatStore(self.path)

    @invariant()
    def is_the_same(self) -> None:
        expected = [(v.id, v.text, tuple(one.id for one in v.place.living())) for v in self.walk()[0]]
        found = self.store.read(self.chat).messages
        assert [(message.id, message.text, message.versions) for message in found] == expected

    @invariant()
    def nothing_is_lost(self) -> None:
        with sqlite3.connect(self.path) as db:
            kept = dict(db.execute("SELECT id, text FROM messages"))
        assert kept == {version.id: version.text for version in self.all}


Changes.TestCase.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestChanges = Changes.TestCase


def test_a_title_is_not_written_over_one_that_was_not_seen(store: ChatStore) -> None:
    chat = store.create("instruct")
    store.rename(chat, "theirs", expected="")
    with pytest.raises(ChatStoreError) as caught:
        store.rename(chat, "mine", expected="")
    assert caught.value.key == "chat_changed" and store.info(chat).title == "theirs"
    store.rename(chat, "theirs", expected="")


def test_settings_are_changed_from_what_holds_now(store: ChatStore) -> None:
    chat = store.create("instruct", settings={"a": 1})
    store.change_settings(chat, lambda settings: settings | {"b": 2})

    def refuse(settings: dict[str, Any]) -> dict[str, Any]:
        raise ChatStoreError("chat_changed", text="x")

    with pytest.raises(ChatStoreError):
        store.change_settings(chat, refuse)
    assert store.info(chat).settings == {"a": 1, "b": 2}


def test_a_mode_leaves_the_character_and_a_character_takes_its_mode(store: ChatStore) -> None:
    chat = store.create("instruct")
    modes = []
    for character in ("Ada", ""):
        store.set_character(chat, character)
        modes.append((store.info(chat).mode, store.info(chat).character))
    store.set_character(chat, "Ada")
    store.set_mode(chat, "chat")
    assert (store.info(chat).mode, store.info(chat).character) == ("chat", "Ada")
    store.set_character(chat, "Bob")
    assert modes == [("chat-instruct", "Ada"), ("instruct", "")] and store.info(chat).mode == "chat"


def test_what_is_noted_down_is_dropped_only_as_it_was_sent(store: ChatStore) -> None:
    chat = store.create("instruct")
    store.add_draft(chat, "one")
    store.add_draft(chat, "two")
    store.drop_draft(chat, "one")
    assert store.info(chat).draft == "one\n\ntwo"
    store.drop_draft(chat, "one\n\ntwo")
    assert store.info(chat).draft == ""
