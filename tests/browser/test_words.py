"""What is Streamlit's own on the pages, as the browser shows it: its words in the reader's language, and its themes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.dashboard import dashboard

WAIT_MS = 60_000


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home: Path = tmp_path_factory.mktemp("home_words")
    folders = {f"LLAMADECK_{name.upper()}": str(home / name) for name in ("models", "data", "characters")}
    with dashboard(os.environ | folders | {"LLAMADECK_WORKER": "tests.support.fake_worker"}) as url:
        yield url


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(locale="zh-CN", color_scheme="light")
    yield context.new_page()
    context.close()


def test_a_field_says_in_chinese_how_its_text_is_taken(page: Page, address: str) -> None:
    page.goto(f"{address}/Download")
    page.get_by_role("searchbox").or_(page.get_by_role("textbox")).first.fill("Qwen3")
    expect(page.get_by_test_id("InputInstructions").first).to_have_text("按回车键应用", timeout=WAIT_MS)


def test_a_theme_chosen_on_settings_holds_on_every_page(page: Page, address: str) -> None:
    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor"))

    page.goto(f"{address}/Settings")
    chosen = page.get_by_role("radio", name="深色")
    expect(chosen).to_have_attribute("aria-checked", "false", timeout=WAIT_MS)
    light = background()
    with page.expect_navigation():
        chosen.click()
    expect(chosen).to_have_attribute("aria-checked", "true", timeout=WAIT_MS)
    dark = background()
    assert dark != light
    for path in ("", "Chat", "Download"):
        page.goto(f"{address}/{path}")
        expect(page.get_by_test_id("stSidebarNav")).to_be_visible(timeout=WAIT_MS)
        assert background() == dark
    expect(page.get_by_test_id("stMainMenu")).to_have_count(0)


def test_choices_speak_the_language_that_is_switched_to(page: Page, address: str) -> None:
    """The card that is planned for kept the words of the language before until it was opened."""
    page.goto(f"{address}/Download")
    card = page.locator(".st-key-plan_gpu").get_by_role("combobox")
    expect(card).to_have_value(re.compile("^本机："), timeout=WAIT_MS)
    page.get_by_role("radio", name="English").first.click()
    expect(card).to_have_value(re.compile("^This machine: "), timeout=WAIT_MS)
    page.get_by_role("radio", name="简体中文").first.click()
    expect(card).to_have_value(re.compile("^本机："), timeout=WAIT_MS)


def test_an_upload_speaks_chinese_and_english_again_after_a_switch(page: Page, address: str) -> None:
    """The last one: the choice of English is remembered for browsers of this locale."""
    page.goto(f"{address}/Characters")
    page.get_by_role("button", name="导入").first.click()
    upload = page.get_by_test_id("stFileUploaderDropzone").first
    expect(upload).to_contain_text("上传", timeout=WAIT_MS)
    expect(upload).to_contain_text("每个文件最大")
    page.keyboard.press("Escape")
    page.get_by_role("radio", name="English").first.click()
    page.get_by_role("button", name="Import").first.click()
    expect(upload).to_contain_text("per file", timeout=WAIT_MS)
    expect(upload).to_contain_text("Upload")
