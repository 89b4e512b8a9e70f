"""What a person does in the browser on every page."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.support.dashboard import key

WAIT_MS = 60_000


def type_message(page: Page, words: str) -> None:
    field = page.get_by_test_id("stChatInputTextArea")
    expect(field).to_be_enabled(timeout=WAIT_MS)
    field.fill(words)
    field.press("Enter")


def open_from_sidebar(page: Page, name: str) -> None:
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True).click()


def begin_chat(page: Page) -> None:
    """A new chat, and the page drawn for it. A new chat looks like another one in which nothing has been said."""
    names = key(page, "chat_settings").get_attribute("class", timeout=WAIT_MS) or ""
    before = next(name for name in names.split() if name.startswith("st-key-chat_settings"))
    key(page, "chat_new").get_by_role("button").click()
    expect(page.locator(f".{before}")).to_have_count(0, timeout=WAIT_MS)


def answer_greedily(page: Page, longest_answer: int) -> None:
    """Temperature 0, so that the same question always gets the same answer; and where it ends at the latest."""
    # What is drawn anew for another chat would close it.
    expect(page.locator("[data-test-script-state=notRunning]")).to_be_visible(timeout=WAIT_MS)
    page.get_by_role("button", name="Generation").click()
    slider = key(page, "sampling_temperature").get_by_role("slider")
    slider.press("Home")
    expect(slider).to_have_value("0")
    longest = key(page, "sampling_max_new_tokens").get_by_role("spinbutton")
    longest.fill(str(longest_answer))
    longest.press("Enter")
    expect(longest).to_have_value(str(longest_answer))
    page.keyboard.press("Escape")
    expect(slider).to_be_hidden()
