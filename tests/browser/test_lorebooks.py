"""Lorebooks in a real browser: a file dropped, an entry typed and tried, chosen for a chat, deleted, brought back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from core.personas.lorebooks import Lorebooks
from tests.support.checkpoints import TEMPLATE, Recipe, make_checkpoint
from tests.support.dashboard import dashboard, key
from tests.support.lorebooks import WORLD_INFO

WAIT_MS = 60_000


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home_lorebooks")
    for name in ("models", "data", "characters"):
        (folder / name).mkdir()
    (folder / "characters" / "Ada.yaml").write_text("name: Ada\ngreeting: A hut!\ncontext: Ada.\n", "utf-8")
    make_checkpoint(folder / "models" / "tiny", Recipe(context_tokens=2048))
    (folder / "models" / "tiny" / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return folder


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    folders = {f"LLAMADECK_{name.upper()}": str(home / name) for name in ("models", "data", "characters")}
    more = {"LLAMADECK_WORKER": "tests.support.fake_worker", "LLAMADECK_LOAD": "tiny"}
    with dashboard(os.environ | folders | more) as url:
        yield url


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(locale="en-US")
    yield context.new_page()
    context.close()


def click(page: Page, name: str) -> None:
    key(page, name).get_by_role("button").first.click()


def test_from_a_file_into_a_chat(page: Page, address: str, home: Path) -> None:
    page.set_default_timeout(WAIT_MS)
    store = Lorebooks(home / "lorebooks")
    page.goto(f"{address}/Characters")
    click(page, "characters_lorebooks")
    click(page, "lorebooks_import")
    file = {"name": "World.json", "mimeType": "application/json", "buffer": json.dumps(WORLD_INFO).encode()}
    page.locator("input[type=file]").set_input_files([file])
    expect(key(page, "lorebooks_results_box")).to_be_visible()
    page.keyboard.press("Escape")
    click(page, "lorebooks_result_0")
    expect(page.get_by_role("heading", name="World")).to_be_visible()
    assert "lorebook=World" in page.url
    # The address alone finds it again.
    page.reload()
    words = key(page, "character_lore_0_content").locator("textarea")
    words.fill("A tall tower.")
    words.blur()
    expect(page.get_by_text("Unsaved changes")).to_be_visible()
    key(page, "lorebook_trial").locator("summary").click()
    said = key(page, "lorebooks_said").locator("input")
    said.fill("See the hut?")
    said.press("Enter")
    expect(key(page, "lorebook_trial").get_by_text("Low.")).to_be_visible()
    click(page, "lorebook_save")
    expect(page.get_by_text("is saved")).to_be_visible()
    assert store.book("World").values["entries"][0]["content"] == "A tall tower."

    page.goto(f"{address}/Chat?chat=new&character=Ada")
    click(page, "chat_lore")
    chosen = key(page, "chat_lorebooks").locator("input")
    chosen.click()
    page.get_by_role("option", name="World").click()
    expect(key(page, "chat_lore").or_(page.get_by_test_id("stPopoverBody")).get_by_text("hut · World")).to_be_visible()

    page.goto(f"{address}/Characters?lorebook=World")
    click(page, "lorebook_delete")
    expect(page.get_by_text("World was deleted")).to_be_visible()
    click(page, "characters_undo_button")
    expect(page.get_by_role("heading", name="World")).to_be_visible()
    assert store.book("World").num_entries == 2
