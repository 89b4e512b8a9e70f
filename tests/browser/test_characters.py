"""Characters in a real browser: made, kept while pages change, saved in two tabs, imported, exported, many at once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from core.personas.cards import FORMATS, read_card, write
from core.personas.character import Character
from core.personas.store import Characters
from tests.support.cards import PICTURE, V2
from tests.support.dashboard import dashboard, key

WAIT_MS = 60_000
HAND_MS = 200
NARROW = {"width": 420, "height": 900}
ADA = Character("Ada", greeting="Hello {{user}}", context="{{char}} teaches.", tags=("maths",))
BOOK = {"entries": [{"keys": ["bee"], "content": "Bees sting. " * 20, "extensions": {}, "enabled": True,
                     "insertion_order": 1}]}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home_characters")


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    folders = {f"LLAMADECK_{name.upper()}": str(home / name) for name in ("models", "data", "characters")}
    with dashboard(os.environ | folders | {"LLAMADECK_WORKER": "tests.support.fake_worker"}) as url:
        yield url


@pytest.fixture
def store(home: Path, address: str) -> Characters:
    """The dashboard's folder, empty at the beginning of each test."""
    folder = home / "characters"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    return Characters(folder)


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(locale="en-US", accept_downloads=True)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def open_page(page: Page, address: str, query: str = "") -> Page:
    page.goto(f"{address}/Characters{query}")
    expect(page.locator("h1, h2").first).to_be_visible(timeout=WAIT_MS)
    return page


def click(page: Page, name: str) -> None:
    key(page, name).get_by_role("button").first.click()


def field(page: Page, name: str) -> Locator:
    return key(page, f"character_field_{name}").locator("input, textarea").first


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def edit(page: Page, address: str, name: str) -> None:
    open_page(page, address, f"?character={name}")
    click(page, "character_edit")
    expect(field(page, "name")).to_have_value(name)


def go(page: Page, name: str) -> None:
    # As a hand does it: the button of the mouse goes down, which leaves a field, and up a moment later.
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click(delay=HAND_MS)


def test_a_character_is_made_and_a_chat_with_it_begins(page: Page, address: str, store: Characters) -> None:
    open_page(page, address)
    expect(page.get_by_text("No characters yet")).to_be_visible()
    click(page, "characters_new")
    field(page, "name").fill("小明 🦙")
    field(page, "context").fill("{{char}} sings.")
    # The field is left by the click itself, which must not miss the button.
    click(page, "character_save")
    expect(page.get_by_role("heading", name="小明 🦙")).to_be_visible(timeout=WAIT_MS)
    assert store.find("小明 🦙").character == Character("小明 🦙", context="{{char}} sings.")
    click(page, "character_chat")
    expect(page).to_have_url(re.compile(r"/Chat"), timeout=WAIT_MS)


def test_a_click_on_a_portrait_opens_the_character_and_one_below_it_a_chat(
    page: Page, address: str, store: Characters
) -> None:
    store.add(ADA, PICTURE)
    open_page(page, address)
    portrait = key(page, "character_card").get_by_role("img", name="Ada")
    box = portrait.bounding_box(timeout=WAIT_MS)
    assert box is not None
    page.mouse.click(box["x"] + box["width"] - 8, box["y"] + 8)
    expect(page.get_by_role("heading", name="Ada")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_test_id("stElementToolbar")).to_be_hidden()
    click(page, "characters_back")
    key(page, "character_card").get_by_role("link", name="Chat").click()
    expect(page.get_by_text("Hello friend")).to_be_visible(timeout=WAIT_MS)


def test_words_in_a_field_that_was_not_left_outlive_a_switch_of_pages(
    page: Page, address: str, store: Characters
) -> None:
    store.add(ADA)
    edit(page, address, "Ada")
    field(page, "context").fill("{{char}} sings.")
    go(page, "GPU monitor")
    expect(page.get_by_role("heading", name="GPU monitor")).to_be_visible(timeout=WAIT_MS)
    go(page, "Characters")
    expect(field(page, "context")).to_have_value("{{char}} sings.", timeout=WAIT_MS)
    expect(page.get_by_text("Unsaved changes")).to_be_visible()
    assert store.character("Ada") == ADA


def test_two_tabs_do_not_write_over_each_other(
    page: Page, context: BrowserContext, address: str, store: Characters
) -> None:
    store.add(ADA)
    other = context.new_page()
    edit(page, address, "Ada")
    edit(other, address, "Ada")
    field(page, "context").fill("mine")
    field(other, "context").fill("theirs")
    click(other, "character_save")
    expect(other.get_by_text("is saved")).to_be_visible(timeout=WAIT_MS)
    click(page, "character_save")
    expect(page.get_by_text("was saved elsewhere meanwhile")).to_be_visible(timeout=WAIT_MS)
    assert store.character("Ada").context == "theirs"
    click(page, "character_keep_mine")
    expect(page.get_by_text("is saved")).to_be_visible(timeout=WAIT_MS)
    assert store.character("Ada").context == "mine"


