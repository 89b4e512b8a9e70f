"""A thought in a real browser: it counts, opens, stays open while it grows, folds, and is copied apart."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.chat_page import WAIT_MS, ask, chat_dashboard, messages, open_chat, press
from tests.support.checkpoints import TEMPLATE, make_chat_checkpoint
from tests.support.dashboard import key


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("thoughts")
    make_chat_checkpoint(folder / "models" / "tiny", 4096, TEMPLATE + "{# <think> </think> #}")
    with chat_dashboard(folder) as url:
        yield url


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(locale="en-US", permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    open_chat(page, address, "chat=new")
    yield page
    context.close()


def test_a_thought_counts_opens_stays_open_folds_and_is_copied(page: Page) -> None:
    ask(page, "think=100000 wait=0.02 words=3")
    box = messages(page).last.get_by_test_id("stExpander")
    title = box.locator("summary")
    expect(title).to_contain_text("Thinking…", timeout=WAIT_MS)
    inside = box.get_by_test_id("stCaptionContainer").first
    expect(inside).not_to_be_visible()
    title.click()
    expect(inside).to_contain_text("thought0", timeout=WAIT_MS)
    expect(inside).to_be_visible()
    # Each second is another title.
    for _ in range(2):
        expect(title).not_to_have_text(title.inner_text(), timeout=WAIT_MS)
        expect(inside).to_be_visible()
    press(page, "chat_stop")
    expect(title).to_contain_text(re.compile(r"Thought for \d+ s, not finished"), timeout=WAIT_MS)
    page.reload()
    expect(title).to_contain_text("Thought for", timeout=WAIT_MS)
    expect(inside).not_to_be_visible()
    title.click()
    key(page, "copy_thought").get_by_role("button").click()
    expect(key(page, "copy_thought").get_by_role("button", name="Copied")).to_be_visible(timeout=WAIT_MS)
    assert page.evaluate("navigator.clipboard.readText()").startswith("thought0 thought1")


def test_the_answer_stands_below_its_thought(page: Page) -> None:
    ask(page, "think=3 words=3")
    expect(messages(page).last).to_contain_text("one two three", timeout=WAIT_MS)
    expect(messages(page).last.get_by_test_id("stExpander").locator("summary")).to_contain_text("Thought")
    expect(messages(page).last).not_to_contain_text("<think>")
