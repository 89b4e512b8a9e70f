"""Reading and writing in the chat with the keyboard, with a screen reader, and with the eyes on one place."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.chat_page import WAIT_MS, ask, chat_dashboard, choose, messages, open_chat, press, type_message
from tests.support.checkpoints import make_chat_checkpoint
from tests.support.dashboard import key


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("reading")
    make_chat_checkpoint(folder / "models" / "tiny", 4096)
    with chat_dashboard(folder) as url:
        yield url


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    open_chat(page, address, "chat=new")
    yield page
    context.close()


def test_the_input_has_the_focus_on_arrival_and_in_each_chat(page: Page) -> None:
    field = page.get_by_test_id("stChatInputTextArea")
    expect(field).to_be_focused(timeout=WAIT_MS)
    page.keyboard.type("typed at once")
    page.keyboard.press("Enter")
    expect(messages(page).last).to_contain_text("You said: typed at once", timeout=WAIT_MS)
    page.keyboard.press("Control+Shift+O")
    expect(messages(page)).to_have_count(0, timeout=WAIT_MS)
    expect(field).to_be_focused(timeout=WAIT_MS)


def test_escape_stops_an_answer_and_leaves_an_edit(page: Page) -> None:
    ask(page, "forever")
    expect(key(page, "chat_stop")).to_be_visible(timeout=WAIT_MS)
    page.keyboard.press("Escape")
    expect(messages(page).last).to_contain_text("Stopped", timeout=WAIT_MS)
    choose(page, 0, "Edit")
    field = messages(page).first.get_by_role("textbox")
    field.fill("never kept")
    field.press("Escape")
    expect(field).to_have_count(0, timeout=WAIT_MS)
    expect(messages(page).first).to_contain_text("forever")


def test_control_and_enter_ask_an_edited_question_anew_and_save_an_edited_answer(page: Page) -> None:
    type_message(page, "sky")
    choose(page, 0, "Edit")
    field = messages(page).first.get_by_role("textbox")
    field.fill("grass")
    field.press("Control+Enter")
    expect(messages(page).last).to_contain_text("You said: grass", timeout=WAIT_MS)
    expect(key(page, "chat_regenerate").get_by_role("button")).to_be_visible(timeout=WAIT_MS)
    choose(page, 1, "Edit")
    field = messages(page).last.get_by_role("textbox")
    field.fill("My own words")
    field.press("Control+Enter")
    expect(messages(page).last).to_contain_text("My own words", timeout=WAIT_MS)
    expect(field).to_have_count(0)


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_every_button_is_called_by_words_of_the_readers_language(browser: Browser, address: str, locale: str) -> None:
    context = browser.new_context(locale=locale)
    page = context.new_page()
    open_chat(page, address, "chat=new")
    ask(page, "names")
    expect(key(page, "chat_regenerate").get_by_role("button")).to_be_visible(timeout=WAIT_MS)
    press(page, "chat_regenerate")
    expect(messages(page).last).to_contain_text("2/2", timeout=WAIT_MS)
    expect(key(page, "chat_regenerate").get_by_role("button")).to_be_visible(timeout=WAIT_MS)
    tree = page.get_by_test_id("stApp").aria_snapshot()
    names = re.findall(r'- (?:button|menuitem|textbox|link)(?: "([^"]*)")?', tree)
    # Streamlit names these itself, in English.
    own = [name for name in names if name not in ("Send message", "Main menu", "Collapse sidebar", "Expand sidebar")]
    assert len(own) > 15 and all(own)
    assert not [name for name in own if re.search(r"\bicon\b|_|Shortcut", name)]
    if locale == "zh-CN":
        assert not [
            name for name in own if re.search(r"\b(?:answer|copy|more|version|chat|write)\b", name, re.IGNORECASE)
        ]
    context.close()


def scroll_top(page: Page) -> float:
    return float(page.evaluate("document.querySelector('.stMain').scrollTop"))


def wait_for_end(page: Page) -> None:
    page.wait_for_function(
        "(m => m.scrollHeight - m.clientHeight - m.scrollTop < 40)(document.querySelector('.stMain'))"
    )


def write_much(page: Page) -> None:
    """A chat that is several windows long."""
    for number in range(3):
        ask(page, f"words=400 wait=0 number={number}")
        answer = messages(page).nth(2 * number + 1)
        expect(answer.get_by_role("button", name="Answer anew")).to_be_visible(timeout=WAIT_MS)


def wheel(page: Page, by: int) -> None:
    page.mouse.move(640, 300)
    page.mouse.wheel(0, by)


def test_what_is_sent_comes_into_view_and_its_answer_is_followed_until_the_reader_goes_up(page: Page) -> None:
    write_much(page)
    wheel(page, -1500)
    page.wait_for_function("document.querySelector('.stMain').scrollTop < 1000")
    ask(page, "forever wait=0.02")
    expect(messages(page)).to_have_count(8, timeout=WAIT_MS)
    for word in (40, 120):
        expect(messages(page).last).to_contain_text(re.compile(rf"(\S+\s+){{{word}}}"), timeout=WAIT_MS)
        wait_for_end(page)
    before = scroll_top(page)
    wheel(page, -300)
    page.wait_for_function(f"document.querySelector('.stMain').scrollTop < {before - 200}")
    expect(messages(page).last).to_contain_text(re.compile(r"(\S+\s+){300}"), timeout=60_000)
    assert scroll_top(page) < before - 200
    press(page, "chat_stop")


def test_another_version_of_a_question_leaves_it_where_it_is(page: Page) -> None:
    write_much(page)
    choose(page, 0, "Edit")
    messages(page).first.get_by_role("textbox").fill("words=5 another")
    press(page, "chat_edit_ask")
    expect(messages(page)).to_have_count(2, timeout=WAIT_MS)
    expect(key(page, "chat_regenerate").get_by_role("button")).to_be_visible(timeout=WAIT_MS)
    before = messages(page).first.locator('[class*="st-key-version_before"]').get_by_role("button")
    top = place_of(before)
    before.click()
    expect(messages(page)).to_have_count(6, timeout=WAIT_MS)
    after = messages(page).first.locator('[class*="st-key-version_after"]').get_by_role("button")
    expect(after).to_be_in_viewport()
    page.wait_for_function(
        """top => {
            const row = document.querySelector('[class*="st-key-version_after"] button');
            return Math.abs(row.getBoundingClientRect().y - top) < 60;
        }""",
        arg=top,
    )


def place_of(button: Locator) -> float:
    box = button.bounding_box()
    assert box is not None
    return box["y"]


def test_after_a_crash_one_click_loads_the_model_again(page: Page) -> None:
    ask(page, "please die")
    again = page.get_by_role("button", name="Load tiny again")
    expect(again).to_be_visible(timeout=WAIT_MS)
    again.click()
    expect(page.get_by_test_id("stChatInputTextArea")).to_be_enabled(timeout=WAIT_MS)
    type_message(page, "well again")
