"""Who the person is in a chat: chosen for it, remembered by its character, kept with what they wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.chat.records import Chat
from core.personas.character import Character
from core.personas.store import Characters
from core.personas.user import UserPersona, add_persona, read_personas, remember_persona, save_persona, save_picture
from tests.support.cards import PICTURE
from tests.support.checkpoints import make_chat_checkpoint
from tests.support.pages import ask, finish, load, open_tab, run, words
from tests.support.widgets import has, named
from ui.chat.portraits import faces_of
from ui.chat.setup import group_of, prompt_context, prompt_of
from ui.chat.whole_chat import _markdown, _tavern
from ui.shared import resources

ADA = Character("Ada", greeting="Good morning, {{user}}.", context="Ada knows machines.")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with room for a character."""
    return make_chat_checkpoint(tmp_path_factory.mktemp("roomy") / "tiny", 2048)


@pytest.fixture
def ann(models: Path, home: Path) -> str:
    """The key of a second persona, with a picture, beside Kim's."""
    Characters().add(ADA)
    save_persona(UserPersona("Kim", "A cook."))
    save_picture(PICTURE)
    return add_persona(UserPersona("Ann", "A spy."))


def read(number: int = 1) -> Chat:
    return resources.chat_store().read(number)


def test_a_chat_has_its_persona_and_its_messages_the_names_under_which_they_were_written(ann: str) -> None:
    load(open_tab(), "tiny")
    tab = open_tab("3_Chat", query={"chat": "new", "character": "Ada"})
    assert "Good morning, Kim." in words(tab)
    finish(ask(tab, "hello"))
    named(tab.selectbox, "chat_persona").set_value(ann)
    run(tab)
    assert read().info.settings["persona"] == ann and "**Kim**" in words(tab)
    prompt = prompt_of(read()).fitted.prompt
    assert "A spy." in prompt and "A cook." not in prompt
    finish(ask(tab, "and now?"))
    assert [one.speaker for one in read().messages if one.role == "user"] == ["Kim", "Ann"]
    kims, anns = (one for one in read().messages if one.role == "user")
    faces = faces_of(read())
    assert (faces.name_of(kims), faces.name_of(anns)) == ("Kim", "Ann") and faces.of_message(kims) != faces.of("user")
    named(tab.selectbox, "chat_persona").set_value("")
    assert "**Ann**" in words(run(tab)) and "persona" not in read().info.settings


def counter(tab: AppTest) -> str:
    (found,) = (one.value for one in tab.caption if "data_usage" in one.value)
    return str(found)


def test_the_counter_follows_a_persona_that_was_changed_on_another_page(ann: str) -> None:
    load(open_tab(), "tiny")
    tab = open_tab("3_Chat", query={"chat": "new", "character": "Ada"})
    before = counter(tab)
    save_persona(UserPersona("Kim", "A cook of many dishes, known in every town by the river."))
    assert counter(run(tab)) != before


def test_a_character_that_knows_the_person_by_a_name_of_its_own_reads_that_one(ann: str) -> None:
    load(open_tab(), "tiny")
    Characters().add(Character("Olaf", your_name="Captain"))
    number = resources.chat_store().create("chat-instruct", "Ada")
    resources.chat_store().set_members(number, ["Olaf"])
    context = prompt_context(read(number), "Olaf")
    prompt = context.prepare([context.asked("Ho!")]).fitted.prompt
    assert context.character.person_name == "Captain" and "Captain: Ho!" in prompt and "Kim: Ho!" not in prompt


def test_a_persona_called_as_a_characters_file_keeps_its_name_in_exports(ann: str, home: Path) -> None:
    store = resources.chat_store()
    (home / "characters" / "spy.yaml").write_text("name: Ada Lovelace\n", "utf-8")
    number = store.create("chat-instruct", "Ada")
    store.append_user(number, "hello", None, speaker="spy")
    info = store.info(number)
    assert "## spy\n" in _markdown(store, info, "", "You") and '"name": "spy"' in _tavern(store, info, "")


def test_a_chat_with_one_name_is_asked_as_ever(ann: str) -> None:
    load(open_tab(), "tiny")
    finish(ask(open_tab("3_Chat", query={"chat": "new"}), "hello"))
    assert read().messages[0].speaker == "Kim" and group_of(read()) is None
    assert "Kim" not in prompt_of(read()).fitted.prompt


def test_a_character_greets_the_persona_that_it_remembers(ann: str) -> None:
    remember_persona("Ada", ann)
    assert "Good morning, Ann." in words(open_tab("3_Chat", query={"chat": "new", "character": "Ada"}))


def test_a_persona_that_is_gone_gives_way_to_the_usual_one(ann: str) -> None:
    number = resources.chat_store().create("instruct", settings={"persona": "gone"})
    tab = open_tab("3_Chat", query={"chat": str(number)})
    assert named(tab.selectbox, "chat_persona").value == ""


def test_whoever_has_one_persona_is_asked_nothing(models: Path, home: Path) -> None:
    (home / "characters").mkdir(exist_ok=True)
    assert len(read_personas().by_key) == 1
    assert not has(open_tab("3_Chat", query={"chat": "new"}).selectbox, "chat_persona")
