"""How quick a chat page with many messages is, as the browser sees it: opened, clicked, a slider moved.

Run as `python -m benchmarks.chat_page [--messages 500] [--chats 60] [--rounds 15] [--json]`. It makes chats of its own,
some of them with the characters that are here, starts a dashboard with the engine's stand-in of the tests on a model
that is on disk, and drives it with headless Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks.pages import CHROMIUM, FLAGS, choose_model, wait_for
from core.chat.records import CopiedChat, CopiedMessage
from core.chat.store import ChatStore
from core.common.errors import DeckError
from core.common.paths import ROOT
from core.personas.store import Characters
from tests.support.dashboard import free_port

QUESTION = "Tell me something about the sea, please, with **names** and numbers such as $5 or 40 miles. "
ANSWER = "The sea is wide.\n\n1. First the `tide`\n2. then the wind\n\n```python\nprint('sea')\n```\n\nSo it goes on. "
PAUSE_MS = 400
LOAD_MS = 120_000
# Milliseconds from a step until the page shows what it is for.
TIMED = """([step, wanted]) => new Promise(resolve => {
    const begin = performance.now();
    const look = () => {
        const took = performance.now() - begin;
        if (eval(wanted)) resolve(took);
        else if (took > 20000) resolve(Infinity);
        else requestAnimationFrame(look);
    };
    eval(step);
    look();
})"""
MESSAGES = "document.querySelectorAll('[data-testid=\"stChatMessage\"]')"


def fill(data: Path, num_messages: int, num_chats: int) -> None:
    """A history with one long chat, which is number 1 and pinned, and many short ones, each third with a character."""
    store = ChatStore(data / "chats.sqlite3")
    names = [entry.key for entry in Characters().entries()]
    for number, count in enumerate((num_messages, *[2] * num_chats)):
        messages = [
            CopiedMessage(place - 1 if place else None, "assistant" if place % 2 else "user",
                          f"Message {place}. {ANSWER * 3 if place % 2 else QUESTION}", 1.0)
            for place in range(count)
        ]  # fmt: skip
        name = names[number % len(names)] if names and number % 3 == 2 else ""
        store.add(CopiedChat(tuple(messages), f"A chat of {count} messages", is_pinned=not number, character=name))
    store.close()


@contextmanager
def dashboard(data: Path, model: str) -> Iterator[str]:
    environment = {**os.environ, "LLAMADECK_DATA": str(data), "LLAMADECK_WORKER": "tests.support.fake_worker",
                   "LLAMADECK_LOAD": model}  # fmt: skip
    port = str(free_port())
    command = [sys.executable, "-m", "ui.server.start", "--server.port", port, "--server.address", "127.0.0.1"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        yield wait_for(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait()


def timed(page: Page, step: str, wanted: str) -> float:
    page.wait_for_timeout(PAUSE_MS)
    took: float = page.evaluate(TIMED, [step, wanted])
    return took


def click(selector: str) -> str:
    return f"document.querySelector('{selector}').click()"


def measure(page: Page, url: str, num_messages: int, num_chats: int, rounds: int) -> dict[str, list[float]]:
    """Opening: from the click on the chat in the list until its last message is there."""
    times: dict[str, list[float]] = {"open the chat": [], "click: other chat": [], "click: edit": [], "slider": []}
    last = f"Message {num_messages - 1}."
    page.goto(f"{url}/Chat?chat=1")
    page.get_by_text(last).wait_for(timeout=LOAD_MS)
    page.get_by_text("Ready").wait_for(timeout=LOAD_MS)
    page.locator(".st-key-chat_open_1 button").wait_for()
    for place in range(rounds):
        other = num_chats + 1 - place % 20
        has_last = f"[...{MESSAGES}].some(one => one.innerText.includes('{last}'))"
        times["click: other chat"].append(timed(page, click(f".st-key-chat_open_{other} button"), f"!({has_last})"))
        times["open the chat"].append(timed(page, click(".st-key-chat_open_1 button"), has_last))
        page.locator('[class*="st-key-message_menu"]').nth(-2).get_by_role("button").click()
        page.get_by_text("Edit", exact=True).wait_for()
        options = "document.querySelectorAll('li, [role=option], [role=menuitem]')"
        edit = f"[...{options}].find(one => one.innerText.includes('Edit')).click()"
        times["click: edit"].append(timed(page, edit, "document.querySelector('[class*=st-key-chat_edit_cancel]')"))
        page.locator("[class*=st-key-chat_edit_cancel] button").first.click()
        page.locator("[class*=st-key-chat_edit_cancel]").wait_for(state="detached")
    page.get_by_role("button", name="Generation").click()
    slider = page.locator("[class*=st-key-sampling_temperature]").get_by_role("slider")
    reset = page.locator("[class*=st-key-sampling_reset] button")
    for _ in range(rounds):
        page.wait_for_timeout(PAUSE_MS)
        before = page.evaluate("performance.now()")
        slider.press("ArrowRight")
        page.wait_for_function("!document.querySelector('[class*=st-key-sampling_reset] button').disabled")
        times["slider"].append(page.evaluate("performance.now()") - before)
        reset.click()
        page.wait_for_function("document.querySelector('[class*=st-key-sampling_reset] button').disabled")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--chats", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        model = choose_model(None)
    except DeckError as error:
        raise SystemExit(str(error)) from error
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        fill(Path(folder), arguments.messages, arguments.chats)
        with dashboard(Path(folder), model) as url:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_context(locale="en-US").new_page()
            times = measure(page, url, arguments.messages, arguments.chats, arguments.rounds)
            browser.close()
    figures = {name: {"median_ms": round(statistics.median(found)), "longest_ms": round(max(found))}
               for name, found in times.items()}  # fmt: skip
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    for name, figure in figures.items():
        print(f"{name:20} {figure['median_ms']:5} ms median {figure['longest_ms']:5} ms longest")


if __name__ == "__main__":
    main()
