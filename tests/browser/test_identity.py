"""What is changed for one thing is in no other one: each popover, form and list of the pages in a real browser.

Only a browser can try it: one whose popover is closed takes no new value, and sends its old one with the next step.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from core.chat.records import Chat, CopiedChat, CopiedMessage
from core.chat.store import ChatStore
from core.personas.character import Character
from core.personas.store import Characters
from tests.support.cards import PICTURE
from tests.support.checkpoints import TEMPLATE, Recipe, make_checkpoint
from tests.support.dashboard import dashboard, key

WAIT_MS = 60_000


@dataclass(frozen=True)
class House:
    """A dashboard and its folders."""

    url: str
    folder: Path
    store: ChatStore

    @property
    def characters(self) -> Characters:
        return Characters(self.folder / "characters")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("identity")
    for name in ("one", "tiny"):
        make_checkpoint(folder / "models" / name, Recipe(context_tokens=4096))
        (folder / "models" / name / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    for name in ("characters", "data"):
        (folder / name).mkdir()
    environment = {
        **os.environ,
        "LLAMADECK_MODELS": str(folder / "models"),
        "LLAMADECK_DATA": str(folder / "data"),
        "LLAMADECK_CHARACTERS": str(folder / "characters"),
        "LLAMADECK_WORKER": "tests.support.fake_worker",
        "LLAMADECK_LOAD": "tiny",
    }
    store = Characters(folder / "characters")
    for name in ("Ada", "Bob"):
        store.add(Character(name, greeting=f"{name} greets.", context=f"{name} knows."))
    with dashboard(environment) as url:
        chats = ChatStore(folder / "data" / "chats.sqlite3")
        yield House(url, folder, chats)
        chats.close()


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """One tab for all: what a case leaves in it must not reach the next one either."""
    context = browser.new_context(locale="en-US", viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    yield page
    context.close()


def press(page: Page | Locator, name: str) -> None:
    key(page, name).get_by_role("button").first.click()


def popover(page: Page, name: str) -> Locator:
    press(page, name)
    body = page.get_by_test_id("stPopoverBody")
    expect(body).to_be_visible()
    return body


def type_into(place: Locator, text: str, end: str = "Enter") -> None:
    place.fill(text)
    place.press(end)


def choose(page: Page, select: Locator, option: str) -> None:
    select.get_by_role("combobox").click()
    page.get_by_role("option", name=option, exact=True).click()


def until(is_so: Callable[[], bool], page: Page) -> None:
    """Wait for what another process writes: there is nothing on the page that says it."""
    for _ in range(600):
        if is_so():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it was never so")


# Chats ----------------------------------------------------------------------------------------------------------------

Has = Callable[[Chat], bool]
Change = Callable[[Page], None]


def change_title(page: Page) -> None:
    type_into(key(popover(page, "chat_whole"), "chat_title").get_by_role("textbox"), "Of B")


def change_pin(page: Page) -> None:
    key(popover(page, "chat_whole"), "chat_pin").locator("label").first.click()


def change_system(page: Page) -> None:
    field = key(popover(page, "chat_who"), "chat_system").locator("textarea")
    type_into(field, "Of B.", "Control+Enter")


def change_character(page: Page) -> None:
    choose(page, key(popover(page, "chat_who"), "chat_character"), "Ada")


def change_mode(page: Page) -> None:
    choose(page, key(popover(page, "chat_who"), "chat_mode"), "Plain dialogue")


def change_preset(page: Page) -> None:
    choose(page, key(popover(page, "chat_settings"), "sampling_preset"), "Precise")


def change_slider(page: Page) -> None:
    slider = key(popover(page, "chat_settings"), "sampling_temperature").get_by_role("slider")
    slider.press("ArrowRight")


def change_number(page: Page) -> None:
    field = key(popover(page, "chat_settings"), "sampling_seed").get_by_role("spinbutton")
    type_into(field, "64")


def change_stop(page: Page) -> None:
    field = key(popover(page, "chat_settings"), "sampling_stop").get_by_role("combobox")
    type_into(field, "STOP")
    # The list of options lies over the page.
    page.keyboard.press("Escape")


def sampling(chat: Chat) -> dict[str, object]:
    found: dict[str, object] = chat.info.settings.get("sampling", {})
    return found


CHANGES: dict[str, tuple[Change, Has]] = {
    "title": (change_title, lambda chat: chat.info.title == "Of B"),
    "pin": (change_pin, lambda chat: chat.info.is_pinned),
    "instructions": (change_system, lambda chat: chat.info.settings.get("system") == "Of B."),
    "character": (change_character, lambda chat: chat.info.character == "Ada"),
    "mode": (change_mode, lambda chat: chat.info.mode == "chat"),
    "preset": (change_preset, lambda chat: chat.info.settings.get("preset") == "precise"),
    "slider": (change_slider, lambda chat: "temperature" in sampling(chat)),
    "number": (change_number, lambda chat: sampling(chat).get("seed") == 64),
    "stop strings": (change_stop, lambda chat: sampling(chat).get("stop") == ["STOP"]),
}


def make_chat(house: House, text: str) -> int:
    said = [CopiedMessage(None, "user", text, 1.0), CopiedMessage(0, "assistant", f"About {text}.", 1.0)]
    return house.store.add(CopiedChat(tuple(said), text))


def open_chat(page: Page, house: House, number: int | str) -> None:
    page.goto(f"{house.url}/Chat?chat={number}")
    expect(page.get_by_test_id("stChatInputTextArea")).to_be_enabled()


def show(page: Page, number: int, text: str) -> None:
    press(page, f"chat_open_{number}")
    expect(page.get_by_test_id("stChatMessage").first).to_contain_text(text)
    # What is typed before the field is this chat's is still put with the chat before.
    expect(page.locator("[data-test-script-state=notRunning]")).to_be_visible()
    page.wait_for_function("place => window.llamadeckShown?.place === place", arg=str(number))


def type_message(page: Page, text: str) -> None:
    type_into(page.get_by_test_id("stChatInputTextArea"), text)
    expect(page.get_by_test_id("stChatMessage").last).to_contain_text(f"You said: {text}")
    expect(key(page, "chat_regenerate").get_by_role("button")).to_be_visible()


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_set_in_one_chat_is_in_no_other_one(house: House, tab: Page, name: str) -> None:
    change, has_it = CHANGES[name]
    a, b = make_chat(house, f"alpha {name}"), make_chat(house, f"beta {name}")
    before = house.store.read(a).info
    open_chat(tab, house, a)
    show(tab, b, f"beta {name}")
    change(tab)
    until(lambda: has_it(house.store.read(b)), tab)
    show(tab, a, f"alpha {name}")
    type_message(tab, f"more {name}")
    after = house.store.read(a).info
    assert (after.title, after.is_pinned, after.mode, after.character, after.settings) == (
        before.title, before.is_pinned, before.mode, before.character, before.settings)  # fmt: skip
    press(tab, "chat_new")
    expect(tab.get_by_test_id("stChatMessage")).to_have_count(0)
    type_message(tab, f"new {name}")
    assert not has_it(house.store.read(max(info.id for info in house.store.chats())))


def test_a_way_back_with_an_open_popover_changes_nothing(house: House, tab: Page) -> None:
    a, b = make_chat(house, "alpha back"), make_chat(house, "beta back")
    open_chat(tab, house, a)
    show(tab, b, "beta back")
    field = key(popover(tab, "chat_who"), "chat_system").locator("textarea")
    field.fill("Typed in B.")
    tab.go_back()
    expect(tab.get_by_test_id("stChatMessage").first).to_contain_text("alpha back")
    tab.keyboard.press("Escape")
    type_message(tab, "in A")
    assert "system" not in house.store.read(a).info.settings


def test_what_another_tab_set_is_not_set_back_by_a_closed_popover(house: House, tab: Page) -> None:
    chat = make_chat(house, "two tabs")
    open_chat(tab, house, chat)
    for name, field in (("chat_whole", "chat_title"), ("chat_who", "chat_system"), ("chat_settings", "sampling_seed")):
        expect(key(popover(tab, name), field)).to_be_visible()
        tab.keyboard.press("Escape")
    house.store.rename(chat, "By the other tab")
    house.store.change_settings(chat, lambda _: {"system": "By the other tab.", "sampling": {"seed": 7}})
    type_message(tab, "first")
    type_message(tab, "second")
    info = house.store.read(chat).info
    assert info.title == "By the other tab"
    assert info.settings == {"system": "By the other tab.", "sampling": {"seed": 7}}


def expect_defaults(page: Page) -> None:
    """A slider that the browser was never given a value for stands at its lowest, and the next step stores that."""
    form = popover(page, "chat_settings")
    expect(key(form, "sampling_temperature")).to_contain_text("0.70")
    expect(key(form, "sampling_max_new_tokens").locator("input")).to_have_value("1024")
    page.keyboard.press("Escape")
    expect(form).to_have_count(0)


def test_a_popover_that_is_opened_long_after_it_was_drawn_shows_what_is_stored(house: House, tab: Page) -> None:
    open_chat(tab, house, "new")
    type_message(tab, "the first question")
    expect_defaults(tab)
    type_message(tab, "the second question")
    newest = max(info.id for info in house.store.chats(1))
    assert "sampling" not in house.store.read(newest).info.settings


def test_a_field_that_is_left_by_a_link_to_another_page_is_whole_when_its_page_is_back(house: House, tab: Page) -> None:
    """The fields beside it once came back empty, and were stored so."""
    a = make_chat(house, "alpha left")
    open_chat(tab, house, a)
    popover(tab, "chat_who").locator("textarea").fill("Be kind.")
    for name in ("Settings", "Chat"):
        link = tab.get_by_test_id("stSidebarNav").get_by_role("link", name=name)
        # A click that leaves a field may be lost to what the page draws then; the next one is not.
        until(lambda link=link, name=name: link.click() is None and f"/{name}" in tab.url, tab)  # type: ignore[misc]
    expect(tab.get_by_test_id("stChatInputTextArea")).to_be_enabled()
    expect(popover(tab, "chat_who").locator("textarea")).to_have_value("Be kind.")
    tab.keyboard.press("Escape")
    expect_defaults(tab)
    type_message(tab, "more")
    settings = house.store.read(a).info.settings
    assert settings["system"] == "Be kind." and "sampling" not in settings


def test_instructions_that_another_tab_changed_are_not_written_over(house: House, tab: Page) -> None:
    chat = make_chat(house, "both write")
    open_chat(tab, house, chat)
    field = key(popover(tab, "chat_who"), "chat_system").locator("textarea")
    house.store.change_settings(chat, lambda _: {"system": "Theirs."})
    type_into(field, "Mine.", "Control+Enter")
    expect(tab.get_by_text("was not written over it (Mine.).")).to_be_visible()
    assert house.store.read(chat).info.settings == {"system": "Theirs."}
    expect(field).to_have_value("Theirs.")
    type_into(field, "Both.", "Control+Enter")
    until(lambda: house.store.read(chat).info.settings == {"system": "Both."}, tab)


def test_instructions_keep_the_focus_where_a_space_at_their_end_is_not_stored(house: House, tab: Page) -> None:
    """The field was another one then, and the next words went to the page, where a letter is a command."""
    a = make_chat(house, "alpha focused")
    open_chat(tab, house, a)
    field = popover(tab, "chat_who").locator("textarea")
    field.click()
    tab.keyboard.type("Speak like a pirate. ")
    tab.keyboard.press("Control+Enter")
    until(lambda: house.store.read(a).info.settings.get("system") == "Speak like a pirate.", tab)
    tab.keyboard.type("Ahoy")
    tab.keyboard.press("Control+Enter")
    until(lambda: house.store.read(a).info.settings.get("system") == "Speak like a pirate. Ahoy", tab)


def test_what_is_typed_stays_in_its_chat_and_comes_back_there(house: House, tab: Page) -> None:
    a, b = make_chat(house, "alpha typed"), make_chat(house, "beta typed")
    open_chat(tab, house, a)
    field = tab.get_by_test_id("stChatInputTextArea")
    field.fill("only for A")
    show(tab, b, "beta typed")
    expect(field).to_have_value("")
    type_message(tab, "only for B")
    show(tab, a, "alpha typed")
    expect(field).to_have_value("only for A")
    field.press("Enter")
    expect(tab.get_by_test_id("stChatMessage").last).to_contain_text("You said: only for A")
    show(tab, b, "beta typed")
    show(tab, a, "alpha typed")
    expect(field).to_have_value("")
    assert [one.text for one in house.store.read(b).messages if one.role == "user"] == ["beta typed", "only for B"]


def test_a_change_of_a_message_that_was_left_unfinished_goes_on(house: House, tab: Page) -> None:
    """Another chat closes the editor; when it was opened again, what had been typed was gone."""
    a, b = make_chat(house, "alpha edited"), make_chat(house, "beta edited")
    open_chat(tab, house, a)
    edit_last(tab, "About alpha edited.").fill("Half of it")
    show(tab, b, "beta edited")
    show(tab, a, "alpha edited")
    field = edit_last(tab, "Half of it")
    press(tab, "chat_edit_cancel")
    expect(field).to_have_count(0)
    edit_last(tab, "About alpha edited.")
    press(tab, "chat_edit_cancel")
    assert [one.text for one in house.store.read(a).messages] == ["alpha edited", "About alpha edited."]


def edit_last(page: Page, text: str) -> Locator:
    """The field in which the chat's last message is changed, with the text that it begins with."""
    last = page.get_by_test_id("stChatMessage").last
    press(last, "message_menu")
    page.get_by_text("Edit", exact=True).click()
    expect(last.get_by_role("textbox")).to_have_value(text)
    return last.get_by_role("textbox")


