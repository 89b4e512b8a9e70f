"""Lorebooks in chats: chosen at the head, given to a character, in all chats, gone; what of them the model reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.chat.records import CopiedChat, CopiedMessage
from core.personas.attached import read_attached, with_attached
from core.personas.cards import read_card
from core.personas.character import Character
from core.personas.lorebooks import Book, Lorebooks
from core.personas.store import Characters
from tests.support.chat_files import read_chat_file
from tests.support.checkpoints import make_chat_checkpoint
from tests.support.pages import ask, click, finish, load, open_tab, run, words
from tests.support.widgets import named
from ui.characters.attached import with_book_names
from ui.chat.history import _with_books
from ui.chat.setup import character_prompt
from ui.chat.whole_chat import _copy
from ui.shared import resources


def book(name: str, content: str = "Low.", **more: Any) -> Book:
    entry = {"keys": ["hut"], "name": f"{name} hut", "content": content, "enabled": True, "insertion_order": 1,
             "extensions": {}}  # fmt: skip
    in_all_chats = more.pop("in_all_chats", False)
    return Book({"name": name, "extensions": {}, "entries": [entry]} | more, in_all_chats)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with room for lore."""
    return make_chat_checkpoint(tmp_path_factory.mktemp("roomy") / "tiny", 2048)


@pytest.fixture
def store(models: Path, tmp_path: Path) -> Lorebooks:
    (tmp_path / "characters").mkdir()
    return Lorebooks()


def open_chat(**query: str) -> AppTest:
    load(open_tab(), "tiny")
    return open_tab("3_Chat", query=query)


def choose(tab: AppTest, *keys: str) -> AppTest:
    named(tab.multiselect, "chat_lorebooks").set_value(list(keys))
    return run(tab)


def asked() -> str:
    """The prompt for the last message of the first chat, as it would be made now."""
    chat = resources.chat_store().read(1)
    return json.dumps(character_prompt(chat.info).compose([{"role": "user", "content": "A hut?"}]).parts.system)


def test_a_chat_is_given_a_lorebook_before_and_after_it_is_kept(store: Lorebooks) -> None:
    for name in ("Town", "Hill"):
        store.add(book(name))
    tab = choose(open_chat(), "Town")
    finish(ask(tab, "See the hut?"))
    assert resources.chat_store().info(1).lorebooks == ("Town",)
    tab = run(tab)
    assert "Town hut · *Town*" in words(tab) and "Low." in asked()
    tab = choose(tab, "Town", "Hill")
    assert resources.chat_store().info(1).lorebooks == ("Town", "Hill")
    assert "Hill hut · *Hill*" in words(tab)
    assert "Town hut" not in words(choose(tab))


def test_what_has_no_room_is_shown_with_its_book_and_its_reason(store: Lorebooks) -> None:
    store.add(book("Town", token_budget=0))
    tab = choose(open_chat(), "Town")
    finish(ask(tab, "See the hut?"))
    assert "Town hut · *Town*: no room in its token budget" in words(run(tab))


def test_a_changed_lorebook_is_seen_in_an_open_chat(store: Lorebooks) -> None:
    store.add(book("Town"))
    tab = choose(open_chat(), "Town")
    finish(ask(tab, "See the hut?"))
    seen = store.book("Town")
    store.save("Town", book("City"), seen)
    assert "City hut · *City*" in words(run(tab))


def test_a_book_of_all_chats_counts_in_each_and_once(store: Lorebooks) -> None:
    store.add(book("Town", in_all_chats=True))
    tab = open_chat()
    assert "In all chats: Town" in words(tab)
    finish(ask(choose(tab, "Town"), "See the hut?"))
    assert words(run(tab)).count("Town hut · *Town*") == 1 and asked().count("Low.") == 1


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_deleted_lorebook_leaves_the_chat_whole_and_is_said(store: Lorebooks, locale: str) -> None:
    store.add(book("Town"))
    messages = (CopiedMessage(None, "user", "Hi", 1.0),)
    number = resources.chat_store().add(CopiedChat(messages, lorebooks=("Town",)))
    trashed = store.delete("Town", store.book("Town"))
    tab = open_tab("3_Chat", locale, {"chat": str(number)})
    said = [warning.value for warning in tab.warning if "Town" in warning.value]
    assert len(said) == 1 and ("is not here" in said[0] or "找不到" in said[0])
    assert named(tab.multiselect, "chat_lorebooks").value == ["Town"]
    store.restore(trashed)
    tab = open_tab("3_Chat", locale, {"chat": str(number)})
    assert not [warning for warning in tab.warning if "Town" in warning.value]
    assert resources.chat_store().info(number).lorebooks == ("Town",)