def test_cards_are_imported_and_exported_as_they_are(page: Page, address: str, store: Characters) -> None:
    open_page(page, address)
    click(page, "characters_import")
    files = [
        {"name": "rosa.json", "mimeType": "application/json", "buffer": json.dumps(V2).encode()},
        {"name": "ada.png", "mimeType": "image/png", "buffer": write(ADA, PICTURE, "png")},
        {"name": "photo.png", "mimeType": "image/png", "buffer": PICTURE},
    ]
    page.locator("input[type=file]").set_input_files(files)  # type: ignore[arg-type]
    expect(page.get_by_text("photo.png is a picture without a character")).to_be_visible(timeout=WAIT_MS)
    page.keyboard.press("Escape")
    assert [entry.name for entry in store.entries()] == ["Ada", "Rosa"]
    click(page, "character_open_Ada")
    for kind in FORMATS:
        if not key(page, f"character_export_{kind}").is_visible():
            click(page, "character_export")
        with page.expect_download() as download:
            click(page, f"character_export_{kind}")
        content = Path(download.value.path()).read_bytes()
        assert read_card(download.value.suggested_filename, content).character == store.character("Ada")


def test_a_deleted_character_comes_back(page: Page, address: str, store: Characters) -> None:
    store.add(ADA, PICTURE)
    open_page(page, address, "?character=Ada")
    click(page, "character_delete")
    expect(page.get_by_text("was deleted")).to_be_visible(timeout=WAIT_MS)
    expect(key(page, "character_open_Ada")).to_have_count(0)
    click(page, "characters_undo_button")
    expect(page.get_by_role("heading", name="Ada")).to_be_visible(timeout=WAIT_MS)
    assert store.picture("Ada") == PICTURE


def test_a_lorebook_is_changed_in_its_table_and_in_its_form(page: Page, address: str, store: Characters) -> None:
    store.add(replace(ADA, lorebook=BOOK))
    edit(page, address, "Ada")
    tab(page, "Lorebook")
    table = page.get_by_test_id("stDataFrame").first
    # Its canvas is drawn in steps; the cells that are read aloud come last.
    expect(table.get_by_test_id("glide-cell-0-0")).to_have_count(1, timeout=WAIT_MS)
    # The table is a canvas: the first cell of the first row is a checkbox.
    table.scroll_into_view_if_needed()
    box = table.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 35, box["y"] + 53)
    page.mouse.click(box["x"] + 35, box["y"] + 53, delay=HAND_MS)
    checkbox = key(page, "character_lore_0_enabled").get_by_role("checkbox")
    expect(checkbox).not_to_be_checked(timeout=WAIT_MS)
    key(page, "character_lore_0_content").locator("textarea").fill("Bees hum.")
    click(page, "character_save")
    expect(page.get_by_text("is saved")).to_be_visible(timeout=WAIT_MS)
    saved = store.character("Ada").lorebook["entries"][0]
    assert saved == BOOK["entries"][0] | {"enabled": False, "content": "Bees hum."}


def test_the_preview_follows_what_is_typed(page: Page, address: str, store: Characters) -> None:
    store.add(replace(ADA, lorebook=BOOK))
    edit(page, address, "Ada")
    key(page, "characters_preview").get_by_text("What the model will see").click()
    code = key(page, "characters_preview").get_by_test_id("stCode")
    expect(code).to_contain_text("Ada teaches.", timeout=WAIT_MS)
    field(page, "name").fill("Eve")
    expect(code).to_contain_text("Eve teaches.", timeout=WAIT_MS)
    key(page, "characters_said").locator("input").fill("A bee!")
    expect(code).to_contain_text("Bees sting.", timeout=WAIT_MS)


def test_two_hundred_characters_come_in_pages_with_their_pictures(page: Page, address: str, store: Characters) -> None:
    for number in range(200):
        store.add(Character(f"N{number:03}", greeting="Hi"))
    open_page(page, address)
    expect(key(page, "characters_cards").get_by_role("img")).to_have_count(48, timeout=WAIT_MS)
    page.get_by_role("button", name="Page 5").click()
    expect(key(page, "character_open_N199")).to_be_visible(timeout=WAIT_MS)
    key(page, "characters_search").locator("input").fill("N042")
    expect(key(page, "character_open_N042")).to_be_visible(timeout=WAIT_MS)
    expect(key(page, "characters_cards").get_by_role("img")).to_have_count(1)


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(
    browser: Browser, address: str, store: Characters, scheme: str, locale: str
) -> None:
    name = "W" * 120 + " *bold* 🦙"
    store.add(replace(ADA, lorebook=BOOK))
    long = store.add(Character(name, greeting="x" * 500, tags=("t" * 90,), creator_notes="y" * 300))
    (store.folder / f"{'z' * 80}.yaml").write_text("- a\n")
    context = browser.new_context(locale=locale, color_scheme=scheme, viewport=NARROW)  # type: ignore[arg-type]
    page = open_page(context.new_page(), address)

    def is_narrow() -> bool:
        fits: bool = page.get_by_test_id("stMain").evaluate("element => element.scrollWidth <= element.clientWidth")
        return fits

    expect(key(page, "character_open_Ada")).to_be_visible(timeout=WAIT_MS)
    assert is_narrow()
    for query, shown in ((f"?character={long}", "character_edit"), ("?character=Ada", "character_edit")):
        page.goto(f"{address}/Characters{query}")
        expect(key(page, shown)).to_be_visible(timeout=WAIT_MS)
        assert is_narrow()
    click(page, "character_edit")
    expect(field(page, "name")).to_be_visible(timeout=WAIT_MS)
    for number in range(5):
        page.get_by_role("tab").nth(number).click()
        assert is_narrow()
    context.close()