def test_what_is_typed_in_a_new_chat_waits_there_over_other_chats_and_a_reload(house: House, tab: Page) -> None:
    """A new chat's name is another one after each of these, and the text once was gone with the old one."""
    a = make_chat(house, "alpha waiting")
    open_chat(tab, house, "new")
    field = tab.get_by_test_id("stChatInputTextArea")
    field.fill("not sent yet")
    show(tab, a, "alpha waiting")
    expect(field).to_have_value("")
    press(tab, "chat_new")
    expect(field).to_have_value("not sent yet")
    tab.reload()
    expect(field).to_have_value("not sent yet")
    field.press("Enter")
    expect(tab.get_by_test_id("stChatMessage").last).to_contain_text("You said: not sent yet")
    press(tab, "chat_new")
    expect(tab.get_by_test_id("stChatMessage")).to_have_count(0)
    expect(field).to_have_value("")


def test_what_is_put_into_the_input_leaves_what_was_typed_there(house: House, tab: Page) -> None:
    """A question that was taken back once took the place of the next one, half typed."""
    a = make_chat(house, "alpha taken back")
    open_chat(tab, house, a)
    field = tab.get_by_test_id("stChatInputTextArea")
    # Slowly: each new line of it moves what lies below.
    type_into(field, "forever wait=0.5")
    expect(key(tab, "chat_stop").get_by_role("button")).to_be_visible()
    type_into(field, "the next question")
    expect(key(tab, "chat_take_back").get_by_role("button")).to_be_visible()
    field.press_sequentially("half typed")
    press(tab, "chat_take_back")
    expect(field).to_have_value("the next question\n\nhalf typed")
    tab.reload()
    expect(field).to_have_value("the next question\n\nhalf typed")
    field.fill("")
    press(tab, "chat_stop")
    expect(key(tab, "chat_stop")).to_have_count(0)


