"""Takes the picture of the page Download for the README from the real page, with the Hub's stand-in behind it.

python -m benchmarks.pictures docs/download.png
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.dashboard import CHROMIUM, FLAGS, dashboard, make_hollow_model
from tests.hub_standin import HubStandin

VIEW = {"width": 1180, "height": 900}
WAIT_MS = 60_000
RATE_BYTES_S = 40_000_000
COLORS = 128
REPO = "TheBloke/Llama-2-13B-chat-GPTQ"
BRANCHES = ("main", "gptq-4bit-32g-actorder_True")


def main() -> None:
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for branch in BRANCHES:
            make_hollow_model(home / "hub" / REPO / branch, f"{REPO}:{branch}")
        with HubStandin(home / "hub") as hub:
            hub.behaviour.rate_bytes_s = RATE_BYTES_S
            environment = dict(os.environ) | {
                "LLAMADECK_MODELS": str(home / "models"),
                "LLAMADECK_DATA": str(home / "data"),
                "LLAMADECK_WORKER": "tests.fake_worker",
                "HF_ENDPOINT": hub.url,
            }
            with dashboard(environment) as url:
                write_small(take(url), target)


def take(url: str) -> bytes:
    """The branches of Llama-2 13B for a card of 24 GB, while one of them is being fetched."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = chromium.new_context(locale="en-US", viewport=VIEW).new_page()  # type: ignore[arg-type]
        page.goto(f"{url}/Download")
        choose(page, "catalogue_repo", REPO)
        choose(page, "plan_card", "RTX 4090")
        expect(page.get_by_role("img", name="fits on RTX 4090")).to_be_visible(timeout=WAIT_MS)
        page.locator(".st-key-find_download").get_by_role("button").click()
        expect(page.locator("[class*=st-key-job_]").get_by_text("left").first).to_be_visible(timeout=WAIT_MS)
        page.get_by_role("radio", name="Find").click()
        expect(page.get_by_role("img", name="fits on RTX 4090")).to_be_visible(timeout=WAIT_MS)
        choose(page, "download_source", "huggingface.co")
        expect(page.locator(".st-key-download_own")).to_have_count(0, timeout=WAIT_MS)
        # A table is a canvas: when it is drawn cannot be waited for.
        page.wait_for_timeout(1500)
        picture = page.screenshot()
        chromium.close()
    return picture


def choose(page: Page, key: str, name: str) -> None:
    field = page.locator(f".st-key-{key}").get_by_role("combobox")
    field.fill(name)
    field.press("Enter")


def write_small(picture: bytes, target: Path) -> None:
    """With few colours, which is what a page has."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLORS).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
