"""Files of a question on the chat page, from what the browser sends to what the model reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.support.checkpoints import make_chat_checkpoint
from tests.support.pages import ask, click, finish, load, open_tab, run, words
from tests.support.widgets import named
from ui.chat.files import MAX_CHATS, MAX_FILES, size_words
from ui.shared import resources

NOTES = ("notes.txt", "The cat is grey.\n".encode("utf-16"))
CAT = ("cat.png", b"\x89PNG\r\n\x1a\n\0\0")
LOG = ("long.log", b"line of a log\n" * 3000)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_checkpoint(tmp_path_factory.mktemp("roomy") / "tiny", 2048)


def send(tab: AppTest, *files: tuple[str, bytes], text: str | None = None) -> AppTest:
    """Send files with words or, as the browser does by itself, without."""
    field = named(tab.chat_input, "chat_input")
    for name, data in files:
        field.upload(name, data)
    if text is not None:
        field.set_value(text)
    return run(tab)


def open_chat(**query: str) -> AppTest:
    load(open_tab(), "tiny")
    return open_tab("3_Chat", query=query)


def chips(tab: AppTest) -> list[str]:
    return [one.label for one in tab.button if str(one.key).startswith("chat_file_") and " · " in one.label]


def test_a_file_waits_beside_the_input_and_goes_with_the_next_words(models: Path) -> None:
    tab = send(open_chat(), NOTES)
    (chip,) = chips(tab)
    assert chip.startswith("notes.txt · 36 bytes · ") and chip.endswith("tokens") and not history()
    finish(ask(tab, "What colour?"))
    assert history()[0][1] == "What colour?" and "The cat is grey." in history()[1][1]
    assert [file.name for file in resources.chat_store().read(1).messages[0].files] == ["notes.txt"]
    assert chips(run(tab)) == ["notes.txt · 36 bytes"]
    click(tab, "chat_file_1_0")
    assert any(one.value.strip() == "The cat is grey." for one in tab.code)


def history() -> list[tuple[str, str]]:
    store = resources.chat_store()
    return [(one.role, one.text) for one in store.read(1).messages] if store.count() else []


def test_words_and_files_at_once_are_one_question(models: Path) -> None:
    finish(send(open_chat(), NOTES, text="What colour?"))
    assert "The cat is grey." in history()[1][1]


def test_a_file_that_cannot_be_read_is_a_sentence_and_the_words_come_back(models: Path) -> None:
    tab = send(open_chat(), CAT, NOTES, text="What colour?")
    assert "cat.png" in tab.error[0].value and not history()
    assert named(tab.chat_input, "chat_input").value == "What colour?" and len(chips(tab)) == 1
    finish(ask(tab, "What colour?"))
    assert "The cat is grey." in history()[1][1] and not tab.error


def test_a_file_can_be_taken_away_and_added_anew(models: Path) -> None:
    tab = send(send(open_chat(), NOTES), ("notes.txt", b"The cat is black."))
    assert chips(tab)[0].startswith("notes.txt · 17 bytes")
    assert chips(click(tab, "chat_file_remove")) == []


def test_of_a_file_that_is_too_long_the_beginning_is_sent_where_that_is_chosen(models: Path) -> None:
    tab = send(open_chat(), LOG)
    assert "there is room for" in words(tab)
    ask(tab, "What is it?")
    assert "only the beginning" in tab.error[0].value and not history()
    assert named(tab.chat_input, "chat_input").value == "What is it?"
    named(tab.toggle, "chat_files_cut").set_value(True)
    assert "tokens are sent" in words(run(tab)) and not tab.error
    finish(ask(tab, "What is it?"))
    assert "File: long.log (only the beginning)" in history()[1][1]
    assert chips(run(tab)) == ["long.log · 42 KB · only the beginning"]
    finish(ask(tab, "And then?"), 1)
    assert resources.chat_store().read(1).messages[0].files


def test_files_of_a_question_that_waits_come_back_with_it(models: Path) -> None:
    tab = send(ask(open_chat(), "forever"), NOTES)
    ask(tab, "my next question")
    assert "notes.txt" in words(tab) and chips(tab) == []
    click(tab, "chat_take_back")
    assert chips(run(tab))[0].startswith("notes.txt") and not resources.chat_store().draft_files(1)


def test_a_question_that_waited_and_is_too_long_with_its_files_says_what_to_do(models: Path) -> None:
    tab = send(ask(open_chat(), "forever"), LOG)
    ask(tab, "What is it?")
    assert resources.chat_store().draft_files(1)
    click(tab, "chat_stop")
    finish(tab)
    assert "only the beginning" in tab.error[0].value and chips(run(tab))[0].startswith("long.log")


def test_files_stay_with_their_chat(models: Path) -> None:
    tab = open_chat()
    finish(ask(tab, "first"))
    send(run(tab), NOTES)
    click(tab, "chat_new")
    assert chips(tab) == []
    tab.query_params["chat"] = "1"
    assert len(chips(run(tab))) == 1


def test_a_walk_through_many_chats_loses_no_files(models: Path) -> None:
    tab = send(open_chat(), NOTES)
    for number in range(1, MAX_CHATS + 2):
        resources.chat_store().create("instruct")
        tab.query_params["chat"] = str(number)
        assert chips(run(tab)) == []
    tab.query_params["chat"] = "new"
    assert len(chips(run(tab))) == 1


def test_more_files_than_a_question_may_have_are_named(models: Path) -> None:
    tab = send(open_chat(), *((f"{number}.txt", b"x") for number in range(MAX_FILES + 2)))
    assert f"{MAX_FILES}.txt" in tab.error[0].value and len(chips(tab)) == MAX_FILES


@pytest.mark.parametrize(("size", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "2 KB"), (2_340_000, "2.3 MB")])
def test_sizes_are_short(home: Path, size: int, shown: str) -> None:
    assert size_words(size) == shown
