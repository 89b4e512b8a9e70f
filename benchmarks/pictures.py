"""Takes the README's pictures from the real pages: python -m benchmarks.pictures [chat] [characters] [download] [fit]

The chat is the starter model's own; the Hub, the driver of a GPU and the models that fit or do not are stand-ins.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from core.common.paths import ROOT
from core.starter import build as starter
from tests.support.dashboard import CHROMIUM, FLAGS, dashboard, key, make_hollow_model
from tests.support.hub_standin import HubStandin
from tests.support.nvml_standin import SOURCES, Standin, compile_library

WAIT_MS = 60_000
# A table is a canvas, and bars and menus move into their places: when they are there cannot be waited for.
STILL_MS = 1500
RATE_BYTES_S = 40_000_000
# What a page needs, drawn faces among it.
COLORS = 256
KMEANS = 3
REPO = "TheBloke/Llama-2-13B-chat-GPTQ"
BRANCHES = ("main", "gptq-4bit-32g-actorder_True")
MODELS = {"Llama-2-13B-chat-GPTQ": REPO, "Llama-2-70B-Chat-GPTQ": "TheBloke/Llama-2-70B-Chat-GPTQ"}
QUESTION = "What is the capital of France?"
LETTER = "Write a short letter to a friend about a journey through the mountains."
LETTER_CHARS = 170


def main() -> None:
    for name in sys.argv[1:] or TAKES:
        with tempfile.TemporaryDirectory() as folder:
            picture = TAKES[name](Path(folder))
        target = ROOT / "docs" / f"{name}.png"
        Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLORS, kmeans=KMEANS).save(target, optimize=True)
        print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


@contextmanager
def open_page(home: Path, name: str, width: int, height: int, **settings: str) -> Iterator[Page]:
    """The page `name` of a dashboard whose files lie in `home`, with `settings` in its environment."""
    environment = dict(os.environ) | {"LLAMADECK_MODELS": str(home / "models"), "LLAMADECK_DATA": str(home / "data")}
    with dashboard(environment | settings) as url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        view = {"width": width, "height": height}
        page = chromium.new_context(locale="en-US", viewport=view).new_page()  # type: ignore[arg-type]
        page.goto(f"{url}/{name}")
        yield page
        chromium.close()


def take_chat(home: Path) -> bytes:
    """The starter writes a letter, after a question that it has answered."""
    (home / "models").mkdir()
    starter.install(starter.ensure_cached(lambda stage, fraction: None), home / "models" / starter.NAME)
    with open_page(home, "Chat", 1240, 860, LLAMADECK_LOAD=starter.NAME) as page:
        field = page.get_by_test_id("stChatInputTextArea")
        expect(field).to_be_enabled(timeout=WAIT_MS)
        key(page, "chat_settings").get_by_role("button").first.click()
        slider = key(page, "sampling_temperature").get_by_role("slider")
        slider.press("Home")
        expect(slider).to_have_value("0")
        page.keyboard.press("Escape")
        expect(slider).to_be_hidden()
        # What the mouse points at looks different.
        page.mouse.move(1200, 840)
        for number, question in enumerate((QUESTION, LETTER)):
            expect(key(page, "chat_stop")).to_have_count(0, timeout=WAIT_MS)
            field.fill(question)
            field.press("Enter")
            expect(page.get_by_test_id("stChatMessage")).to_have_count(2 * number + 2, timeout=WAIT_MS)
        page.wait_for_function(
            "length => [...document.querySelectorAll('[data-testid=stChatMessage]')].at(-1).innerText.length > length",
            arg=LETTER_CHARS,
        )
        return page.screenshot()


def take_characters(home: Path) -> bytes:
    with open_page(home, "Characters", 1180, 900, LLAMADECK_WORKER="tests.support.fake_worker") as page:
        expect(page.get_by_text("Wren").first).to_be_visible(timeout=WAIT_MS)
        page.wait_for_timeout(STILL_MS)
        return page.screenshot()


def take_download(home: Path) -> bytes:
    """The branches of Llama-2 13B for a card of 24 GB, while one of them is being fetched."""
    for branch in BRANCHES:
        make_hollow_model(home / "hub" / REPO / branch, f"{REPO}:{branch}")
    with HubStandin(home / "hub") as hub:
        hub.behaviour.rate_bytes_s = RATE_BYTES_S
        settings = {"LLAMADECK_WORKER": "tests.support.fake_worker", "HF_ENDPOINT": hub.url}
        with open_page(home, "Download", 1180, 900, **settings) as page:
            page.get_by_role("radio", name="Llama 2 (2023)").click()
            choose(page, "catalogue_repo", REPO)
            choose(page, "plan_gpu", "RTX 4090")
            expect(page.get_by_role("img", name="fits on RTX 4090")).to_be_visible(timeout=WAIT_MS)
            key(page, "find_download").get_by_role("button").click()
            expect(page.locator("[class*=st-key-job_]").get_by_text("left").first).to_be_visible(timeout=WAIT_MS)
            page.get_by_role("radio", name="Find").click()
            expect(page.get_by_role("img", name="fits on RTX 4090")).to_be_visible(timeout=WAIT_MS)
            choose(page, "download_source", "huggingface.co")
            expect(page.locator(".st-key-download_own")).to_have_count(0, timeout=WAIT_MS)
            page.wait_for_timeout(STILL_MS)
            return page.screenshot()


def take_fit(home: Path) -> bytes:
    """A model that fits on an RTX 4090 and one that does not."""
    for name, repo in MODELS.items():
        make_hollow_model(home / "models" / name, repo)
    for folder in ("library", "driver"):
        (home / folder).mkdir()
    standin = Standin(home / "driver", compile_library(home / "library"))
    driver, first, _ = (SOURCES / "two_4090.ini").read_text("utf-8").split("[gpu]")
    standin.write(f"{driver}[gpu]{first}")
    settings: Mapping[str, str] = standin.environment({"LLAMADECK_WORKER": "tests.support.fake_worker"})
    with open_page(home, "Load_Model", 1180, 1140, **settings) as page:
        expect(page.get_by_role("img", name="does not fit on NVIDIA GeForce RTX 4090")).to_be_visible(timeout=WAIT_MS)
        page.wait_for_timeout(STILL_MS)
        return page.screenshot()


def choose(page: Page, name: str, value: str) -> None:
    field = key(page, name).get_by_role("combobox")
    field.fill(value)
    field.press("Enter")


TAKES: dict[str, Callable[[Path], bytes]] = {
    "chat": take_chat,
    "characters": take_characters,
    "download": take_download,
    "fit": take_fit,
}

if __name__ == "__main__":
    main()
