"""Your own model in a real browser: chosen, made by the real process while the tab is closed, and loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.dashboard import dashboard, key
from tests.support.plain_models import make_adapter, make_plain

WAIT_MS, MADE_MS = 60_000, 240_000
NAME = "Tiny-1M-pirate-GPTQ-4bit-32g"
CARD = f"own_entry_{NAME}"


def open_page(browser: Browser, url: str, section: str) -> Page:
    page = browser.new_context(locale="en-US").new_page()
    page.goto(f"{url}/Download")
    page.get_by_role("radio", name=section).click(timeout=WAIT_MS)
    return page


@pytest.mark.engine
def test_a_model_with_an_adapter_is_made_while_the_tab_is_closed(browser: Browser, tmp_path: Path) -> None:
    plain = make_plain(tmp_path / "models" / "Tiny-1M")
    make_adapter(plain, tmp_path / "adapters" / "pirate")
    places = {f"LLAMADECK_{name.upper()}": str(tmp_path / name) for name in ("models", "adapters", "data")}
    with dashboard(os.environ | places | {"LLAMADECK_CPU": "1"}) as url:
        page = open_page(browser, url, "Your own model")
        key(page, "own_group").get_by_text("32", exact=True).click()
        key(page, "own_adapters").get_by_role("combobox").click()
        page.get_by_role("option", name="pirate").click()
        page.keyboard.press("Escape")
        expect(page.get_by_text(NAME).first).to_be_visible(timeout=WAIT_MS)
        key(page, "own_begin").get_by_role("button").click()
        expect(key(page, CARD)).to_contain_text("Quantizing", timeout=WAIT_MS)
        page.close()

        later = open_page(browser, url, "Downloads")
        expect(key(later, CARD)).to_contain_text("knows nothing of language", timeout=MADE_MS)
        key(later, f"own_load_{NAME}").get_by_role("button").click()
        expect(later.get_by_text(NAME).first).to_be_visible(timeout=WAIT_MS)
        later.close()
    made = {path.name for path in (tmp_path / "models").iterdir()}
    assert made == {"Tiny-1M", NAME}
