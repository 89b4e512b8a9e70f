"""The finished thing as a person has it: `./llamadeck run`, a real browser, the real starter model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from core.common.paths import ROOT
from core.starter import build as starter
from tests.support.browser_page import answer_greedily, begin_chat
from tests.support.dashboard import free_port, key, wait_until_healthy

LOAD_MS = 240_000
ANSWER_MS = 120_000
LONG_QUESTION = "Write a long letter to a friend about a journey through the mountains."
# More words than the question or any text about waiting has. Which ones the model says differs from CPU to CPU.
WELL_BEGUN = re.compile(r"(?:\S+\s+){30}")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard started by the command itself, with an empty models folder that the starter is put into."""
    folder = tmp_path_factory.mktemp("home")
    port = free_port()
    environment = {
        **os.environ,
        "LLAMADECK_MODELS": str(folder / "models"),
        "LLAMADECK_DATA": str(folder / "data"),
    }
    process = subprocess.Popen(
        [ROOT / "llamadeck", "run", "--port", str(port)], env=environment, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    wait_until_healthy(url, process)
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    page.goto(address)
    expect(page.get_by_test_id("stSidebarNav")).to_be_visible()
    yield page
    context.close()


def go(page: Page, name: str) -> None:
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()


def ask(page: Page, text: str) -> None:
    field = page.get_by_test_id("stChatInputTextArea")
    field.fill(text)
    field.press("Enter")


def last_answer(page: Page) -> Locator:
    return page.get_by_test_id("stChatMessage").last


def make_ready(page: Page) -> None:
    """The starter loaded, by hand of the Load Model page where it is not."""
    go(page, "Load model")
    expect(page.get_by_text(starter.NAME).first).to_be_visible()
    button = key(page, f"load_model_{starter.NAME}").get_by_role("button")
    loaded = page.get_by_text("Successfully loaded")
    expect(button.or_(loaded).first).to_be_visible(timeout=LOAD_MS)
    if button.is_visible():
        button.click()
    expect(loaded).to_be_visible(timeout=LOAD_MS)


def open_new_chat(page: Page, longest_answer: int = 1024) -> None:
    make_ready(page)
    go(page, "Chat")
    expect(page.get_by_test_id("stChatInputTextArea")).to_be_enabled()
    begin_chat(page)
    expect(page.get_by_test_id("stChatMessage")).to_have_count(0)
    answer_greedily(page, longest_answer)


def test_a_load_shows_its_stages_and_survives_leaving_the_page(page: Page) -> None:
    go(page, "Load model")
    key(page, f"load_model_{starter.NAME}").get_by_role("button").click()
    expect(page.get_by_text(re.compile(r"\d+ %")).first).to_be_visible()
    go(page, "Home")
    expect(page.get_by_role("heading", name="LlamaDeck")).to_be_visible()
    go(page, "Load model")
    expect(page.get_by_text("Successfully loaded")).to_be_visible(timeout=LOAD_MS)


def test_the_capital_of_france_appears_piece_by_piece(page: Page) -> None:
    open_new_chat(page)
    page.evaluate(
        """() => { window.lengths = new Set(); new MutationObserver(() => {
            const all = document.querySelectorAll('[data-testid="stChatMessage"]');
            if (all.length) window.lengths.add(all[all.length - 1].innerText.length);
        }).observe(document.body, {subtree: true, childList: true, characterData: true}); }"""
    )
    ask(page, "What is the capital of France?")
    expect(last_answer(page)).to_contain_text("Paris", timeout=ANSWER_MS)
    expect(key(page, "chat_stop")).to_be_hidden(timeout=ANSWER_MS)
    ask(page, LONG_QUESTION)
    expect(page.get_by_test_id("stChatMessage")).to_have_count(4, timeout=ANSWER_MS)
    expect(key(page, "chat_stop")).to_be_visible(timeout=ANSWER_MS)
    page.wait_for_function("window.lengths.size > 8", timeout=ANSWER_MS)
    key(page, "chat_stop").get_by_role("button").click()
    expect(last_answer(page)).to_contain_text("Stopped", timeout=ANSWER_MS)


def test_stop_ends_a_long_answer_and_keeps_what_was_said(page: Page) -> None:
    open_new_chat(page)
    ask(page, LONG_QUESTION)
    expect(last_answer(page)).to_contain_text(WELL_BEGUN, timeout=ANSWER_MS)
    key(page, "chat_stop").get_by_role("button").click()
    expect(last_answer(page)).to_contain_text("Stopped", timeout=ANSWER_MS)
    kept = answer_text(page)
    page.reload()
    expect(last_answer(page)).to_contain_text("Stopped", timeout=ANSWER_MS)
    assert answer_text(page) == kept


def test_a_running_answer_outlives_a_switch_of_pages(page: Page) -> None:
    open_new_chat(page)
    ask(page, LONG_QUESTION)
    expect(last_answer(page)).to_contain_text(WELL_BEGUN, timeout=ANSWER_MS)
    before = answer_text(page)
    go(page, "Home")
    expect(page.get_by_role("heading", name="LlamaDeck")).to_be_visible()
    go(page, "Chat")
    expect(last_answer(page)).to_contain_text(WELL_BEGUN, timeout=ANSWER_MS)
    page.wait_for_function(
        "length => [...document.querySelectorAll('[data-testid=stChatMessage]')].at(-1).innerText.length > length",
        arg=len(before) + 20,
        timeout=ANSWER_MS,
    )
    assert answer_text(page).startswith(before[:20])
    key(page, "chat_stop").get_by_role("button").click()
    expect(last_answer(page)).to_contain_text("Stopped", timeout=ANSWER_MS)


def answer_text(page: Page) -> str:
    return last_answer(page).get_by_test_id("stMarkdown").first.inner_text()


def test_a_closed_and_reopened_tab_finds_the_answer_complete(page: Page, address: str) -> None:
    open_new_chat(page, longest_answer=200)
    ask(page, "Count from one to twenty in words.")
    expect(key(page, "chat_stop")).to_be_visible(timeout=ANSWER_MS)
    expect(key(page, "chat_stop").or_(last_answer(page).get_by_text("tokens/s"))).to_be_visible()
    url = page.url
    context = page.context
    page.close()
    again = context.new_page()
    again.goto(url)
    expect(again.get_by_test_id("stChatMessage")).to_have_count(2)
    expect(last_answer(again)).to_contain_text("tokens", timeout=ANSWER_MS)
    expect(key(again, "chat_stop")).to_have_count(0)


def test_a_chinese_browser_is_greeted_in_chinese_and_can_change_that(browser: Browser, address: str) -> None:
    context = browser.new_context(locale="zh-CN")
    page = context.new_page()
    page.goto(address)
    expect(page.get_by_test_id("stSidebarNav")).to_contain_text("聊天")
    page.get_by_text("English", exact=True).click()
    expect(page.get_by_test_id("stSidebarNav")).to_contain_text("Load model")
    context.close()


def test_a_killed_engine_is_said_and_the_next_load_works(page: Page, address: str) -> None:
    open_new_chat(page)
    ask(page, LONG_QUESTION)
    expect(last_answer(page)).to_contain_text(WELL_BEGUN, timeout=ANSWER_MS)
    before = answer_text(page)
    os.kill(worker_pid(), signal.SIGKILL)
    expect(page.get_by_test_id("stAlert").first).to_be_visible(timeout=ANSWER_MS)
    assert answer_text(page).startswith(before[:20])
    make_ready(page)


def worker_pid() -> int:
    """The engine's process that is this test's grandchild, by what it runs: a spare that waits beside it is younger."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and is_ours(int(entry.name))]
    assert pids, "no engine process was found"
    return min(pids, key=started)


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])


def is_ours(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        grandparent = int(Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return False
    return b"core.worker.main" in words and grandparent == os.getpid()


def test_a_first_visit_to_a_page_other_than_home_has_its_frame(browser: Browser, address: str) -> None:
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    page.goto(f"{address}/Chat")
    expect(page.get_by_test_id("stSidebarNav")).to_contain_text("Load model")
    expect(page.get_by_test_id("stChatInputTextArea")).to_be_visible()
    context.close()


def test_a_question_sent_while_an_answer_runs_is_asked_after_it(page: Page) -> None:
    """What the model says next depends on how far the letter came, so any answer will do. One that repeated itself up
    to the usual limit took a slow machine longer than anybody waits."""
    open_new_chat(page, longest_answer=400)
    ask(page, LONG_QUESTION)
    expect(last_answer(page)).to_contain_text(WELL_BEGUN, timeout=ANSWER_MS)
    ask(page, "Forget that. What is the capital of France?")
    expect(page.get_by_text("What is the capital of France?")).to_be_visible(timeout=ANSWER_MS)
    key(page, "chat_stop").get_by_role("button").click()
    expect(page.get_by_test_id("stChatMessage")).to_have_count(4, timeout=ANSWER_MS)
    expect(last_answer(page)).to_contain_text("tokens/s", timeout=ANSWER_MS)


def test_a_chat_is_worked_on_with_the_real_model(page: Page, address: str) -> None:
    """Another answer, the first one again, a longer one, an edited question; all still there in another tab."""
    open_new_chat(page, longest_answer=12)
    ask(page, "What is the capital of France?")
    regenerate = key(page, "chat_regenerate").get_by_role("button")
    expect(regenerate).to_be_visible(timeout=ANSWER_MS)
    regenerate.click()
    expect(last_answer(page)).to_contain_text("2/2", timeout=ANSWER_MS)
    last_answer(page).locator('[class*="st-key-version_before"]').get_by_role("button").click()
    expect(last_answer(page)).to_contain_text("1/2", timeout=ANSWER_MS)
    expect(last_answer(page)).to_contain_text("Paris")
    page.get_by_test_id("stChatMessage").first.locator('[class*="st-key-message_menu"]').get_by_role("button").click()
    page.get_by_text("Edit", exact=True).click()
    page.get_by_test_id("stChatMessage").first.get_by_role("textbox").fill("Write a story about a fox.")
    key(page, "chat_edit_ask").get_by_role("button").click()
    expect(last_answer(page)).not_to_contain_text("Paris", timeout=ANSWER_MS)
    expect(last_answer(page)).to_contain_text("tokens/s", timeout=ANSWER_MS)
    before = answer_text(page)
    key(page, "chat_go_on").get_by_role("button").click()
    page.wait_for_function(
        "length => [...document.querySelectorAll('[data-testid=stChatMessage]')].at(-1).innerText.length > length",
        arg=len(last_answer(page).inner_text()) + 10,
        timeout=ANSWER_MS,
    )
    expect(regenerate).to_be_visible(timeout=ANSWER_MS)
    assert answer_text(page).startswith(before)
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_test_id("stChatMessage").first).to_contain_text("a fox", timeout=ANSWER_MS)
    assert answer_text(other) == answer_text(page)


def test_a_character_answers_with_the_real_model(page: Page, address: str) -> None:
    make_ready(page)
    page.goto(f"{address}/Chat?chat=new&character=Ada")
    expect(last_answer(page)).to_contain_text("I'm Ada", timeout=ANSWER_MS)
    answer_greedily(page, 24)
    ask(page, "What is a prime number?")
    expect(page.get_by_test_id("stChatMessage")).to_have_count(3, timeout=ANSWER_MS)
    expect(key(page, "chat_regenerate").get_by_role("button")).to_be_visible(timeout=ANSWER_MS)
    name, answer = last_answer(page).get_by_test_id("stMarkdown").all_inner_texts()[:2]
    assert name == "Ada" and len(answer) > 10
