"""Two people who sign in through a provider, in real browsers: each sees their own chats, and nobody else's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from core.access.keys import KeyStore
from core.chat.records import CopiedChat, CopiedMessage
from core.chat.store import ChatStore
from core.personas.user import UserPersona, read_persona, save_persona
from tests.support.dashboard import dashboard, key
from tests.support.oidc_standin import OidcStandin, oidc_provider

ALLOW = '[access]\nallow = ["*@example.org"]\n'


@pytest.fixture(scope="module")
def provider() -> Iterator[OidcStandin]:
    with oidc_provider() as standin:
        yield standin


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def url(provider: OidcStandin, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard with one chat from the time when nobody signed in."""
    home = tmp_path_factory.mktemp("home")
    (home / ".streamlit").mkdir()
    (home / ".streamlit" / "secrets.toml").write_text(provider.secrets_toml(ALLOW), "utf-8")
    store = ChatStore(data / "chats.sqlite3")
    store.add(chat("From before"))
    store.close()
    models = tmp_path_factory.mktemp("models")
    environment = os.environ | {"HOME": str(home), "LLAMADECK_DATA": str(data), "LLAMADECK_MODELS": str(models)}
    with dashboard(environment) as address:
        yield address


def chat(title: str) -> CopiedChat:
    return CopiedChat((CopiedMessage(None, "user", f"{title}: a secret of mine", 0.0),), title, True)


@pytest.fixture(scope="module")
def people(browser: Browser, url: str, provider: OidcStandin, data: Path) -> Iterator[dict[str, Page]]:
    """Ann and Bob, each signed in with a browser and with one chat of their own."""
    contexts = {name: browser.new_context() for name in ("ann", "bob")}
    pages = {name: sign_in(context, url, name) for name, context in contexts.items()}
    store = ChatStore(data / "chats.sqlite3")
    for name in pages:
        store.of(f"{provider.url} {name}").add(chat(f"{name.title()}'s chat"))
    store.close()
    yield pages
    for context in contexts.values():
        context.close()


def sign_in(context: BrowserContext, url: str, name: str) -> Page:
    page = context.new_page()
    page.goto(url)
    page.get_by_role("link", name="Sign in with your account").click()
    page.locator(f"#{name}").click()
    return page


def expect_chats(page: Page, url: str, titles: list[str]) -> None:
    """The list of chats holds these and no others."""
    page.goto(f"{url}/Chat")
    expect(page.locator("[class*='st-key-chat_open_'] p")).to_have_text(titles)


def test_each_sees_only_their_own_chats(people: dict[str, Page], url: str) -> None:
    expect_chats(people["ann"], url, ["Ann's chat"])
    expect_chats(people["bob"], url, ["Bob's chat"])


def test_the_number_of_anothers_chat_in_the_address_opens_nothing(people: dict[str, Page], url: str) -> None:
    for name, page in people.items():
        own = {"ann": 2, "bob": 3}[name]
        for number in (1, 2, 3):
            page.goto(f"{url}/Chat?chat={number}")
            if number == own:
                expect(page.get_by_text("a secret of mine")).to_be_visible()
            else:
                expect(page.get_by_text("This chat is no longer here")).to_be_visible()
                assert page.get_by_text("a secret of mine").count() == 0


