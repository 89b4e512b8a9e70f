"""What a person does on the chat page in the browser."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

from tests.support.dashboard import key

WAIT_MS = 20_000


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
