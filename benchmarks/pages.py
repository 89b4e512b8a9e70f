"""How long a switch of pages takes, as the browser sees it: from the click in the sidebar to the new page's heading.

Run as `python -m benchmarks.pages [--model NAME] [--switches 30] [--json]`. It starts a dashboard of its own with the
models that are on disk and drives it with headless Chromium: at rest, while the model loads, while it answers.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

from core.common.errors import DeckError
from core.common.paths import ROOT
from core.library.scan import find, scan

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
START_S, LOAD_MS = 60, 300_000
# A person looks at a page before the next click; the work that a click left behind ends within this time.
PAUSE_MS = 250
QUESTION = "Write a very long story about a fox and a bear. Tell every detail."
# Each page's place in the sidebar, and its heading: the chat's depends on what was asked.
PAGES = {"Home": "LlamaDeck", "Download": "Download", "Load model": "Load model", "Chat": None,
         "Characters": "Characters", "GPU monitor": "GPU monitor"}  # fmt: skip
SWITCH = """([place, tag, text]) => new Promise(resolve => {
    const links = document.querySelectorAll('[data-testid="stSidebarNavLink"]');
    const begin = performance.now();
    const look = () => {
        const found = [...document.querySelectorAll(tag)].some(e => text === null || e.innerText.trim() === text);
        found ? resolve(performance.now() - begin) : requestAnimationFrame(look);
    };
    links[place].click();
    look();
})"""


def switch_ms(page: Page, name: str) -> float:
    """Go to a page; milliseconds from the click until its heading is in the document."""
    tag = "h2" if name == "Chat" else "h1"
    took: float = page.evaluate(SWITCH, [list(PAGES).index(name), tag, PAGES[name]])
    return took


def measure(page: Page, num_switches: int, keep_on: Callable[[], str | None]) -> list[float]:
    """`num_switches` switches around the sidebar, beginning on Home.

    `keep_on` is called before each, to keep up what goes on beside; it returns the page it left, if any.
    """
    names, here, times = list(PAGES), "Home", []
    switch_ms(page, here)
    for _ in range(num_switches):
        page.wait_for_timeout(PAUSE_MS)
        here = keep_on() or here
        here = names[(names.index(here) + 1) % len(names)]
        times.append(switch_ms(page, here))
    return times


def press(page: Page, key: str) -> None:
    page.locator(f'[class*="st-key-{key}"] button').click()


def is_(page: Page, state: str) -> bool:
    """Whether the line in the sidebar says that the engine is in `state`."""
    return state in page.get_by_test_id("stSidebarUserContent").inner_text()


def keep_loading(page: Page, model: str) -> str | None:
    if is_(page, "Loading"):
        return None
    switch_ms(page, "Load model")
    if is_(page, "Ready"):
        press(page, "load_unload")
        page.get_by_text("No model loaded").wait_for()
    press(page, f"load_model_{model}")
    page.get_by_text("Starting the engine").wait_for()
    page.wait_for_timeout(PAUSE_MS)
    return "Load model"


def keep_answering(page: Page) -> str | None:
    if is_(page, "Answering"):
        return None
    switch_ms(page, "Chat")
    field = page.get_by_test_id("stChatInputTextArea")
    field.fill(QUESTION)
    field.press("Enter")
    page.get_by_text("Stop answering").first.wait_for()
    page.wait_for_timeout(PAUSE_MS)
    return "Chat"


def run(url: str, model: str, num_switches: int) -> dict[str, list[float]]:
    """The times of every situation in milliseconds."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_context(locale="en-US").new_page()
        page.goto(url)
        page.locator("h1").wait_for()
        measure(page, len(PAGES), lambda: None)  # The first view of each page is not what is asked here.
        found = {"at rest": measure(page, num_switches, lambda: None)}
        found["while loading"] = measure(page, num_switches, lambda: keep_loading(page, model))
        switch_ms(page, "Load model")
        page.get_by_text("Successfully loaded").wait_for(timeout=LOAD_MS)
        found["while answering"] = measure(page, num_switches, lambda: keep_answering(page))
        browser.close()
    return found


@contextmanager
def dashboard() -> Iterator[str]:
    """A dashboard on a free port, with settings of its own; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "serve.py"]
    options = ["--server.port", str(port), "--server.address", "127.0.0.1"]
    with tempfile.TemporaryDirectory() as data:
        process = subprocess.Popen(
            command + options, cwd=ROOT, env={**os.environ, "LLAMADECK_DATA": data}, stdout=subprocess.DEVNULL
        )
        try:
            yield wait_for(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait()


def wait_for(url: str) -> str:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=5).close()
            return url
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"the dashboard did not answer within {START_S} s")


def choose_model(name: str | None) -> str:
    """The model called `name`, else the smallest one on disk."""
    if name is not None:
        return find(name).name
    checkpoints = [entry.checkpoint for entry in scan() if entry.checkpoint is not None]
    if not checkpoints:
        raise SystemExit("there is no model on disk; ./llamadeck starter makes one")
    return min(checkpoints, key=lambda checkpoint: checkpoint.size_bytes).name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--switches", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        model = choose_model(arguments.model)
    except DeckError as error:
        raise SystemExit(str(error)) from None
    with dashboard() as url:
        found = run(url, model, arguments.switches)
    summary = {
        name: {"median_ms": round(statistics.median(times)), "max_ms": round(max(times)), "switches": len(times)}
        for name, times in found.items()
    }
    if arguments.json:
        print(json.dumps({"model": model, "cores": os.cpu_count(), "page_switch": summary}))
        return
    print(f"{'click to heading':<18}{'median':>9}{'max':>9}{'switches':>10}")
    for name, row in summary.items():
        print(f"{name:<18}{row['median_ms']:>6} ms{row['max_ms']:>6} ms{row['switches']:>10}")


if __name__ == "__main__":
    main()
