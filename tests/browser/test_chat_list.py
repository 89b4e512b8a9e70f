"""The list of chats and the chat's head in a real browser: what only a browser can try."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect

from core.chat.records import CopiedChat, CopiedMessage, Role
from core.chat.store import ChatStore
from tests.support.chat_page import chat_dashboard
from tests.support.checkpoints import make_chat_checkpoint
from tests.support.dashboard import key

WAIT_MS = 60_000
LONG = "The sea is wide, and so is the sky above it. " * 4
ROLES: tuple[Role, Role] = ("user", "assistant")
PHONE: ViewportSize = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("list")
    for name, context_tokens in (("tiny", 4096), ("small", 512)):
        make_chat_checkpoint(folder / "models" / name, context_tokens)
    (folder / "characters").mkdir()
    for name in ("Ada", "Olaf"):
        (folder / "characters" / f"{name}.yaml").write_text(f"name: {name}\ngreeting: Hello.\ncontext: A.\n", "utf-8")
    store = ChatStore(folder / "data" / "chats.sqlite3")
    for title, character in (("A long one", "Ada"), ("A plain one", "")):
        messages = tuple(
            CopiedMessage(
                place - 1 if place else None, "assistant" if place % 2 else "user", f"Message {place}: {LONG}", 1.0
            )
            for place in range(30)
        )
        store.add(CopiedChat(messages, title, title_is_own=True, character=character))
    store.close()
    with chat_dashboard(folder) as url:
        yield url


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(locale="en-US")
    yield open_chat(context.new_page(), address, 1)
    context.close()


@pytest.fixture
def phone(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(locale="en-US", viewport=PHONE)
    yield open_chat(context.new_page(), address, 1)
    context.close()


def open_chat(page: Page, address: str, number: int) -> Page:
    page.goto(f"{address}/Chat?chat={number}")
    expect(page.get_by_test_id("stChatInputTextArea")).to_be_enabled(timeout=WAIT_MS)
    expect(page.get_by_text("Message 29: The sea")).to_be_in_viewport(timeout=WAIT_MS)
    return page


def press(page: Page, name: str) -> None:
    key(page, name).get_by_role("button").first.click()


def test_the_head_stays_in_sight_wherever_the_transcript_stands(page: Page) -> None:
    head = page.get_by_role("heading", name="A long one", exact=True)
    expect(head).to_be_in_viewport()
    place = head.bounding_box()
    # By hand: what moves the page by itself while its end is followed is taken back.
    page.get_by_text("Message 29: The sea").hover()
    page.mouse.wheel(0, -3000)
    expect(page.get_by_text("Message 29: The sea")).not_to_be_in_viewport(timeout=WAIT_MS)
    expect(head).to_be_in_viewport()
    assert head.bounding_box() == place
    # Nothing of the transcript lies above it.
    press(page, "chat_settings")
    expect(key(page, "sampling_temperature")).to_be_visible(timeout=WAIT_MS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE])
def test_nothing_of_the_transcript_is_seen_above_the_head(
    browser: Browser, address: str, size: ViewportSize, scheme: Literal["light", "dark"]
) -> None:
    """In a wide window the top bar let the messages be seen through."""
    context = browser.new_context(locale="zh-CN", color_scheme=scheme, viewport=size)
    page = open_chat(context.new_page(), address, 1)
    shown = "one => getComputedStyle(one).backgroundColor"
    colors = [page.get_by_test_id(name).evaluate(shown) for name in ("stHeader", "stApp")]
    assert colors[0] == colors[1] and colors[0].startswith("rgb("), colors
    context.close()


# Whether the element with a text lies below the head.
BEGINS_BELOW = """text => {
    const head = document.querySelector("[class*=st-key-chat_head]")
    const first = [...document.querySelectorAll(".stMain p")].find(one => one.textContent.includes(text))
    return head && first && first.getBoundingClientRect().height > 0
        && first.getBoundingClientRect().top >= head.getBoundingClientRect().bottom
}"""


@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, PHONE])
def test_the_first_line_of_a_chat_begins_below_the_head(page: Page, address: str, size: ViewportSize) -> None:
    page.set_viewport_size(size)
    page.goto(f"{address}/Chat?chat=new")
    greeting = page.get_by_text("What would you like to talk about?")
    expect(greeting).to_be_visible(timeout=WAIT_MS)
    # Waited for: what is drawn anew in this moment has no box.
    page.wait_for_function(BEGINS_BELOW, arg="What would you like to talk about?", timeout=WAIT_MS)


def test_on_a_phone_the_sidebar_closes_when_a_chat_was_chosen(phone: Page) -> None:
    for choice, heading in (("chat_open_2", "A plain one"), ("chat_new", "New chat")):
        phone.get_by_test_id("stExpandSidebarButton").click()
        expect(phone.get_by_test_id("stSidebar")).to_have_attribute("data-collapsed", "false", timeout=WAIT_MS)
        press(phone, choice)
        expect(phone.get_by_role("heading", name=heading, exact=True)).to_be_in_viewport(timeout=WAIT_MS)
        expect(phone.get_by_test_id("stSidebar")).to_have_attribute("data-collapsed", "true", timeout=WAIT_MS)


def test_on_a_wide_screen_the_sidebar_stays(page: Page) -> None:
    press(page, "chat_open_2")
    expect(page.get_by_role("heading", name="A plain one")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_test_id("stSidebar")).to_have_attribute("data-collapsed", "false")


def test_a_popover_stays_where_it_is_while_members_are_added_on_a_phone(phone: Page) -> None:
    press(phone, "chat_who")
    body = phone.get_by_test_id("stPopoverBody")
    expect(key(body, "chat_members")).to_be_visible(timeout=WAIT_MS)
    before = body.bounding_box()
    key(body, "chat_members").locator("input").fill("Olaf")
    phone.keyboard.press("Enter")
    expect(key(body, "chat_order")).to_be_visible(timeout=WAIT_MS)
    after = body.bounding_box()
    assert before is not None and after is not None
    assert (after["x"], after["y"], after["width"]) == (before["x"], before["y"], before["width"])


def test_a_deleted_chat_comes_back_from_the_trash_after_a_reload(page: Page, address: str) -> None:
    open_chat(page, address, 2)
    press(page, "chat_whole")
    press(page, "chat_delete")
    expect(key(page, "chat_open_2")).to_have_count(0, timeout=WAIT_MS)
    page.reload()
    press(page, "chat_trash")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("A plain one", timeout=WAIT_MS)
    press(page, "chat_restore")
    expect(page.get_by_role("heading", name="A plain one")).to_be_visible(timeout=WAIT_MS)
    expect(dialog).to_have_count(0, timeout=WAIT_MS)
    expect(page.get_by_text("Message 29: The sea")).to_be_visible(timeout=WAIT_MS)


def test_another_model_is_loaded_in_the_chat_which_says_what_is_lost(page: Page) -> None:
    press(page, "chat_model")
    body = page.get_by_test_id("stPopoverBody")
    expect(body).to_contain_text("its beginning will no longer be read", timeout=WAIT_MS)
    press(page, "chat_model_load_small")
    expect(key(page, "chat_model").get_by_role("button", name="small")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_test_id("stChatInputTextArea")).to_be_enabled(timeout=WAIT_MS)
    expect(page.get_by_role("heading", name="A long one")).to_be_visible()
    press(page, "chat_model")
    press(page, "chat_model_load_tiny")
    expect(key(page, "chat_model").get_by_role("button", name="tiny")).to_be_visible(timeout=WAIT_MS)
