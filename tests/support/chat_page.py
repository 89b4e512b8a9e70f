"""The chat page in the browser: its dashboard, and what a person does on it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.support.dashboard import dashboard, key

WAIT_MS = 60_000


def chat_dashboard(folder: Path) -> AbstractContextManager[str]:
    """The address of a dashboard whose models, data and characters lie in `folder`; its engine's stand-in loads the
    model `tiny` at start."""
    places = {f"LLAMADECK_{name.upper()}": str(folder / name) for name in ("models", "data", "characters")}
    engine = {"LLAMADECK_WORKER": "tests.support.fake_worker", "LLAMADECK_LOAD": "tiny"}
    return dashboard(os.environ | places | engine)


def open_chat(page: Page, address: str, query: str) -> None:
    page.goto(f"{address}/Chat?{query}")
    expect(page.get_by_test_id("stChatInputTextArea")).to_be_enabled(timeout=WAIT_MS)


def press(page: Page, name: str) -> None:
    key(page, name).get_by_role("button").click()


def ask(page: Page, text: str) -> None:
    field = page.get_by_test_id("stChatInputTextArea")
    field.fill(text)
    field.press("Enter")


def type_message(page: Page, text: str) -> None:
    """Ask, and wait for the whole answer."""
    ask(page, text)
    expect(messages(page).last).to_contain_text(f"You said: {text}", timeout=WAIT_MS)
    expect(key(page, "chat_regenerate").get_by_role("button")).to_be_visible(timeout=WAIT_MS)


def messages(page: Page) -> Locator:
    return page.get_by_test_id("stChatMessage")


def choose(page: Page, place: int, action: str) -> None:
    """Something from the menu below a message."""
    messages(page).nth(place).locator('[class*="st-key-message_menu"]').get_by_role("button").click()
    page.get_by_text(action, exact=True).click()
