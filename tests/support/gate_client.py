"""The gate around an app that says whom it was let in as, asked as a server would ask it; holds no test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse

from core.access import password
from core.access.access import Access
from core.access.exposure import LISTENS, NETWORK, is_loopback_only
from core.access.gate import Gate
from core.access.scopes import person_in
from core.access.secret_file import SecretFile

PASSWORD = "correct horse battery"
AWAY = {"client": ("192.0.2.7", 50000), "server": ("192.0.2.2", 6006), "host": "deck.example.org"}
PAGE = {"accept": "text/html"}
HERE = {"client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 6006), "host": "127.0.0.1:6006"}


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


async def says_who(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """The app behind the gate: whom it was let in as, and whether nothing needs to be asked."""
    headers = HTTPConnection(scope).headers
    if scope["type"] == "http":
        await PlainTextResponse(f"{person_in(headers)!r} {is_loopback_only()}")(scope, receive, send)
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"{person_in(headers)!r} {message['text']}"})


class SignedInPeople:
    """Signing on where the cookie "who" is the person's name; those whose name ends with a star are not invited."""

    providers: Sequence[str] = ("default",)
    origin = "https://deck.example.org:8443"

    def session(self, cookies: Mapping[str, str]) -> str:
        return f"session of {cookies['who']}"

    def person(self, cookies: Mapping[str, str]) -> str | None:
        return cookies.get("who")

    def is_invited(self, cookies: Mapping[str, str]) -> bool:
        return not cookies["who"].endswith("*")

    def name(self, cookies: Mapping[str, str]) -> str:
        return cookies["who"]

    def start(self, provider: str) -> str:
        return f"/auth/login?provider={provider}"


def make_scope(
    kind: str, path: str, headers: Mapping[str, str], method: str, place: Mapping[str, Any]
) -> dict[str, Any]:
    path, _, query = path.partition("?")
    given = {"host": place["host"]} | {name.lower(): value for name, value in headers.items()}
    return {
        "type": kind, "path": path, "query_string": query.encode(), "method": method, "root_path": "",
        "scheme": place.get("scheme", "http"), "client": place["client"], "server": place["server"],
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
    }  # fmt: skip


def ask(
    app: Gate,
    path: str,
    headers: Mapping[str, str] = {},
    method: str = "GET",
    body: Sequence[bytes] = (b"",),
    place: Mapping[str, Any] = AWAY,
) -> Reply:
    chunks, sent = list(body), []

    async def receive() -> dict[str, Any]:
        chunk = chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(make_scope("http", path, headers, method, place), receive, send))
    start, *rest = sent
    found = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
    return Reply(start["status"], found, b"".join(one.get("body", b"") for one in rest).decode())


def talk(app: Gate, headers: Mapping[str, str], steps: Sequence[str | Callable[[], object]]) -> list[Any]:
    """What a websocket gets: "accept", texts, or the number it was closed with. A step is a text, or done between."""
    waiting: list[str | Callable[[], object]] = list(steps)
    got: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not got:
            return {"type": "websocket.connect"}
        while waiting and callable(step := waiting[0]):
            step()
            waiting.pop(0)
        return {"type": "websocket.receive", "text": waiting.pop(0)} if waiting else {"type": "websocket.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        kind = message["type"]
        got.append("accept" if kind == "websocket.accept" else message.get("text", message.get("code")))

    asyncio.run(app(make_scope("websocket", "/_stcore/stream", headers, "GET", AWAY), receive, send))
    return got


def form(**fields: str) -> list[bytes]:
    return [urlencode(fields).encode()]


def sign_in(app: Gate, headers: Mapping[str, str] = {}, place: Mapping[str, Any] = AWAY, **fields: str) -> Reply:
    return ask(app, "/sign-in", headers, "POST", form(**({"password": PASSWORD} | fields)), place)


def cookie_of(reply: Reply) -> dict[str, str]:
    """What a browser sends next."""
    return {"cookie": reply.headers["set-cookie"].split(";")[0]}


# Fixtures -------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(password, "LOG2_N", 4)
    monkeypatch.setenv(LISTENS, NETWORK)


@pytest.fixture
def access(tmp_path: Path) -> Access:
    access = Access(SecretFile(tmp_path / "access.json"), {})
    access.set_password(PASSWORD)
    return access


@pytest.fixture
def app(access: Access) -> Gate:
    return Gate(says_who, access)
