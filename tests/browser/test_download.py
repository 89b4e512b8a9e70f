"""A model from a name to an answer in a real browser: found, paused, resumed after the server was killed, loaded."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from core.common.paths import ROOT
from tests.support.checkpoints import Recipe, make_checkpoint
from tests.support.dashboard import CHROMIUM, FLAGS, free_port, key, wait_until_healthy
from tests.support.hub_standin import HubStandin

REPO, FOLDER = "some/tiny-GPTQ", "some_tiny-GPTQ"
WAIT_MS = 60_000
LOAD_MS = 240_000
SLOW_BYTES_S = 150_000
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN")

Server = subprocess.Popen[bytes]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubStandin]:
    """A Hub with one model that takes about 20 s where the stand-in is made slow."""
    make_checkpoint(tmp_path / "hub" / REPO / "main", Recipe(hidden=512, intermediate=1024, num_layers=3))
    with HubStandin(tmp_path / "hub") as standin:
        yield standin


@pytest.fixture
def start(tmp_path: Path, hub: HubStandin) -> Iterator[Callable[[], tuple[Server, str]]]:
    """Starts a dashboard, the second time in the place of the first: same folders, same port."""
    environment = {name: value for name, value in os.environ.items() if name not in PROXIES} | {
        "LLAMADECK_MODELS": str(tmp_path / "models"),
        "LLAMADECK_DATA": str(tmp_path / "data"),
        "HF_ENDPOINT": hub.url,
    }
    port, running = free_port(), []
    command = [sys.executable, "-m", "ui.server.start", "--server.port", str(port), "--server.address", "127.0.0.1"]

    def begin() -> tuple[Server, str]:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        running.append(process)
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url, process)
        return process, url

    yield begin
    for process in running:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        chromium: Browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium.new_context(locale="en-US").new_page()
        chromium.close()


def click(page: Page, name: str) -> None:
    key(page, name).get_by_role("button").click()


def open_page(page: Page, url: str) -> None:
    page.goto(f"{url}/Download")
    expect(page.get_by_role("heading", name="Download", level=1)).to_be_visible(timeout=WAIT_MS)


def begin_download(page: Page) -> None:
    field = key(page, "find_text").get_by_role("searchbox")
    field.fill("tiny")
    field.press("Enter")
    # While the search goes on, the page still has the button of the model that was shown before.
    expect(key(page, f"find_download_{FOLDER}")).to_be_visible(timeout=WAIT_MS)
    click(page, f"find_download_{FOLDER}")
    expect(card(page)).to_contain_text(re.compile(r"Downloading.*left", re.DOTALL), timeout=WAIT_MS)


def card(page: Page) -> Locator:
    return key(page, f"job_entry_{FOLDER}")


def test_a_model_is_found_paused_resumed_after_a_kill_and_loaded(
    page: Page, hub: HubStandin, start: Callable[[], tuple[Server, str]], tmp_path: Path
) -> None:
    server, url = start()
    hub.behaviour.rate_bytes_s = SLOW_BYTES_S
    open_page(page, url)
    begin_download(page)

    click(page, f"job_pause_{FOLDER}")
    expect(card(page)).to_contain_text("Paused", timeout=WAIT_MS)
    click(page, f"job_resume_{FOLDER}")
    expect(card(page)).to_contain_text("Downloading", timeout=WAIT_MS)

    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Chat").click()
    expect(key(page, "sidebar_downloads")).to_be_visible(timeout=WAIT_MS)

    server.kill()
    server.wait()
    part = next((tmp_path / "models").glob(".download-*/*.safetensors*"))
    fetched = part.stat().st_size
    assert fetched > 0
    asked = len(hub.requests)
    hub.behaviour.rate_bytes_s = 0
    _, url = start()
    open_page(page, url)
    page.get_by_role("radio", name="Downloads (1)").or_(page.get_by_role("button", name="Downloads (1)")).click()
    expect(card(page)).to_contain_text("Paused", timeout=WAIT_MS)
    click(page, f"job_resume_{FOLDER}")
    expect(card(page)).to_contain_text("Complete and verified", timeout=WAIT_MS)
    ranges = [request.headers.get("Range", "") for request in hub.requests[asked:] if "safetensors" in request.path]
    assert f"bytes={fetched}-" in ranges
    for file in (hub.root / REPO / "main").iterdir():
        assert (tmp_path / "models" / FOLDER / file.name).read_bytes() == file.read_bytes()

    click(page, f"job_load_{FOLDER}")
    expect(page.get_by_text("Successfully loaded")).to_be_visible(timeout=LOAD_MS)


def test_a_running_download_can_be_cancelled_on_second_thought(
    page: Page, hub: HubStandin, start: Callable[[], tuple[Server, str]], tmp_path: Path
) -> None:
    _, url = start()
    hub.behaviour.rate_bytes_s = SLOW_BYTES_S
    open_page(page, url)
    begin_download(page)
    shown = card(page).get_by_test_id("stProgress").inner_text()
    card(page).get_by_text("Files").click()
    expect(card(page).get_by_text("tokenizer.json")).to_be_visible(timeout=WAIT_MS)
    card(page).get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancel this download?")).to_be_visible()
    # What moves is drawn again and again meanwhile, and the page when a file or a phase ends: what is open stays open.
    expect(card(page).get_by_test_id("stProgress")).not_to_have_text(shown, timeout=WAIT_MS)
    expect(page.get_by_text("Cancel this download?")).to_be_visible()
    expect(card(page).get_by_text("tokenizer.json")).to_be_visible(timeout=WAIT_MS)
    click(page, f"job_cancel_{FOLDER}")
    expect(card(page)).to_contain_text("Cancelled", timeout=WAIT_MS)
    expect(key(page, "sidebar_downloads")).to_have_count(0, timeout=WAIT_MS)
    assert not [path for path in (tmp_path / "models").rglob("*") if path.is_file() and path.suffix != ".lock"]
