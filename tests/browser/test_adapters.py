"""A LoRA adapter in a real browser: looked up, fetched, seen at its model, deleted."""

from __future__ import annotations

import os
import re
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.support.adapters import write_adapter
from tests.support.browser_page import WAIT_MS
from tests.support.checkpoints import make_chat_checkpoint
from tests.support.dashboard import dashboard, key
from tests.support.hub_standin import HubStandin

REPO, FOLDER = "somebody/pirate", "somebody_pirate"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN")


def look_up(page: Page, url: str) -> None:
    page.goto(f"{url}/Download")
    field = key(page, "find_text").get_by_role("searchbox")
    field.fill(REPO, timeout=WAIT_MS)
    field.press("Enter")
    expect(page.get_by_text("This is a LoRA adapter")).to_be_visible(timeout=WAIT_MS)


def test_an_adapter_is_looked_up_fetched_seen_at_its_model_and_deleted(browser: Browser, tmp_path: Path) -> None:
    make_chat_checkpoint(tmp_path / "models" / "tiny", 4096)
    write_adapter(tmp_path / "hub" / REPO / "main", tmp_path / "models" / "tiny", base="meta/tiny")
    there = tmp_path / "adapters" / FOLDER
    with HubStandin(tmp_path / "hub") as hub:
        environment = {name: value for name, value in os.environ.items() if name not in PROXIES} | {
            f"LLAMADECK_{name.upper()}": str(tmp_path / name) for name in ("models", "adapters", "data")
        }
        with dashboard(environment | {"HF_ENDPOINT": hub.url, "LLAMADECK_CPU": "1"}) as url:
            page = browser.new_context(locale="en-US").new_page()
            look_up(page, url)
            expect(page.get_by_text("Models here that can have it: tiny")).to_be_visible(timeout=WAIT_MS)
            page.get_by_role("button", name=re.compile("^(download )?Download [0-9]+")).click()
            card = page.locator('[class*="st-key-job_entry_"]')
            expect(card).to_contain_text("Complete and verified", timeout=WAIT_MS)
            expect(card).to_contain_text("choose the adapter in a chat", timeout=WAIT_MS)
            assert (there / "adapter_model.safetensors").is_file()

            card.get_by_role("button", name="To Load model").click()
            entry = key(page, "load_entry_tiny")
            expect(key(entry, "gauge_adapters_tiny")).to_be_visible(timeout=WAIT_MS)
            entry.get_by_text("Details").click()
            expect(entry.get_by_text(FOLDER)).to_be_visible(timeout=WAIT_MS)
            key(entry, "adapter_ask_tiny").get_by_role("button").click()
            page.get_by_role("button", name="Delete it").click()
            expect(entry.get_by_text(FOLDER)).to_have_count(0, timeout=WAIT_MS)
            assert not there.exists()

            look_up(page, url)
            expect(page.get_by_role("button", name=re.compile("Download [0-9]+"))).to_be_visible(timeout=WAIT_MS)
            page.close()
