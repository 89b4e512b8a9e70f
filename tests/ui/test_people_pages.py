"""Pages for several people without a browser: what one says of herself and chose is not the other's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.chat.presets import set_model_preset
from core.chat.records import CopiedChat, CopiedMessage
from core.personas.character import Character
from core.personas.user import UserPersona, read_persona, save_persona
from tests.support.checkpoints import TEMPLATE, Recipe, make_checkpoint
from tests.support.pages import click, go, load, open_tab, run
from tests.support.widgets import named
from ui.chat.setup import prompt_of
from ui.shared import resources

ANN, BOB = "https://id.example.org ann", "https://id.example.org bob"
Be = Callable[[str], None]

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def be(monkeypatch: pytest.MonkeyPatch) -> Be:
    """From now on pages are this person's, as the gate says it."""

    def change(person: str) -> None:
        monkeypatch.setattr("ui.shared.people.person_in", lambda headers: person)

    change("")
    return change


def words(tab: AppTest) -> str:
    return "\n".join(str(element.value) for element in [*tab.markdown, *tab.caption, *tab.code, *tab.warning])


def describe(text: str) -> AppTest:
    tab = click(go(open_tab(), "4_Characters"), "characters_user")
    named(tab.text_area, "characters_user_about").set_value(text)
    return click(run(tab), "characters_user_save")


def test_each_describes_only_themselves(be: Be) -> None:
    """What Ann said of herself was once on Bob's page and in his prompts."""
    save_persona(UserPersona("Before", "From before there were several."))
    for person, text in ((ANN, "A spy."), (BOB, "A baker.")):
        be(person)
        tab = click(go(open_tab(), "4_Characters"), "characters_user")
        assert named(tab.text_area, "characters_user_about").value == ""
        assert "Yours alone" in words(tab)
        describe(text)
    be(ANN)
    tab = click(click(go(open_tab(), "4_Characters"), "characters_user"), "characters_persona_edit_1")
    assert named(tab.text_area, "characters_user_about").value == "A spy."
    assert read_persona(BOB).description == "A baker." and read_persona().name == "Before"


def test_the_preview_and_the_prompt_of_a_chat_know_only_who_looks(be: Be, home: Path) -> None:
    make_checkpoint(home / "models" / "tiny", Recipe(context_tokens=1024))
    (home / "models" / "tiny" / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    key = resources.characters().add(Character("Ada", context="{{char}} teaches {{user}}."))
    save_persona(UserPersona("Kim", "A cook."))
    save_persona(UserPersona("Ann", "A spy."), ANN)
    for person, name, absent in ((ANN, "Ann", "Kim"), (BOB, "friend", "Ann"), ("", "Kim", "Ann")):
        be(person)
        tab = open_tab("4_Characters", query={"character": key})
        assert f"Ada teaches {name}." in words(tab) and absent not in words(tab)
    load(open_tab(), "tiny")
    for person, there in ((ANN, True), (BOB, False)):
        be(person)
        store = resources.chat_store()
        chat = store.add(CopiedChat((CopiedMessage(None, "user", "Hi", 0.0),), "One", True))
        store.set_character(chat, "Ada")
        assert ("A spy." in str(prompt_of(store.read(chat)).fitted.prompt)) == there


def test_presets_and_preferences_are_each_ones_own(be: Be) -> None:
    be(ANN)
    resources.presets().save("mine", {"top_k": 5})
    set_model_preset(resources.preferences(), "tiny", "mine")
    open_tab().segmented_control(key="language_choice").set_value("zh").run()
    for person, own in ((BOB, []), ("", []), (ANN, ["mine"])):
        be(person)
        assert [preset.name for preset in resources.presets().own()] == own
        assert open_tab().session_state["language"] == ("zh" if own else "en")
        assert (resources.preferences().get("preset", "tiny") == "mine") == bool(own)


def test_what_is_shared_is_said_to_whoever_signed_in(be: Be) -> None:
    assert "shares these characters" not in words(open_tab("4_Characters"))
    be(ANN)
    assert "shares these characters" in words(open_tab("4_Characters"))
    shared = "characters, lorebooks, access tokens of hubs and the connected server are everybody's"
    assert shared in words(open_tab("6_Settings"))


def test_a_damaged_file_is_said_on_every_page_and_can_be_set_aside(be: Be, home: Path) -> None:
    assert not open_tab().warning
    damaged = home / "data" / "secrets.json"
    damaged.write_text('{"tokens": {"https://x:443": "hf_one"', "utf-8")
    for page in (None, "1_Download", "3_Chat", "5_GPU_Monitor"):
        assert "see Settings" in open_tab(page).warning[0].value
    be(ANN)
    assert not open_tab().warning and "secrets.json" not in words(open_tab("6_Settings"))
    be("")
    tab = open_tab("6_Settings")
    assert "is damaged (line 1, column 38)" in tab.error[0].value
    click(tab, "file_aside_secrets")
    (aside,) = (home / "data").glob("secrets.json.damaged-*")
    assert "hf_one" in aside.read_text("utf-8") and str(aside.name) in tab.success[0].value.replace("\\", "")
    assert not tab.error and not run(tab).success and not tab.warning