def test_each_exports_their_own_chat_under_their_own_name(
    people: dict[str, Page], url: str, provider: OidcStandin, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is made after the page has run: it once was looked for among the chats of nobody, and never came."""
    monkeypatch.setenv("LLAMADECK_DATA", str(data))
    save_persona(UserPersona(name="Bob of the export"), f"{provider.url} bob")
    page = people["bob"]
    page.goto(f"{url}/Chat?chat=3")
    texts = {}
    key(page, "chat_whole").get_by_role("button").click(timeout=60_000)
    for kind in ("markdown", "json"):
        with page.expect_download() as download:
            key(page, f"chat_export_{kind}").get_by_role("button").click(timeout=60_000)
        texts[kind] = Path(download.value.path()).read_text("utf-8")
    assert "## Bob of the export" in texts["markdown"] and "Bob's chat: a secret of mine" in texts["markdown"]
    assert "Bob's chat: a secret of mine" in texts["json"]
    save_persona(UserPersona(), f"{provider.url} bob")


def test_a_search_finds_only_ones_own(people: dict[str, Page], url: str) -> None:
    page = people["ann"]
    expect_chats(page, url, ["Ann's chat"])
    key(page, "chat_search").get_by_role("textbox").fill("secret")
    page.keyboard.press("Enter")
    hits = page.locator("[class*='st-key-chat_hit_'] p")
    expect(hits.first).to_have_text("Ann's chat")
    assert "Bob" not in page.get_by_test_id("stSidebar").inner_text()


def test_settings_say_who_is_signed_in_and_have_no_password(people: dict[str, Page], url: str) -> None:
    page = people["bob"]
    page.goto(f"{url}/Settings")
    expect(page.get_by_text("bob@example.org")).to_be_visible()
    expect(key(page, "settings_sign_out")).to_be_visible()
    assert key(page, "settings_password_set").count() == 0


def make_key(page: Page, url: str, name: str) -> str:
    page.goto(f"{url}/Settings")
    key(page, "api_key_name").get_by_role("textbox").fill(name)
    key(page, "api_key_make").get_by_role("button").click()
    return page.locator("code", has_text=re.compile(r"^\s*ld-\S+\s*$")).inner_text(timeout=60_000).strip()


def test_each_sees_and_revokes_only_their_own_keys(people: dict[str, Page], url: str, data: Path) -> None:
    """Everybody once saw the keys of all, and could revoke them."""
    texts = {name: make_key(page, url, f"{name}'s program") for name, page in people.items()}
    for name, page in people.items():
        page.goto(f"{url}/Settings")
        expect(page.locator("[class*='st-key-api_key_'] strong")).to_have_text([f"{name}'s program"])
    for name, text in texts.items():
        response = httpx2.get(f"{url}/v1/models", headers={"authorization": f"Bearer {text}"})
        assert response.status_code == 200
        found = KeyStore(data / "keys.json").find(text)
        assert found is not None and found.address == f"{name}@example.org"


def test_a_key_opens_nothing_once_its_owner_is_off_the_list(url: str, data: Path) -> None:
    text = KeyStore(data / "keys.json").make("program", f"{url} eve", "eve@example.net")
    response = httpx2.get(f"{url}/v1/models", headers={"authorization": f"Bearer {text}"})
    assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"


def test_each_describes_themselves_and_the_other_sees_nothing_of_it(
    people: dict[str, Page], url: str, provider: OidcStandin, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ann's name and description were once on Bob's page, in his prompts and in what his key asked."""
    for name, page in people.items():
        page.goto(f"{url}/Characters")
        key(page, "characters_user").get_by_role("button").click(timeout=60_000)
        field = key(page, "characters_user_name").get_by_role("textbox")
        expect(field).to_have_value("")
        field.fill(f"{name.title()} the second")
        key(page, "characters_user_save").get_by_role("button").click()
        expect(page.get_by_text("Saved. New answers")).to_be_visible()
    monkeypatch.setenv("LLAMADECK_DATA", str(data))
    for name, page in people.items():
        page.goto(f"{url}/Characters")
        key(page, "characters_user").get_by_role("button").click(timeout=60_000)
        page.get_by_role("button", name="Edit", exact=True).click(timeout=60_000)
        field = key(page, "characters_user_name").get_by_role("textbox")
        expect(field).to_have_value(f"{name.title()} the second")
        assert read_persona(f"{provider.url} {name}").name == f"{name.title()} the second"
    assert read_persona().name == ""


def test_people_bring_in_no_folder_by_its_path_on_the_server(people: dict[str, Page], url: str) -> None:
    page = people["ann"]
    page.goto(f"{url}/Load_Model")
    expect(page.get_by_text("There is no model")).to_be_visible()
    assert key(page, "library_copy").count() == 0


def test_whoever_is_not_on_the_list_stays_outside(browser: Browser, url: str) -> None:
    with browser.new_context() as context:
        page = sign_in(context, url, "eve")
        expect(page.get_by_role("alert")).to_contain_text("eve@example.net may not use this LlamaDeck")
        status = page.request.get(f"{url}/_stcore/health").status
        assert status == 401


def test_signing_out_leads_to_where_people_sign_in(browser: Browser, url: str) -> None:
    with browser.new_context() as context:
        page = sign_in(context, url, "ann")
        page.goto(f"{url}/Settings")
        key(page, "settings_sign_out").get_by_role("button").click()
        expect(page.get_by_role("link", name="Sign in with your account")).to_be_visible()
        assert [cookie["name"] for cookie in context.cookies() if cookie["name"] == "_streamlit_user"] == []


@pytest.mark.parametrize("cookie", ["", "forged", "eyJzdWIiOiJhbm4ifQ.aSabcd.c2lnbmF0dXJl", "\xff" * 10])
def test_no_cookie_of_ones_own_making_opens_anything(url: str, cookie: str) -> None:
    headers = {"cookie": f"_streamlit_user={cookie}".encode("latin-1"), "x-llamadeck-person": "x ann"}
    assert httpx2.get(f"{url}/_stcore/health", headers=headers).status_code == 401
