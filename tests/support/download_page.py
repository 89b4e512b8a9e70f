"""The page Download run by AppTest: what a person looks for, begins and waits for there."""

from __future__ import annotations

from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from tests.support.pages import click, open_tab, run, words
from tests.support.widgets import named
from ui.shared import resources

RUNS = 300


def until(tab: AppTest, is_so: Callable[[], bool]) -> AppTest:
    """Draw the page again, as its fragments do, until `is_so`."""
    for _ in range(RUNS):
        if is_so():
            return run(tab)
        run(tab)
    raise AssertionError("it never came to that")


def open_page(locale: str = "en-US") -> AppTest:
    return open_tab("1_Download", locale)


def search(tab: AppTest, text: str) -> AppTest:
    tab.text_input(key="find_text").set_value(text)
    return until(run(tab), lambda: not tab.get("caption") or "…" not in words(tab))


def show(tab: AppTest, section: str) -> AppTest:
    named(tab.segmented_control, "download_section_choice").set_value(section)
    return run(tab)


def plan_for(tab: AppTest, card: str) -> AppTest:
    tab.selectbox(key="plan_gpu").set_value(card)
    return run(tab)


def has(tab: AppTest, key: str) -> bool:
    return key in [button.key for button in tab.button]


def download_keys(tab: AppTest) -> list[str]:
    return [button.key for button in tab.button if str(button.key).startswith("find_download_")]


def can_begin(tab: AppTest) -> bool:
    return bool(download_keys(tab))


def begin(tab: AppTest) -> AppTest:
    (key,) = download_keys(tab)
    return click(tab, key)


def phases() -> list[str]:
    return [job.snapshot().phase for job in resources.downloads().jobs]