def test_the_beginning_of_an_answer_is_for_one_answer_of_its_chat(house: House, tab: Page) -> None:
    a, b = make_chat(house, "alpha start"), make_chat(house, "beta start")
    open_chat(tab, house, b)
    field = key(popover(tab, "chat_extras"), "chat_start").locator("textarea")
    type_into(field, "Sure: ", "Control+Enter")
    show(tab, a, "alpha start")
    type_message(tab, "in A")
    show(tab, b, "beta start")
    type_into(tab.get_by_test_id("stChatInputTextArea"), "in B")
    expect(tab.get_by_test_id("stChatMessage").last).to_contain_text(re.compile(r"Sure:\s*You said: in B"))
    type_message(tab, "again")
    answers = [[one.text for one in house.store.read(chat).messages][3::2] for chat in (a, b)]
    assert answers == [["You said: in A "], ["Sure:You said: in B ", "You said: again "]]


def test_a_notebooks_text_stays_in_its_notebook(house: House, tab: Page) -> None:
    books = [house.store.create("notebook") for _ in "ab"]
    for book, text in zip(books, ("The text of A", "The text of B"), strict=True):
        house.store.append_text(book, text)
    tab.goto(f"{house.url}/Chat?chat={books[0]}")
    # For a moment the field before it is there too, hidden.
    field = key(tab, "notebook_text").locator("textarea:visible")
    field.fill("A was changed")
    press(tab, f"chat_open_{books[1]}")
    expect(field).to_have_value("The text of B")
    field.fill("B was changed")
    press(tab, f"chat_open_{books[0]}")
    expect(field).to_have_value("A was changed")
    press(tab, "notebook_undo")
    expect(field).to_have_value("The text of A")
    press(tab, f"chat_open_{books[1]}")
    expect(field).to_have_value("B was changed")
    assert [house.store.read(book).messages[-1].text for book in books] == ["The text of A", "B was changed"]


