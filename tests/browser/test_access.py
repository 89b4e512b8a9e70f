"""Signing in and out in a real browser, as a person does it and as somebody who should stay outside tries it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from core.access.access import Access
from core.access.secret_file import SecretFile
from core.access.sessions import SESSION_S
from core.access.visitors import COOKIE
from tests.support.dashboard import dashboard, key

PASSWORD, WAIT_MS = "correct horse battery", 60_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def url(data: Path) -> Iterator[str]:
    Access(SecretFile(data / "access.json"), {}).set_password(PASSWORD)
    environment = os.environ | {"LLAMADECK_DATA": str(data), "LLAMADECK_MODELS": str(data / "models")}
    with dashboard(environment, "0.0.0.0") as address:
        yield address


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(locale="en-US")
    yield context
    context.close()


def sign_in(page: Page, password: str = PASSWORD) -> None:
    page.locator("#password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def open_settings(page: Page, url: str, password: str = PASSWORD) -> None:
    """Sign in and wait until the page can notice that it was signed out: a browser loads that only while it is in."""
    page.goto(f"{url}/sign-in?next=/Settings")
    sign_in(page, password)
    page.wait_for_function("window.llamadeckWatch", timeout=WAIT_MS)


def set_cookie(context: BrowserContext, url: str, value: str) -> None:
    context.add_cookies([{"name": COOKIE, "value": value, "url": url}])


def test_the_right_password_leads_to_the_page_that_was_asked_for(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    page.goto(f"{url}/Settings")
    sign_in(page, "incorrect horse")
    expect(page.get_by_role("alert")).to_have_text("That is not the password. Try again.")
    sign_in(page)
    expect(page.get_by_text("You signed in with the access password.")).to_be_visible(timeout=WAIT_MS)
    assert page.url == f"{url}/Settings"
    cookie = next(cookie for cookie in context.cookies() if cookie["name"].startswith(COOKIE))
    assert cookie["httpOnly"] and cookie["sameSite"] == "Lax" and cookie["expires"] > time.time()
    assert errors == []


def test_signing_out_leads_back_to_the_sign_in_page(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    open_settings(page, url)
    page.get_by_role("button", name="Sign out", exact=True).click(timeout=WAIT_MS)
    expect(page.locator("#password")).to_be_visible(timeout=WAIT_MS)
    page.goto(f"{url}/Chat")
    expect(page.locator("#password")).to_be_visible()


def test_signing_out_everywhere_ends_what_is_open_elsewhere(browser: Browser, url: str) -> None:
    context, elsewhere = browser.new_context(locale="en-US"), browser.new_context(locale="en-US")
    page, other = context.new_page(), elsewhere.new_page()
    for one in (page, other):
        with one.expect_websocket(timeout=WAIT_MS) as opened:
            open_settings(one, url)
    key(page, "settings_sign_out_all").get_by_role("button").click()
    expect(page.locator("#password")).to_be_visible(timeout=WAIT_MS)
    # The other one's websocket ends with the next thing that its page asks for, and its page notices.
    if not opened.value.is_closed():
        opened.value.wait_for_event("close", timeout=WAIT_MS)
    expect(other.locator("#password")).to_be_visible(timeout=WAIT_MS)
    for one in (context, elsewhere):
        one.close()


@pytest.mark.parametrize("cookie", ["", "forged", "a~9999999999.c2lnbmF0dXJl"])
def test_a_forged_cookie_shows_the_sign_in_page(context: BrowserContext, url: str, cookie: str) -> None:
    set_cookie(context, url, cookie)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#password")).to_be_visible()


def test_an_expired_cookie_does_too_and_a_fresh_one_does_not(context: BrowserContext, url: str, data: Path) -> None:
    file = SecretFile(data / "access.json")
    old = Access(file, {}, now=lambda: time.time() - SESSION_S - 1).sessions.begin()
    page = context.new_page()
    set_cookie(context, url, old)
    page.goto(url)
    expect(page.locator("#password")).to_be_visible()
    set_cookie(context, url, Access(file, {}).sessions.begin())
    page.goto(url)
    expect(page.get_by_test_id("stSidebarNav")).to_be_visible(timeout=WAIT_MS)


def test_a_page_cannot_open_a_websocket_without_signing_in(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    page.goto(f"{url}/_stcore/health")
    opened = page.evaluate(
        """() => new Promise(resolve => {
            const socket = new WebSocket(location.origin.replace("http", "ws") + "/_stcore/stream");
            socket.onopen = () => resolve("open");
            socket.onclose = socket.onerror = () => resolve("closed");
        })"""
    )
    assert opened == "closed"


def test_another_password_needs_the_current_one_and_signs_everybody_out(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    open_settings(page, url)
    change_password(page, "not the current", "another password")
    expect(page.get_by_text("That is not the current password")).to_be_visible(timeout=WAIT_MS)
    change_password(page, PASSWORD, "another password")
    expect(page.locator("#password")).to_be_visible(timeout=WAIT_MS)
    open_settings(page, url, "another password")
    change_password(page, "another password", PASSWORD)
    expect(page.locator("#password")).to_be_visible(timeout=WAIT_MS)


def change_password(page: Page, current: str, new: str) -> None:
    for name, text in (("current", current), ("new", new), ("again", new)):
        key(page, f"settings_password_{name}").get_by_role("textbox").fill(text, timeout=WAIT_MS)
    key(page, "settings_password_set").get_by_role("button").click()
