"""The chat page in a real browser, with the engine's stand-in: what only a browser can try."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.chat_page import WAIT_MS, ask, chat_dashboard, choose, messages, open_chat, press, type_message
from tests.support.checkpoints import make_chat_checkpoint
from tests.support.dashboard import key


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("chat")
    make_chat_checkpoint(folder / "models" / "tiny", 4096)
    (folder / "characters").mkdir()
    card = "name: Ada\ngreeting: Good morning.\nalternate_greetings: [Good evening.]\ncontext: Ada knows machines.\n"
    (folder / "characters" / "Ada.yaml").write_text(card, "utf-8")
    card = "name: Olaf\ngreeting: Ho!\ncontext: Olaf sails.\n"
    (folder / "characters" / "Olaf.yaml").write_text(card, "utf-8")
    with chat_dashboard(folder) as url:
        yield url


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(locale="en-US", permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    open_chat(page, address, "chat=new")
    yield page
    context.close()


def test_an_answer_is_copied_as_it_was_written(page: Page) -> None:
    type_message(page, "it costs $5 and $6")
    messages(page).nth(1).get_by_role("button", name="Copy", exact=True).click()
    expect(messages(page).nth(1).get_by_role("button", name="Copied")).to_be_visible(timeout=WAIT_MS)
    assert page.evaluate("navigator.clipboard.readText()") == "You said: it costs $5 and $6 "


def test_a_message_is_edited_in_its_place(page: Page) -> None:
    type_message(page, "hello")
    choose(page, 1, "Edit")
    messages(page).nth(1).get_by_role("textbox").fill("My own words")
    press(page, "chat_edit_save")
    expect(messages(page).nth(1)).to_contain_text("My own words", timeout=WAIT_MS)
    expect(messages(page).nth(1)).to_contain_text("2/2")


def test_a_deleted_message_comes_back(page: Page) -> None:
    type_message(page, "first")
    type_message(page, "second")
    choose(page, 2, "Delete from here on")
    expect(messages(page)).to_have_count(2, timeout=WAIT_MS)
    press(page, "chat_undo")
    expect(messages(page)).to_have_count(4, timeout=WAIT_MS)
    expect(messages(page).last).to_contain_text("You said: second")


def test_a_branch_is_a_chat_of_its_own(page: Page) -> None:
    type_message(page, "trunk")
    type_message(page, "leaf")
    before = page.url
    choose(page, 1, "Branch from here")
    expect(messages(page)).to_have_count(2, timeout=WAIT_MS)
    assert page.url != before
    type_message(page, "other leaf")
    page.goto(before)
    expect(messages(page).last).to_contain_text("You said: leaf", timeout=WAIT_MS)


def test_an_answer_anew_is_a_version_to_flip_back_from(page: Page) -> None:
    type_message(page, "hello")
    press(page, "chat_regenerate")
    expect(messages(page).last).to_contain_text("2/2", timeout=WAIT_MS)
    messages(page).last.locator('[class*="st-key-version_before"]').get_by_role("button").click()
    expect(messages(page).last).to_contain_text("1/2", timeout=WAIT_MS)


def test_a_character_greets_and_its_greetings_flip(page: Page, address: str) -> None:
    open_chat(page, address, "chat=new&character=Ada")
    expect(messages(page).last).to_contain_text("Good morning.", timeout=WAIT_MS)
    page.locator('[class*="st-key-version_after"]').get_by_role("button").click()
    expect(messages(page).last).to_contain_text("Good evening.", timeout=WAIT_MS)
    ask(page, "hello")
    expect(messages(page)).to_have_count(3, timeout=WAIT_MS)
    expect(messages(page).first).to_contain_text("Good evening.")
    expect(page).to_have_url(re.compile(r"chat=\d+$"))


def test_a_click_on_a_face_of_a_group_makes_it_speak(page: Page, address: str) -> None:
    open_chat(page, address, "chat=new&character=Ada")
    press(page, "chat_who")
    key(page, "chat_members").locator("input").fill("Olaf")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Ho!")).to_be_visible(timeout=WAIT_MS)
    ask(page, "Good day.")
    expect(messages(page)).to_have_count(4, timeout=WAIT_MS)
    face = key(page, "chat_cast").get_by_role("img").nth(1)
    expect(key(page, "chat_speak").nth(1).get_by_role("button")).to_be_enabled(timeout=WAIT_MS)
    box = face.bounding_box()
    assert box is not None
    # The face itself, and not the name beside it.
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(messages(page)).to_have_count(5, timeout=WAIT_MS)
    expect(messages(page).last).to_contain_text("Olaf", timeout=WAIT_MS)


def test_my_line_comes_into_the_input(page: Page) -> None:
    type_message(page, "hello")
    page.get_by_test_id("stBottom").get_by_test_id("stPopover").get_by_role("button").click()
    press(page, "chat_my_line")
    expect(page.get_by_test_id("stChatInputTextArea")).to_have_value("You said:", timeout=WAIT_MS)


def test_several_chats_are_answered_at_once_and_each_shows_it(page: Page) -> None:
    ask(page, "forever one")
    expect(key(page, "chat_stop")).to_be_visible(timeout=WAIT_MS)
    first = page.url
    press(page, "chat_new")
    expect(messages(page)).to_have_count(0, timeout=WAIT_MS)
    ask(page, "forever two")
    expect(messages(page).last).to_contain_text("one two three", timeout=WAIT_MS)
    for url in (page.url, first):
        page.goto(url)
        press(page, "chat_stop")
        expect(messages(page).last).to_contain_text("Stopped", timeout=WAIT_MS)


def test_a_chat_deleted_while_it_answers_comes_back_with_what_was_written(page: Page) -> None:
    """Timers told the click as well: the second delete said that another tab had done it, and took the way back."""
    for _ in range(4):
        ask(page, "forever wait=0.05")
        expect(messages(page).last).to_contain_text("one two three four", timeout=WAIT_MS)
        press(page, "chat_whole")
        press(page, "chat_delete")
        expect(page).to_have_url(re.compile(r"chat=new$"), timeout=WAIT_MS)
        # Long enough for the timers of the page that was left.
        page.wait_for_timeout(1500)
        expect(page.get_by_test_id("stAlert")).to_have_count(0)
        press(page, "chat_undo")
        expect(messages(page).last).to_contain_text("Stopped", timeout=WAIT_MS)
        expect(messages(page).last).to_contain_text("one two three four")
        press(page, "chat_new")
        expect(messages(page)).to_have_count(0, timeout=WAIT_MS)


def test_an_export_is_the_whole_chat_and_comes_back_in(page: Page, tmp_path: Path) -> None:
    type_message(page, "to be exported")
    press(page, "chat_whole")
    with page.expect_download() as download:
        press(page, "chat_export_json")
    path = tmp_path / "chat.json"
    download.value.save_as(path)
    assert next(one["text"] for one in json.loads(path.read_text("utf-8"))["messages"]) == "to be exported"
    page.keyboard.press("Escape")
    before = page.url
    page.get_by_test_id("stSidebar").get_by_test_id("stPopover").get_by_role("button").click()
    page.get_by_test_id("stFileUploader").locator("input[type=file]").set_input_files(path)
    expect(page).not_to_have_url(before, timeout=WAIT_MS)
    expect(messages(page).first).to_contain_text("to be exported", timeout=WAIT_MS)


def test_a_search_leads_to_its_message(page: Page) -> None:
    type_message(page, "a needle")
    press(page, "chat_new")
    expect(messages(page)).to_have_count(0)
    search = key(page, "chat_search").get_by_role("textbox")
    search.fill("NEEDLE")
    search.press("Enter")
    key(page, "chat_hit").get_by_role("button").first.click()
    expect(messages(page).first).to_contain_text("a needle", timeout=WAIT_MS)


def test_files_leave_the_input_for_the_page_and_what_is_typed_is_counted(page: Page) -> None:
    field, typed = page.get_by_test_id("stChatInputTextArea"), key(page, "chat_input_watch").locator("span")
    field.fill("What is in it?")
    expect(typed).to_have_text(re.compile(r"^\+ \d+$"), timeout=WAIT_MS)
    words = int(typed.inner_text().removeprefix("+ "))
    files = page.get_by_test_id("stChatInput").locator("input[type=file]")
    files.set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"The cat is grey. " * 20})
    remove = key(page, "chat_file_remove").get_by_role("button")
    expect(remove).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_test_id("stFileChip")).to_have_count(0)
    expect(field).to_have_value("What is in it?")
    expect(typed).not_to_have_text(f"+ {words}", timeout=WAIT_MS)
    field.press("Enter")
    expect(messages(page).last).to_contain_text("The cat is grey.", timeout=WAIT_MS)
    # The answer's end draws the page anew: a click just then opened nothing.
    expect(key(page, "chat_regenerate").get_by_role("button")).to_be_visible(timeout=WAIT_MS)
    expect(remove).to_have_count(0)
    expect(typed).to_have_text("", timeout=WAIT_MS)
    messages(page).first.get_by_role("button", name="notes.txt").click()
    expect(page.get_by_role("dialog")).to_contain_text("The cat is grey.", timeout=WAIT_MS)


def test_files_leave_the_input_where_no_count_comes_back(page: Page) -> None:
    """A proxy in between may answer with a page of its own."""
    page.route("**/typed-tokens", lambda route: route.fulfill(body="<html>", content_type="text/html"))
    field = page.get_by_test_id("stChatInputTextArea")
    with page.expect_response("**/typed-tokens"):
        field.fill("What colour is it?")
    files = page.get_by_test_id("stChatInput").locator("input[type=file]")
    files.set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"The cat is grey."})
    expect(key(page, "chat_file_remove").get_by_role("button")).to_be_visible(timeout=WAIT_MS)
    expect(field).to_have_value("What colour is it?")
