"""The page Settings without a browser: language, the password from nothing to removed, what this installation is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from core.access import password
from core.access.exposure import LISTENS, LOOPBACK, NETWORK
from core.common.paths import version
from core.library.last_model import is_loaded_at_start
from core.standby.settings import COMMAND, idle_minutes, other_names
from tests.support.pages import open_tab, run
from tests.support.widgets import named
from ui.shared import resources

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LLAMADECK_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv(LISTENS, LOOPBACK)
    monkeypatch.setattr(password, "LOG2_N", 4)
    st.cache_resource.clear()
    yield tmp_path
    resources.chat_file().close()
    resources.engine().unload()
    st.cache_resource.clear()


def words(tab: AppTest) -> str:
    return "\n".join(str(element.value) for element in [*tab.markdown, *tab.caption, *tab.success, *tab.error])


def submit(tab: AppTest, button: str, **texts: str) -> AppTest:
    for name, text in texts.items():
        tab.text_input(key=f"settings_password_{name}").set_value(text)
    tab.button(key=f"settings_password_{button}").click()
    return run(tab)


def test_a_password_is_set_changed_and_removed() -> None:
    tab = open_tab("6_Settings")
    assert "No password is set" in words(tab) and "nothing is asked" in words(tab)
    tab = submit(tab, "set", new=PASSWORD, again=PASSWORD)
    assert "The password is set" in words(tab) and resources.access().try_password(PASSWORD, "192.0.2.1")
    tab = submit(tab, "set", current=PASSWORD, new="another password", again="another password")
    assert resources.access().try_password("another password", "192.0.2.1")
    tab = submit(tab, "remove", current="another password")
    assert "The password is removed" in words(tab) and not resources.access().has_password


@pytest.mark.parametrize(
    ("current", "new", "again", "sentence"),
    [
        ("wrong password", "another password", "another password", "not the current password"),
        ("", "another password", "another password", "not the current password"),
        (PASSWORD, "another password", "another passwort", "The two passwords differ"),
        (PASSWORD, "short", "short", "A password of 5 characters"),
        (PASSWORD, "", "", "A password of 0 characters"),
    ],
)
def test_what_cannot_be_a_change_changes_nothing(current: str, new: str, again: str, sentence: str) -> None:
    resources.access().set_password(PASSWORD)
    tab = submit(open_tab("6_Settings"), "set", current=current, new=new, again=again)
    assert sentence in tab.error[0].value
    assert new not in words(tab) or not new
    assert resources.access().try_password(PASSWORD, "192.0.2.1")


def test_guessing_the_current_password_takes_longer_and_longer() -> None:
    resources.access().set_password(PASSWORD)
    tab = open_tab("6_Settings")
    said = [submit(tab, "remove", current="wrong password").error[0].value for _ in range(10)]
    # However slow this machine is: the tenth would come a minute after the ninth.
    assert "not the current" in said[0] and "Too many tries" in said[-1] and resources.access().has_password


def test_where_others_can_reach_it_the_password_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    resources.access().set_password(PASSWORD)
    monkeypatch.setenv(LISTENS, NETWORK)
    assert open_tab("6_Settings").button(key="settings_password_remove").disabled


def test_the_environments_password_is_not_changed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADECK_PASSWORD", PASSWORD)
    tab = open_tab("6_Settings")
    assert "LLAMADECK\\_PASSWORD" in words(tab)
    assert not [field.key for field in tab.text_input if str(field.key).startswith("settings_password")]


def test_a_password_that_cannot_be_kept_is_a_sentence(places: Path) -> None:
    tab = open_tab("6_Settings")
    (places / "data" / "access.json").mkdir()
    tab = submit(tab, "set", new=PASSWORD, again=PASSWORD)
    assert "could not be written" in tab.error[0].value


def test_the_language_is_chosen_here_too() -> None:
    tab = open_tab("6_Settings")
    tab.selectbox(key="settings_language").set_value("zh")
    assert run(tab).title[0].value == "设置"
    named(tab.segmented_control, "language_choice").set_value("en")
    assert run(tab).title[0].value == "Settings"
    assert named(tab.selectbox, "settings_language").value == "en"


def test_it_says_what_this_is_and_where_things_lie(places: Path) -> None:
    shown = words(open_tab("6_Settings")).replace("\\", "")
    assert f"LlamaDeck {version()}" in shown and str(places / "data") in shown


def test_a_start_loads_the_last_model_where_that_is_chosen() -> None:
    tab = open_tab("6_Settings")
    assert not tab.toggle(key="settings_at_start").value and not is_loaded_at_start()
    tab.toggle(key="settings_at_start").set_value(True)
    run(tab)
    assert is_loaded_at_start()
    other = open_tab("6_Settings")
    named(other.toggle, "settings_at_start").set_value(False)
    run(other)
    assert not is_loaded_at_start() and not named(run(tab).toggle, "settings_at_start").value


def test_what_programs_may_name_is_chosen_here() -> None:
    tab = open_tab("6_Settings")
    assert tab.selectbox(key="settings_other_names").value == "refuse"
    tab.selectbox(key="settings_other_names").set_value("load")
    run(tab)
    assert other_names() == "load"
    assert open_tab("6_Settings").selectbox(key="settings_other_names").value == "load"


def test_what_happens_after_so_many_idle_minutes_is_chosen_here(monkeypatch: pytest.MonkeyPatch) -> None:
    tab = open_tab("6_Settings")
    assert tab.number_input(key="settings_idle_unload").value == 0
    assert "“shutdown”" in tab.number_input(key="settings_idle_command").label
    tab.number_input(key="settings_idle_unload").set_value(15)
    tab.number_input(key="settings_idle_command").set_value(45)
    run(tab)
    assert (idle_minutes("unload"), idle_minutes("command")) == (15, 45)
    monkeypatch.setenv(COMMAND, "")
    tab = open_tab("6_Settings")
    assert not [one for one in tab.number_input if one.key == "settings_idle_command"]
    assert "No command is run" in words(tab)