def test_a_chat_deleted_elsewhere_takes_its_settings_and_its_question_nowhere(house: House, tab: Page) -> None:
    chat = make_chat(house, "to be deleted")
    open_chat(tab, house, chat)
    tab.get_by_test_id("stChatInputTextArea").fill("a question for it")
    count = house.store.count()
    house.store.delete_chat(chat)
    tab.get_by_test_id("stChatInputTextArea").press("Enter")
    expect(tab.get_by_text("This chat was deleted").first).to_be_visible()
    # It is not lost, and nobody was asked.
    expect(tab.get_by_test_id("stChatInputTextArea")).to_have_value("a question for it")
    assert house.store.count() == count - 1
    tab.get_by_test_id("stChatInputTextArea").fill("")


# Characters -----------------------------------------------------------------------------------------------------------


def edit(page: Page, house: House, name: str) -> None:
    page.goto(f"{house.url}/Characters?character={name}")
    press(page, "character_edit")
    expect(key(page, "character_field_name").locator("input")).to_have_value(name)


def test_a_form_that_was_left_open_is_in_no_other_character(house: House, tab: Page) -> None:
    bob = house.characters.character("Bob")
    edit(tab, house, "Ada")
    key(tab, "character_field_context").locator("textarea").fill("Typed for Ada.")
    key(tab, "character_field_picture_upload_0").locator("input").set_input_files(
        {"name": "ada.png", "mimeType": "image/png", "buffer": PICTURE}
    )
    expect(tab.get_by_text("Unsaved changes").first).to_be_visible()
    press(tab, "characters_back")
    press(tab, "character_open_Bob")
    press(tab, "character_edit")
    expect(key(tab, "character_field_context").locator("textarea")).to_have_value("Bob knows.")
    tab.get_by_role("tab", name="Dialogue").click()
    key(tab, "character_field_greeting").locator("textarea").first.fill("Ho.")
    press(tab, "character_save")
    expect(tab.get_by_text("is saved")).to_be_visible()
    assert house.characters.character("Bob") == Character("Bob", greeting="Ho.", context=bob.context)
    assert house.characters.need("Bob").picture_path is None
    assert house.characters.character("Ada").context == "Ada knows."


def test_a_delete_button_of_an_old_page_deletes_no_other_character(house: House, tab: Page) -> None:
    store = house.characters
    store.add(Character("Cleo", greeting="Old."))
    tab.goto(f"{house.url}/Characters?character=Cleo")
    expect(key(tab, "character_delete")).to_be_visible()
    store.delete("Cleo")
    store.add(Character("Cleo", greeting="New, by another tab."))
    press(tab, "character_delete")
    expect(tab.get_by_text("was not deleted")).to_be_visible()
    assert store.character("Cleo").greeting == "New, by another tab."
