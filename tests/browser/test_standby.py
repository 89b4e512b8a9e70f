"""What only a browser can show of a dashboard that waits: a websocket gets through, and somebody at the page counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.chat_page import WAIT_MS, chat_dashboard

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


COMMAND = "curl -X POST https://api.example.org/pods/$POD_ID/stop_now?by=*idle*"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("standby")
    (folder / "models").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMADECK_IDLE_COMMAND", COMMAND)
        with chat_dashboard(folder) as url:
            yield url


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


def test_a_command_is_shown_as_it_is_with_an_address_in_it(page: Page, url: str) -> None:
    page.goto(f"{url}/Settings")
    page.get_by_text(f"Run “{COMMAND}” after").wait_for(timeout=WAIT_MS)


def test_a_websocket_that_gets_through_is_told(page: Page, url: str) -> None:
    for path in ("websocket-check", "Settings"):
        page.goto(f"{url}/{path}")
        page.get_by_text("Yes: websockets get through").wait_for(timeout=WAIT_MS)


def test_one_that_does_not_is_told_with_what_to_do(page: Page, url: str) -> None:
    page.route_web_socket("**/websocket-check/echo", lambda socket: socket.close())
    page.goto(f"{url}/websocket-check")
    page.get_by_text("proxy_set_header Upgrade").wait_for(timeout=WAIT_MS)


def test_opening_a_page_and_a_key_at_it_are_signs_of_somebody(page: Page, url: str) -> None:
    with page.expect_response("**/presence", timeout=WAIT_MS) as opened:
        page.goto(f"{url}/Settings")
    assert opened.value.status == 204
    page.get_by_text("Yes: websockets get through").wait_for(timeout=WAIT_MS)
    page.evaluate("() => { window.llamadeckTold = 0; }")
    with page.expect_response("**/presence", timeout=WAIT_MS) as told:
        page.keyboard.press("Tab")
    assert told.value.status == 204
