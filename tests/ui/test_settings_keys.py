"""The API's keys on a page: made, shown once, used, revoked; with no key, with a broken file, in both languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from core.access.keys import KeyStore
from core.common.paths import ROOT
from tests.support.pages import click, run, words
from ui.shared.markdown import escape


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyStore]:
    monkeypatch.setenv("LLAMADECK_DATA", str(tmp_path))
    st.cache_resource.clear()
    yield KeyStore(tmp_path / "keys.json")
    st.cache_resource.clear()


def open_part(locale: str = "en-US") -> AppTest:
    tab = AppTest.from_file(str(ROOT / "tests" / "support" / "settings_keys_page.py"), default_timeout=120)
    tab.context = {"locale": locale, "url": "https://deck.example:8443/Settings"}
    # As Home.py says of a page that was there before.
    tab.session_state["page_has_changed"] = False
    return run(tab)


def make(tab: AppTest, name: str) -> AppTest:
    tab.text_input(key="api_key_name").set_value(name)
    return click(tab, "api_key_make")


def codes(tab: AppTest) -> list[str]:
    return [str(code.value) for code in tab.code]


def test_a_key_is_made_shown_once_and_revoked(store: KeyStore) -> None:
    tab = open_part()
    assert "There is no key yet" in words(tab)
    make(tab, "note*book*")
    text = next(code for code in codes(tab) if code.startswith("ld-"))
    found = store.find(text)
    assert found is not None and found.name == "note*book*"
    # A key's end is drawn at random: an underscore in it must not be taken for Markdown.
    assert r"note\*book\*" in words(tab) and f"…{escape(text[-4:])}" in words(tab) and "never used" in words(tab)
    assert text in codes(run(tab)), "a part of the page that is drawn anew does not take the key away"
    click(tab, "api_key_noted")
    assert text not in codes(tab) and text not in codes(open_part())
    click(tab, f"api_key_revoke_{found.id}")
    assert store.find(text) is None and "There is no key yet" in words(tab)


def test_a_key_is_gone_when_the_page_is_left(store: KeyStore) -> None:
    tab = make(open_part(), "notebook")
    tab.session_state["page_has_changed"] = True
    assert not any(code.startswith("ld-") for code in codes(run(tab)))


def test_the_address_is_the_pages_own(store: KeyStore) -> None:
    tab = open_part()
    assert codes(tab)[0] == "https://deck.example:8443/v1"
    assert "curl https://deck.example:8443/v1/chat/completions" in codes(tab)[1]


def test_a_day_of_use_is_shown(store: KeyStore) -> None:
    store.make("phone")
    store.note_use(store.keys()[0])
    assert f"last used {store.keys()[0].used}" in words(open_part())
    assert f"上次使用 {store.keys()[0].used}" in words(open_part("zh-CN"))


def test_whoever_runs_it_sees_whose_a_key_is(store: KeyStore) -> None:
    store.make("phone", "https://id.example ann", "ann@example.org")
    assert "never used · ann@example.org" in words(open_part())


@pytest.mark.parametrize(("locale", "sentence"), [("en-US", "already"), ("zh-CN", "已有名为")])
def test_a_name_that_is_taken_is_said(store: KeyStore, locale: str, sentence: str) -> None:
    store.make("phone")
    tab = make(open_part(locale), "Phone")
    assert sentence in tab.error[0].value and len(store.keys()) == 1


def test_a_broken_file_is_said_and_kept(store: KeyStore, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{", "utf-8")
    tab = make(open_part(), "phone")
    assert "cannot be used" in tab.error[0].value
    assert (tmp_path / "keys.json").read_text("utf-8") == "{"