def test_what_another_tab_chose_is_not_written_over(store: Lorebooks) -> None:
    for name in ("Town", "Hill"):
        store.add(book(name))
    number = resources.chat_store().add(CopiedChat((CopiedMessage(None, "user", "Hi", 1.0),)))
    tab = open_tab("3_Chat", query={"chat": str(number)})
    resources.chat_store().set_lorebooks(number, ["Hill"], [])
    tab = choose(tab, "Town")
    assert tab.error and resources.chat_store().info(number).lorebooks == ("Hill",)


# Characters ---------------------------------------------------------------------------------------------------------


def test_a_character_is_given_a_lorebook_in_its_form(store: Lorebooks) -> None:
    store.add(book("Town"))
    people = Characters()
    people.add(Character("Ada", context="Ada knows."))
    tab = click(open_tab("4_Characters", query={"character": "Ada"}), "character_edit")
    named(tab.multiselect, "character_field_lorebooks").set_value(["Town"])
    run(tab)
    tab = click(tab, "character_save")
    assert read_attached(people.character("Ada").extensions) == ("Town",)
    assert "Further lorebooks: Town" in words(tab)
    tab = open_tab("3_Chat", query={"chat": "new", "character": "Ada"})
    assert "Of the characters: Town" in words(tab)
    store.delete("Town", store.book("Town"))
    assert "Named and not there: Town" in words(open_tab("4_Characters", query={"character": "Ada"}))
    assert [one for one in run(tab).warning if "Town" in one.value]


def test_a_character_goes_out_with_its_lorebooks_names(store: Lorebooks) -> None:
    store.add(book("Town"))
    store.save("Town", book("City"), store.book("Town"))
    ada = Character("Ada", extensions=with_attached({"x": 1}, ["Town", "gone"]))
    assert read_attached(with_book_names(ada).extensions) == ("City", "gone")
    assert with_book_names(Character("Bob")) == Character("Bob")


def test_the_lorebook_that_a_card_names_counts_where_it_is_here(store: Lorebooks) -> None:
    card = {"spec": "chara_card_v2", "spec_version": "2.0", "data": {"name": "Ada", "extensions": {"world": "Town"}}}
    found = read_card("a.json", json.dumps(card).encode())
    assert [notice.key for notice in found.notices] == ["card_world"]
    Characters().add(found.character)
    store.add(book("Town"))
    resources.chat_store().add(CopiedChat((CopiedMessage(None, "user", "Hi", 1.0),), character="Ada"))
    assert "Low." in asked()


# Files --------------------------------------------------------------------------------------------------------------


def test_a_chats_file_names_its_lorebooks_and_finds_them_again(store: Lorebooks) -> None:
    store.add(book("Town"))
    store.save("Town", book("City"), store.book("Town"))
    number = resources.chat_store().add(
        CopiedChat((CopiedMessage(None, "user", "Hi", 1.0),), lorebooks=("Town", "gone"))
    )
    out = _copy(resources.chat_store(), resources.chat_store().info(number))
    assert out.lorebooks == ("City", "gone")
    assert _with_books(out).lorebooks == ("Town", "gone")


def test_sillytaverns_lorebook_is_the_chats_where_it_is_here(store: Lorebooks) -> None:
    header = {"user_name": "Tom", "character_name": "Ada", "chat_metadata": {"world_info": "old town"}}
    lines = [header, {"name": "Tom", "is_user": True, "mes": "Hi"}]
    chat = read_chat_file("\n".join(map(json.dumps, lines)).encode())
    assert _with_books(chat).lorebooks == ("old town",)
    store.add(book("Old Town"))
    assert _with_books(chat).lorebooks == ("Old Town",)
