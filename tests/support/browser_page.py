"""What a person does in the browser on every page."""

from __future__ import annotations

from playwright.sync_api import Page, expect

WAIT_MS = 30_000


def type_message(page: Page, words: str) -> None:
    field = page.get_by_test_id("stChatInputTextArea")
    expect(field).to_be_enabled(timeout=WAIT_MS)
    field.fill(words)
    field.press("Enter")


def open_from_sidebar(page: Page, name: str) -> None:
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True).click()
