"""The small routes beside Streamlit: somebody is there, and whether a websocket gets through."""

from __future__ import annotations

import re

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from core.access.access import Access
from core.access.gate import Gate
from tests.support.gate_client import access, ask, cookie_of, settings, sign_in, talk
from ui.server.presence import PATH as PRESENCE
from ui.server.presence import presence_route
from ui.server.websocket_check import ECHO_PATH, MAX_CHARS, MAX_MESSAGES, PATH, websocket_check_routes
from ui.shared.browser import WATCH

__all__ = ["access", "settings"]


def test_somebody_at_a_page_is_noticed_and_nobody_else(access: Access) -> None:
    noted: list[bool] = []
    app = Gate(Starlette(routes=[presence_route(lambda: noted.append(True))]), access)
    assert f'fetch("{PRESENCE[1:]}"' in WATCH
    assert ask(app, PRESENCE, method="POST").status == 401 and not noted
    cookie = cookie_of(sign_in(app))
    assert ask(app, PRESENCE, cookie, "POST").status == 204 and noted == [True]
    foreign = cookie | {"origin": "https://evil.example"}
    assert ask(app, PRESENCE, foreign, "POST").status == 403 and noted == [True]


@pytest.fixture
def client() -> TestClient:
    return TestClient(Starlette(routes=websocket_check_routes()))


def test_the_check_says_a_few_short_texts_again(client: TestClient) -> None:
    with client.websocket_connect(ECHO_PATH) as socket:
        for number in range(MAX_MESSAGES):
            socket.send_text(f"{number}")
            assert socket.receive_text() == f"{number}"
        with pytest.raises(WebSocketDisconnect):
            socket.receive_text()


@pytest.mark.parametrize("sent", ["x" * (MAX_CHARS + 1), b"bytes"])
def test_what_is_no_check_ends_it(client: TestClient, sent: str | bytes) -> None:
    with client.websocket_connect(ECHO_PATH) as socket:
        if isinstance(sent, str):
            socket.send_text(sent)
        else:
            socket.send_bytes(sent)
        with pytest.raises(WebSocketDisconnect):
            socket.receive_text()


@pytest.mark.parametrize(("language", "word"), [("en", "Trying"), ("zh-CN", "正在尝试")])
def test_its_page_needs_no_websocket_to_be_read(client: TestClient, language: str, word: str) -> None:
    page = client.get(PATH, headers={"accept-language": language}).text
    assert word in page and "websocket-check/echo" in page
    assert not re.search(r"(src|href)=", page), "it loads nothing"


def test_nobody_checks_who_has_not_signed_in(access: Access) -> None:
    app = Gate(Starlette(routes=websocket_check_routes()), access)
    assert ask(app, PATH, {"accept": "text/html"}).status == 401
    assert talk(app, {}, []) == [1008]
