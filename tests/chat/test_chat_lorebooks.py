"""Lorebooks of a chat: kept with it, named in its files, and in the prompt like a character's own."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from core.chat.character_prompt import CharacterPrompt
from core.chat.database import ChatStoreError, Database
from core.chat.exporting import to_sillytavern
from core.chat.model_prompt import ModelPrompt
from core.chat.prompt_context import Prompt, PromptContext
from core.chat.records import CopiedChat, CopiedMessage
from core.chat.schema import LOREBOOKS, MIGRATIONS
from core.chat.store import ChatStore
from core.chat.template import ChatTemplate
from core.chat.template_messages import Turn
from core.engine.sampling_params import Sampling
from core.personas.character import Character
from core.personas.user import UserPersona
from tests.support.chat_files import read_chat_file
from tests.support.chat_templates import OWN_LLAMA2
from tests.support.lorebooks import Words, entry


def test_a_chat_keeps_its_lorebooks_and_refuses_what_was_seen_before(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats.sqlite3")
    chat = store.create("instruct")
    assert store.info(chat).lorebooks == ()
    store.set_lorebooks(chat, ["Town", "城"], [])
    question = store.append_user(chat, "hi", None)
    assert store.info(chat).lorebooks == store.copy(chat).lorebooks == ("Town", "城")
    assert store.info(store.branch(question)).lorebooks == ("Town", "城")
    with pytest.raises(ChatStoreError) as caught:
        store.set_lorebooks(chat, ["Hut"], [])
    assert caught.value.key == "chat_changed"
    with pytest.raises(ChatStoreError):
        store.of("somebody else").set_lorebooks(chat, [], ["Town", "城"])
    store.close()


def test_a_history_from_before_gets_the_column(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    older = Database(path, migrations=MIGRATIONS[: MIGRATIONS.index(LOREBOOKS)])
    with older.change() as db:
        db.execute("INSERT INTO chats (created_s, changed_s, mode, character) VALUES (1, 1, 'instruct', '')")
    older.close()
    store = ChatStore(path)
    store.set_lorebooks(1, ["Town"], [])
    assert store.info(1).lorebooks == ("Town",)
    store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    db.close()


def tavern(metadata: Any) -> CopiedChat:
    header = {"user_name": "Tom", "character_name": "Ada", "chat_metadata": metadata}
    lines = [header, {"name": "Tom", "is_user": True, "mes": "Hi"}]
    return read_chat_file("\n".join(map(json.dumps, lines)).encode())


def test_sillytaverns_chats_name_their_lorebook() -> None:
    assert tavern({"world_info": " Old town "}).lorebooks == ("Old town",)
    for odd in ({}, None, {"world_info": ""}, {"world_info": ["x"]}, {"world_info": None}, []):
        assert tavern(odd).lorebooks == ()
    chat = CopiedChat((CopiedMessage(None, "user", "Hi", 1.7e9),), lorebooks=("Old town", "Hut"))
    assert read_chat_file(to_sillytavern(chat, "Tom", "Ada", {}).encode()).lorebooks == ("Old town",)


def prepared(character: Character | None, *books: dict[str, Any], system: str = "", turns: int = 1) -> Prompt:
    model = ModelPrompt("m", None, ChatTemplate(OWN_LLAMA2, "<s>", "</s>"), Words(), Words().count)
    speaker = CharacterPrompt(character, UserPersona("Tom", "Tom is old."), Words().count, system=system, books=books)
    context = PromptContext(model, 1000, "instruct", speaker, Sampling(max_new_tokens=10))
    said = [
        Turn(role="user" if place % 2 == 0 else "assistant", content="A bee?" if not place else "ok")
        for place in range(turns)
    ]
    return context.prepare(said)


def test_a_chats_book_stands_among_the_characters_own_by_the_order_of_entries() -> None:
    own = {"entries": [entry("OWN") | {"insertion_order": 2}]}
    town = {
        "name": "Town",
        "entries": [entry("FIRST") | {"insertion_order": 1}, entry("LAST") | {"insertion_order": 3}],
    }
    prompt = prepared(Character("Ada", context="Ada knows.", lorebook=own), town)
    assert "FIRST\n\nOWN\n\nLAST\n\nAda knows." in prompt.fitted.prompt
    assert [(one.text, one.book) for one in prompt.lore] == [("FIRST", "Town"), ("OWN", "Ada"), ("LAST", "Town")]


def test_each_book_has_its_own_budget_and_what_is_left_out_names_its_book() -> None:
    own = {"name": "Hers", "entries": [entry("one two three")]}
    town = {"name": "Town", "token_budget": 2, "entries": [entry("four five six")]}
    prompt = prepared(Character("Ada", lorebook=own), town)
    assert [one.book for one in prompt.lore] == ["Hers"]
    assert [(one.book, one.reason) for one in prompt.left_out] == [("Town", "budget")]


def test_an_entry_of_one_book_calls_up_one_of_another_and_stays_for_its_time() -> None:
    own = {"entries": [entry("A hive.", sticky=4)]}
    town = {"name": "Town", "entries": [entry("HIVES", sticky=4) | {"keys": ["hive"]}]}
    assert "HIVES" in prepared(Character("Ada", lorebook=own), town).fitted.prompt
    far = {"name": "Town", "scan_depth": 1, "entries": [entry("STAYS", sticky=4)]}
    assert "STAYS" in prepared(Character("Ada"), far, turns=3).fitted.prompt
    assert "STAYS" not in prepared(Character("Ada"), far, turns=7).fitted.prompt


def test_a_plain_assistant_reads_the_chats_lore_after_its_instructions() -> None:
    town = {"name": "Town", "entries": [entry("{{user}} is here.", position=1), entry("DEEP", position=4, depth=0)]}
    prompt = prepared(None, town, system="Be {{brief}}.")
    assert "Be {{brief}}.\n\nTom is here." in prompt.fitted.prompt and "Tom is old." not in prompt.fitted.prompt
    assert "DEEP" in prompt.fitted.prompt
    assert prepared(None, system="Be brief.").fitted.prompt == prepared(
        None, {"name": "T", "entries": []}, system="Be brief."
    ).fitted.prompt  # fmt: skip
